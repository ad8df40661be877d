// A node's snapshots in shared memory: one directory of one agent, which outlives rank processes
// and the agent itself, but not the job.
//
//   <directory>/perdure-<run id, first 12 hex>-<job start>-n<node>/
//       lock        held (flock) as long as the agent lives
//       g3-r12-a    written by ranks (runtime/train/snapshot_file.h)
//       fetched/    what came from other nodes for ranks that are loading: no holdings
//
// An agent that starts takes over what the agent of the same run, job and node before it has left,
// and removes what other jobs of the run have left whose agents are gone. The agent's loop's thread
// calls everything. The agent owns it; files are mode 0600 in directories of mode 0700.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"
#include "runtime/control/message.h"

namespace perdure {

class SnapshotShelf {
 public:
  struct Options {
    std::string directory;  // On this machine, in memory: "/dev/shm".
    std::string run_id;     // 32 hex digits.
    uint64_t job = 0;       // JobStart.
    NodeId node = 0;
  };

  // FailedPrecondition: an agent of this node lives and has it, or what stands there is not ours
  // alone. Other errors are the file system's.
  static absl::StatusOr<std::unique_ptr<SnapshotShelf>> Open(const Options& options);
  ~SnapshotShelf();  // What is held stays, for an agent after this one.
  SnapshotShelf(const SnapshotShelf&) = delete;
  SnapshotShelf& operator=(const SnapshotShelf&) = delete;

  const std::string& path() const { return path_; }
  // All whole snapshots of this run, sorted.
  std::vector<Holding> Holdings() const;
  // The file of one of them. NotFound: it is not held.
  absl::StatusOr<std::string> PathOf(const Holding& holding) const;
  // Where what a local rank gets of one of another node belongs.
  std::string FetchedPath(const Holding& holding, int32_t local_rank) const;
  // Deletes what was fetched.
  void DropFetched();
  // Deletes snapshots of generations before `generation`, whole or not.
  void DropOlder(Generation generation);
  // Deletes everything; the shelf is of no use after it.
  void Remove();

 private:
  SnapshotShelf(std::string path, std::string run_id, UniqueFd lock);

  const std::string path_;
  const std::string run_id_;
  UniqueFd lock_;
};

}  // namespace perdure
