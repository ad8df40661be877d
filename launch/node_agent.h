// The agent of one node of a job, with all that it hosts: the node's rank processes, its snapshots,
// and, while it coordinates, the run's checkpoints and what people read of the job.
//
// One process per node; `perdure run` starts them on this machine, a batch system on many.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/ids.h"

namespace perdure {

struct NodeAgentOptions {
  std::string run_directory;   // A run; its run.toml is the job's configuration.
  std::string data_directory;  // Absolute.
  uint64_t job = 0;            // JobStart.
  NodeId node = 0;
  NodeId nodes = 1;  // Of the job.
  int64_t ranks_per_node = 1;
  int64_t cores = 0;                    // That its ranks share; 0: all of this machine.
  uint32_t domain = 0;                  // Of failures.
  std::string interface = "127.0.0.1";  // Where other agents reach this one.
  int64_t until_step = -1;              // Negative: to the end.
  // When the job's time is over, by the time of day; it leaves before. Infinite: never.
  absl::Time ends_at = absl::InfiniteFuture();
  bool slurm = false;  // A Slurm job, whose end the scheduler is asked for now and then.
  // Of the job's nodes, by number: by them the book of the run knows what was seen of each. Empty:
  // it is not told.
  std::vector<std::string> names;
  bool stops = false;  // As if SIGTERM had come.
  bool quiet = false;  // No progress lines.
  bool retry = false;  // Attempts to load a checkpoint that failed before do not count.
};

// Lives until the job ends, and returns its exit code; errors have been printed. SIGTERM: the job
// is to stop after a step, with a checkpoint. SIGUSR1: the end of its time is near, or has moved.
// SIGINT is for whoever started us.
int RunNodeAgent(const NodeAgentOptions& options);

}  // namespace perdure
