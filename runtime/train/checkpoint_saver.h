// A rank's share of checkpoints: freezes its state in one copy at a step boundary, then, behind
// training, writes it and reads back files of others, as the host orders.
//
// One frozen state at a time: a second one waits until the first is settled (back-pressure),
// because until then it may have to be written again. Without `asynchronous` training waits for it
// all, and nothing is copied where device memory is the host's. The thread that trains calls, and
// it alone touches the ops, but for SyncDownloads; the saver has a thread of its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/run_writer.h"
#include "kernels/ops.h"
#include "runtime/comm/sync_watching.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/state_copy.h"
#include "runtime/train/writers.h"

namespace perdure {

WriteOptions WriteOptionsOf(const CheckpointConfig& config);

class CheckpointSaver {
 public:
  struct Options {
    std::string run_directory;
    PartStamp stamp;  // Its step is that of each save.
    uint32_t nonce = 0;
    WriteOptions write;
    bool asynchronous = true;
    SyncCall sync;  // Waits for the device; empty: as ops->Sync().
    // The sums (WordSum) of the live state as it should be, by atom, then part: what is written is
    // compared with them. Called by Save. Empty: it is not compared.
    std::function<absl::StatusOr<std::vector<uint64_t>>()> sums;
  };
  // `place`: of this rank in `plan`; `live` is the state of its atoms in device memory, in the
  // plan's order. Pointers outlive the saver.
  CheckpointSaver(const Options& options, const AtomTable* table, const Writers* writers, int rank,
                  std::vector<AtomState> live, Ops* ops, RankHost* host);
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Freezes the state as it is now; the rest happens behind, the copy from a device too: whoever
  // changes the state calls Ops::AwaitDownloads first. An error is the host's (it is gone): a
  // failed write is the host's business and no error here.
  // `trail`: rank 0's, of that step.
  absl::Status Save(int64_t step, std::optional<Trail> trail = std::nullopt);
  // Until the latest save is settled.
  absl::Status Wait();
  // For which training has waited here since the saver was made.
  double stall_seconds() const { return stall_seconds_; }

  // Host bytes that a saver of atoms with so many elements in all keeps: what is on its way to
  // disk, and the frozen state where there is one.
  static int64_t MemoryOf(const WriteOptions& options, bool freezes, int64_t elements);

 private:
  void Work();
  absl::Status SaveFrozen(SavedRun saved);
  absl::Status Write(const SavedRun& saved, RunReport* report) const;
  absl::Status CompareSums(std::span<const AtomState> written) const;
  absl::Status Verify(int64_t step, const SaveOrder& order) const;

  const Options options_;
  const AtomTable* table_;
  const Writers* writers_;
  const Writers::Place place_;
  const std::vector<AtomState> live_;
  Ops* ops_;
  const SyncCall sync_;
  RankHost* host_;
  const bool freezes_;
  std::vector<uint64_t> sums_;       // Of the state that is being saved. Whose it is: the thread's.
  void* memory_ = nullptr;           // Of frozen_.
  std::optional<StateCopy> frozen_;  // None: live_ itself is written.
  double stall_seconds_ = 0;

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  bool busy_ = false;  // The frozen state is the saver's.
  bool stop_ = false;
  SavedRun next_;  // What is to be saved, while busy_.
  absl::Status status_;
  std::thread thread_;
};

}  // namespace perdure
