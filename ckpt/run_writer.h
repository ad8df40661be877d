// Writes one run of a part file: HDF5's layout, the state of its atoms, digests of both.
//
// Every writer of a file lays it out in memory for itself; equal plans give equal layouts, so they
// need not talk to each other. A block has one writer: the one whose atoms lie in it, else the
// first. The file is complete when all runs are; nothing depends on the order. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/block_writer.h"
#include "ckpt/part_plan.h"
#include "ckpt/store_hdf5.h"

namespace perdure {

class RunWriter {
 public:
  // Creates DIR/<plan.file>, or joins its other writers. REQUIRES: a valid plan of the table; both
  // and the directory outlive the writer. ResourceExhausted: no space. AlreadyExists: a name was
  // reused.
  static absl::StatusOr<std::unique_ptr<RunWriter>> Create(const std::string& directory,
                                                           const AtomTable& table,
                                                           const PartPlan& plan, size_t run,
                                                           const PartStamp& stamp,
                                                           const WriteOptions& options);
  ~RunWriter();

  // The next atom of the run, in the plan's order. Copies; may wait for the disk.
  absl::Status Append(const AtomState& state);
  // Durable when this returns OK. REQUIRES: all atoms were given.
  absl::StatusOr<RunReport> Finish();

 private:
  struct Live {
    char* buffer = nullptr;
    uint64_t missing = 0;  // Bytes of state that are still to come.
  };

  RunWriter(std::string directory, const AtomTable& table, const PartPlan& plan, size_t run);
  absl::Status Open(const PartStamp& stamp, const WriteOptions& options);
  uint64_t StateBytes(uint64_t block, size_t run) const;
  void CopyImage(uint64_t block, char* buffer) const;
  absl::Status Copy(uint64_t offset, const char* data, uint64_t bytes);
  absl::Status WriteRest();
  absl::Status Fail(absl::Status status);

  const std::string directory_;
  const AtomTable& table_;
  const PartPlan& plan_;
  const size_t run_;
  ElementPlaces places_;
  LaidOutPart part_;
  RunReport report_;
  size_t first_ = 0;  // Of the run's atoms in the plan.
  size_t next_ = 0;   // Of them, to be given.
  File file_;
  std::unique_ptr<BlockWriter> blocks_;
  std::map<uint64_t, Live> live_;
};

}  // namespace perdure
