// The nodes of a job as folders: where the snapshots of generations of rank threads lie, what is
// whole of them, and how a next generation finds them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/train/trainer_harness.h"

namespace perdure {

// A path of this name on a tmpfs, where snapshots belong: another file system may show a mapping
// and the file at different times.
std::string SharedMemory(const std::string& name);

// A folder there with the data of WriteTinyData, which goes when this does.
class TinyFolder {
 public:
  explicit TinyFolder(const std::string& name);
  ~TinyFolder();
  TinyFolder(const TinyFolder&) = delete;
  TinyFolder& operator=(const TinyFolder&) = delete;

  const std::string& path() const { return path_; }
  // A folder inside it with the same data, for a RecoveryWorld.
  std::string World(const std::string& name) const;

 private:
  const std::string path_;
};

class RecoveryWorld {
 public:
  // `directory` is there, has the data of WriteTinyData, and keeps the nodes' folders.
  RecoveryWorld(std::string directory, const RunConfig& config);

  // A job of this layout, `ranks_per_node` ranks on each node in order, with snapshots; peers as
  // PlaceSnapshots says, none where all are on one node. Starts anew.
  TrainingJob Job(uint64_t generation, const LayoutConfig& layout, int ranks_per_node);
  // The same from the snapshots of `old` after `step`.
  TrainingJob Resume(uint64_t generation, const LayoutConfig& layout, int ranks_per_node,
                     const TrainingJob& old, int64_t step);
  // Of another job, by a checkpoint: StartPoint of it.
  static StartPoint FromCheckpoint(const std::string& checkpoint);

  // Where a rank of a job lives.
  int NodeOf(const TrainingJob& job, int rank) const;
  std::string NodeDirectory(int node) const;
  // Deletes what the node holds.
  void LoseNode(int node);
  // Complete snapshots of a generation: by step, the ranks that have one, on all nodes but
  // `without`.
  std::map<int64_t, std::set<int32_t>> Held(uint64_t generation, int without = -1) const;
  // The newest step of which every rank of the job has one.
  std::optional<int64_t> NewestWhole(const TrainingJob& job, int without = -1) const;
  // Of the state that such a step's files hold, every atom read and compared with its digest.
  absl::StatusOr<Digest> CertificateOf(const TrainingJob& job, int64_t step,
                                       int without = -1) const;
  // Path of a complete snapshot, first on `node`; empty: there is none.
  std::string Find(uint64_t generation, int64_t step, int32_t rank, int node,
                   int without = -1) const;
  int64_t SamplesAt(int64_t step) const;
  const AtomTable& table() const { return table_; }

 private:
  TrainingJob Base(uint64_t generation, const LayoutConfig& layout, int ranks_per_node);

  const std::string directory_;
  const RunConfig config_;
  const AtomTable table_;
  std::map<uint64_t, int> ranks_per_node_;  // By generation.
};

}  // namespace perdure
