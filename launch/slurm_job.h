// One job of a chain, in the allocation that Slurm has given it: perdure job, which the batch
// script becomes. It looks whether the chain is to go on, has the next job queued, starts a
// launcher on every node by one srun step, waits, and tells the chain what became of it.
//
// It may die with its node: the nodes that are left go on without it (node_command.cc), and what it
// would have done at the end the next job does at its beginning.
#pragma once

#include <string>

namespace perdure {

struct SlurmJobOptions {
  std::string run_directory;  // Absolute.
  bool retry = false;         // As of perdure run.
};

// Its exit code is for Slurm, which is to call a job that did what it could good: 0 also where the
// run goes on in the next one. Errors have been printed.
int RunSlurmJob(const SlurmJobOptions& options);

}  // namespace perdure
