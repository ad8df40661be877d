// perdure run in an allocation of several nodes that a person has got from Slurm (salloc, or a
// batch script of one's own): one job on all of its nodes, as one of a chain is, but that nothing
// is queued behind it. It leaves before the allocation's time is over.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "launch/agents_job.h"
#include "launch/slurm/allocation.h"

namespace perdure {

// The allocation that perdure run is to use; nothing: this machine. `of_one_machine`: somebody says
// so (--nodes). InvalidArgument: Slurm's variables make no sense, or it runs once for each task of
// a step. What is decided is said where there was a choice.
absl::StatusOr<std::optional<Allocation>> AllocationToUse(const EnvironmentLookup& lookup,
                                                          bool of_one_machine);

// Runs the job to its end and returns its exit code; errors have been printed. Of `options`, nodes
// and restart_agents do not count.
int RunAllocationJob(const JobOptions& options, const Allocation& allocation);

}  // namespace perdure
