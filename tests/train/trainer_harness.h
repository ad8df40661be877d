// Runs whole small trainings inside one process: ranks are threads over the local transport, the
// host is this object. What `perdure run` does with processes is tested in tests/launch.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/train/trainer.h"

namespace perdure {

// A model of a few thousand parameters, two phases, four shards.
RunConfig TinyConfig(const std::string& dtype = "fp32");

// Writes the sources that TinyConfig's mixture names into `directory`: learnable, deterministic
// token streams.
void WriteTinyData(const std::string& directory);

struct TrainingResult {
  absl::Status status;              // The first rank's error, else ok.
  std::vector<uint64_t> loss_bits;  // Of the steps taken, in order.
  std::vector<double> grad_norms;
  Digest certificate;      // Of the last checkpoint.
  std::string checkpoint;  // Its directory.
  bool complete = false;

  std::vector<absl::Status> statuses;            // By rank.
  std::vector<std::optional<Outcome>> outcomes;  // By rank; none after an error.
  std::map<int64_t, Digest> certificates;        // By step, of checkpoints.
  std::optional<Digest> loaded;                  // Certificate of what it started from.
  int64_t finished = -1;                         // The last step that rank 0 has finished.
  std::optional<Gap> found_bad;                  // For a step that all ranks came to.
};

// Makes the Ops of a rank, in its thread.
using OpsFactory = std::function<std::unique_ptr<Ops>()>;

// One generation of ranks that are threads.
struct TrainingJob {
  RunConfig config;
  std::string data_directory;
  std::string run_directory;
  StartPoint start;
  int64_t until_step = -1;
  uint64_t generation = 1;
  OpsFactory make_ops = [] { return NewCpuOps(1); };
  std::vector<std::string> snapshot_directories;  // By rank; empty: no snapshots.
  std::vector<int32_t> snapshot_peers;
  Gaps gaps;  // Of the run.
  // Asked by rank 0 after each step, where there is one.
  std::function<Command(int64_t step)> command;
  // What stands between a rank and its transport and host, where there is something. In the rank's
  // thread.
  std::function<std::unique_ptr<Transport>(int rank, std::unique_ptr<Transport>)> wrap_transport;
  std::function<std::unique_ptr<RankHost>(int rank, RankHost*)> wrap_host;
  // In the rank's thread: its trainer is there, and then gone (null).
  std::function<void(int rank, Trainer*)> made;
  std::function<void(int rank)> ended;  // In the rank's thread, as its last act.
};

TrainingResult RunJob(const TrainingJob& job);

// Trains from `start_checkpoint` (empty: from the beginning) until `until_step` (negative: the
// end).
TrainingResult Train(
    const RunConfig& config, const std::string& data_directory, const std::string& run_directory,
    const std::string& start_checkpoint, int64_t until_step,
    const OpsFactory& make_ops = [] { return NewCpuOps(1); });

}  // namespace perdure
