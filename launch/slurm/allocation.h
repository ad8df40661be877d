// What Slurm's environment tells a process about the allocation it runs in, read once, as it
// starts. It is never true later than that: nodes that are removed from a job stay in its
// environment, so who wants to know what is left asks the Scheduler.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perdure {

// The value of an environment variable; nothing if there is none.
using EnvironmentLookup = std::function<std::optional<std::string>(std::string_view name)>;
// The process's own environment.
EnvironmentLookup ProcessEnvironment();

struct Allocation {
  int64_t job_id = 0;  // SLURM_JOB_ID.
  // How often this job id was requeued; SLURM_RESTART_COUNT, 0 where it is not set. It counts
  // within one job, not over a chain.
  int restarts = 0;
  // SLURM_ARRAY_JOB_ID, SLURM_ARRAY_TASK_ID of an array's element.
  std::optional<int64_t> array_job_id, array_task_id;
  std::string job_name, partition, account, qos, cluster;  // Empty: not said.
  std::vector<std::string> nodes;                          // SLURM_JOB_NODELIST, in its order.
  std::optional<std::string> node_name;                    // SLURMD_NODENAME: this node.
  // Of a task that srun started: of its step, of this node among the step's nodes, of this task
  // in the step and on its node. The batch script has SLURM_NODEID 0, SLURM_PROCID 0 and no step.
  std::optional<int64_t> step_id;
  std::optional<int> node_index, task_index, local_task_index;
  std::optional<int> cpus_on_node;  // SLURM_CPUS_ON_NODE.
  std::string submit_directory;     // SLURM_SUBMIT_DIR.
  // From Slurm 23.02 on; before, Scheduler::Job knows them.
  std::optional<absl::Time> start, end;
};

// Nothing if SLURM_JOB_ID is not set: not in a job. InvalidArgument names the variable and its
// value, or that it is missing.
absl::StatusOr<std::optional<Allocation>> ReadAllocation(const EnvironmentLookup& lookup);

}  // namespace perdure
