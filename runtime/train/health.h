// Whether a device computes, keeps and moves what it should, found out before it trains: a device
// that is silently wrong would compute its errors into the state, where no digest sees them.
//
// The numbers of the products are whole and small, so that every partial sum is exact in fp32: a
// device that works gives exactly the right product whatever order it sums in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "runtime/train/backend.h"

namespace perdure {

struct HealthOptions {
  std::string device;  // As messages name it, with its host.
  int64_t matmul_size = 128;
  size_t memory_bytes = size_t{2} << 20;  // A multiple of two chunks; 16 matmul_size^2 at least.
  size_t chunk_bytes = size_t{1} << 18;   // What moves at once to and from the host.
  bool rates = false;                     // Whether this is large enough to measure speeds.
};

// What a check of `device` takes: about a second and at most 5 % of a GPU's free memory; a few
// milliseconds on the CPU.
HealthOptions HealthOptionsOf(const RankDevice& device, const std::string& host);

struct HealthReport {
  // DataLoss: wrong results, the message says what was expected and seen. Unavailable: the device's
  // own error.
  absl::Status status;
  double seconds = 0;
  // Of the best of several trials; 0: not measured.
  double matmul_bf16 = 0;  // Floating-point operations a second,
  double matmul_fp32 = 0;
  double memory = 0;  // bytes read and written a second by a copy on the device,
  double upload = 0;  // bytes a second between pinned memory and the device.
  double download = 0;
};

// REQUIRES: the thread of `ops`, which has nothing under way. Gives back all that it takes.
HealthReport CheckHealth(Ops& ops, const HealthOptions& options);

}  // namespace perdure
