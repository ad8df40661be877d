// Runs whole small trainings inside one process: ranks are threads over the local transport, the
// host is this object. What `perdure run` does with processes is tested in tests/launch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
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
};

// Makes the Ops of a rank, in its thread.
using OpsFactory = std::function<std::unique_ptr<Ops>()>;

// Trains from `start_checkpoint` (empty: from the beginning) until `until_step` (negative: the
// end).
TrainingResult Train(
    const RunConfig& config, const std::string& data_directory, const std::string& run_directory,
    const std::string& start_checkpoint, int64_t until_step,
    const OpsFactory& make_ops = [] { return NewCpuOps(1); });

}  // namespace perdure
