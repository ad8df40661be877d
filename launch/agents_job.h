// One job on this machine: an agent process for each of its nodes, which are process groups of
// ranks_per_node ranks. What a job is (its generations, who coordinates, what counts) is the
// agents' (launch/agent_command); here they are started, started again when they die, told to stop,
// and outlived: where they could not append END themselves it is done for them.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/train/run_config.h"

namespace perdure {

struct JobOptions {
  RunConfig config;  // Validated; layout as asked for ("auto" not yet resolved).
  std::string run_directory;
  std::string data_directory;  // Absolute.
  int64_t nodes = 1;
  int64_t ranks_per_node = 1;
  int64_t until_step = -1;     // Negative: to the end.
  bool quiet = false;          // No progress lines.
  bool retry = false;          // Attempts to load a checkpoint that failed before do not count.
  bool restart_agents = true;  // False: a node whose agent died stays away.
};

// Where agents and ranks find the lock that says that they live (local_lock.h).
inline constexpr int kLocalLockFd = 4;

// Runs the job to its end and returns its exit code; errors have been printed.
int RunAgentsJob(const JobOptions& options);

}  // namespace perdure
