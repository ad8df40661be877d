// The device of a rank, as its configuration wants it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct RankDevice {
  std::unique_ptr<Ops> ops;
  std::string name;        // For messages: "CUDA device 3 (NVIDIA H100, PCI 0000:3b:00.0)".
  std::string pci_bus_id;  // Empty: not a device that NVML could know.
  size_t free_bytes = 0;   // Of a GPU's memory.
};

// numerics.backend of a rank that is the `local_rank`-th of its node: GPUs are dealt out in turn.
// REQUIRES: a backend that is resolved. FailedPrecondition: this node's GPU is not the one that
// numerics.isa names. Unavailable, Unimplemented: there is none.
absl::StatusOr<RankDevice> NewRankDevice(const RunConfig& config, int local_rank);

}  // namespace perdure
