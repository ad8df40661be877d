// State out of the snapshots of an older generation, for a rank of any layout: which ranges of
// which old ranks' snapshots it needs, and the atoms out of the files that its host has found.
//
// Ownership follows from configuration and layout alone, so the new rank works out who owned what.
// The trainer's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/atoms.h"
#include "runtime/base/digest.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/run_config.h"
#include "runtime/train/snapshot_file.h"

namespace perdure {

// The generation whose snapshots a new one resumes from, and the shape of its layout.
struct HeldStart {
  uint64_t generation = 0;
  int64_t step = 0;
  int64_t tensor = 1, pipeline = 1, data = 1;
  int64_t virtual_stages = 0;  // 0: as the configuration has now.
  // The state of `step` has a committed checkpoint; else one that is due there is written first.
  bool committed = false;
};

class HeldState {
 public:
  struct Options {
    RunConfig config;  // What the old generation had, but for its layout.
    std::string run_id;
    int host_threads = 1;
    bool history = false;  // It is wanted: rank 0.
  };
  // Asks the host for what holds `wanted`, opens it and checks that it is what was asked for.
  // DataLoss names file and field.
  static absl::StatusOr<std::unique_ptr<HeldState>> Find(const Options& options,
                                                         const HeldStart& start,
                                                         const AtomTable* table,
                                                         std::span<const int64_t> wanted,
                                                         RankHost* host);

  // Fills atoms that were among those wanted; each is compared with its digest. DataLoss names
  // file, rank and atom.
  absl::Status Read(std::span<const AtomState> atoms) const;
  // REQUIRES: it was wanted.
  const StepHistory& history() const { return history_; }

 private:
  HeldState() = default;

  int host_threads_ = 1;
  std::vector<std::unique_ptr<SnapshotReader>> files_;
  std::vector<int32_t> file_of_;  // By atom of the table: index in files_; -1: not wanted.
  StepHistory history_;
};

}  // namespace perdure
