// Whether a site takes the jobs of a chain at all: what the partition, its QoS, the job's QoS and
// the user's account allow. Slurm itself queues for ever what it never starts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launch/slurm/scheduler.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct SiteCheck {
  RunConfig config;
  std::vector<std::string> options;                  // Of sbatch, from the command line.
  std::string user;                                  // A name; empty: this process's.
  std::function<void(const std::string& line)> say;  // What could not be looked at, and why.
};

// InvalidArgument names the object, its value, what the site allows, and what to set. Limits of
// accounting count where the site enforces them; where nobody can ask for them nothing is said of
// them. Other errors: the scheduler's.
absl::Status CheckSite(Scheduler& scheduler, const SiteCheck& check);

}  // namespace perdure
