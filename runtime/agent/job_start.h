// A job that its scheduler starts again keeps its id, but it is another job to the control plane:
// who has read END of the start before must not take it for his own. So what records and messages
// call job is the number of a start.
#pragma once

#include <cstdint>

namespace perdure {

inline constexpr int kRestartBits = 12;

// REQUIRES: job < 2^52, restart < 2^12.
constexpr uint64_t JobStart(uint64_t job, uint64_t restart) {
  return job << kRestartBits | restart;
}
constexpr uint64_t JobOf(uint64_t start) { return start >> kRestartBits; }
constexpr uint64_t RestartOf(uint64_t start) { return start & ((1 << kRestartBits) - 1); }

}  // namespace perdure
