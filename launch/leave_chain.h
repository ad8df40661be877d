// The last that is done for a job of a chain: what became of it is told, and what follows from that
// for the jobs behind it. By the batch script, or by another node where that is lost.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct LeavingJob {
  std::string run_directory;
  RunConfig config;
  ChainJob job;  // As it was told when it began.
  std::function<void(const std::string& line)> say;
};

// Tells job.hook; that it fails is said.
void TellHook(const LeavingJob& leaving, const std::string& event, int64_t step,
              const std::string& why);

// What cannot be done is said.
void LeaveChain(LeavingJob leaving, const Chain& chain, ChainQueue& queue, int exit_code,
                int64_t step, const std::string& why);

}  // namespace perdure
