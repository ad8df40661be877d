// What a cluster of a test is like, and the configuration that says so to SLURM.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

// Times are in SLURM's words: minutes, or HH:MM:SS.
struct SlurmPartition {
  std::string name = "main";
  std::string nodes = "ALL";
  std::string max_time = "UNLIMITED";
  std::string default_time;   // Of a job that names no limit; empty: max_time.
  int max_nodes = 0;          // Of a job; 0: no limit.
  int priority_tier = 1;      // Whose is higher preempts, where the other's preempt_mode allows it.
  std::string preempt_mode;   // What happens to its jobs: OFF, CANCEL, REQUEUE; empty: OFF.
  absl::Duration grace_time;  // Between notice and end of a job that is preempted.
  bool exclusive = true;      // A job has whole nodes.
};

struct SlurmClusterOptions {
  int nodes = 4;
  int cpus_per_node = 4;  // May exceed the machine's.
  int gpus_per_node = 0;  // At most kSlurmGpusMax.
  // The first is the default.
  std::vector<SlurmPartition> partitions = {SlurmPartition()};
  absl::Duration kill_wait = absl::Seconds(5);        // Between SIGTERM and SIGKILL.
  absl::Duration slurmd_timeout = absl::Seconds(15);  // A silent node is down after that, or twice.
  absl::Duration cred_expire = absl::Seconds(5);  // At least 5 s. A requeued job waits 1 s more.
  bool job_requeue = true;                        // What a job may do that says nothing of it.
  int over_time_limit_minutes = 0;
  std::string priority_type = "priority/basic";
  bool munge = false;              // A munged of its own, too.
  std::vector<std::string> lines;  // More of slurm.conf. What stands twice counts as said last.
};

inline constexpr int kSlurmGpusMax = 7;

// n1, n2, ...
std::vector<std::string> SlurmNodes(const SlurmClusterOptions& options);

// slurm.conf of a cluster that lives in `directory`, its controller listening on `port` of loopback
// and its nodes on those behind it.
std::string SlurmConf(const SlurmClusterOptions& options, const std::string& directory, int port);
// gres.conf: GPUs are character devices, because SLURM takes nothing else for one that CUDA sees.
std::string GresConf(const SlurmClusterOptions& options);

}  // namespace perdure
