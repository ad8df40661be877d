// One job on this machine: an agent process for each of its nodes, which are process groups of
// ranks_per_node ranks. What a job is (its generations, who coordinates, what counts) is the
// agents' (launch/agent_command); here they are started, started again when they die, told to stop,
// and outlived: where they could not append END themselves it is done for them.
#pragma once

#include <cstdint>
#include <string>

#include "launch/local_job.h"

namespace perdure {

struct AgentsJobOptions {
  LocalJobOptions job;
  bool restart_agents = true;  // Nodes whose agent died come back.
};

// Where agents and ranks find the lock that says that they live (local_lock.h).
inline constexpr int kLocalLockFd = 4;

// Runs the job to its end and returns its exit code; errors have been printed.
int RunAgentsJob(const AgentsJobOptions& options);

}  // namespace perdure
