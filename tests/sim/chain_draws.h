// What chance gives a run of months: how long steps take, jobs wait and saves last, what fails and
// when. Each number follows from (seed, what it is for, its index), so two ways of running the same
// run meet the same steps, waits and failures.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace perdure::sim {

// All that is assumed of the world; chain_main.cc says in --help where each comes from.
struct ChainAssumptions {
  // Failures.
  double gpu_hours_between = 50'700;
  double device_share = 0.473, node_share = 0.293, corruption_share = 0.014;  // The rest: programs.
  double unseen_share = 0.5;  // Of device errors: the scheduler gives the node to the next job.
  double strike_hours = 3;  // A bad node that is used again fails again after so long, on average.
  double repair_hours = 24;
  double preempted_share = 0.02, crashed_share = 0.005;  // Of jobs: taken away; dies as a whole.
  double kill_wait = 60;                                 // Seconds between SIGTERM and SIGKILL.

  // The scheduler.
  int partition_nodes = 364;
  double wait_hours_min = 1, wait_hours_max = 30;  // Evenly by the logarithm.
  bool age_counts = true;      // While a job waits for the one before it; else it begins then.
  double whole_share = 0.7;    // Of jobs that ask for a range: get the most of it.
  double requeue_delay = 121;  // Seconds until a requeued job is eligible.
  double dispatch = 5;         // Seconds from eligible to begun at least.

  // Training. Seconds.
  double step = 4.51, extension_step = 38.07;  // Median, whole layout.
  double jitter = 0.03;                        // Of each step, up to, either way.
  double launch_min = 30, launch_max = 90;     // From the job's begin to a first process of ours.
  double slow_launch_share = 0.02, slow_launch_min = 600, slow_launch_max = 900;
  double start_up = 180;  // From there to the first step.

  // Saves.
  double state_gb = 93.9, write_gb_per_second = 57;
  double commit = 1;       // Seconds besides writing.
  double save_spread = 2;  // Takes up to so much longer: 1 to 3 times.
  double slow_save_share = 0.02, slow_save_factor = 4;
  double freeze = 1;  // Seconds that training stands for one.

  // Recovery inside a job. Seconds.
  double detect_rank = 0.1, detect_node = 1.8, reform = 0.45, load = 2;
  double new_process = 20, kept_process = 3;
  double stop = 3;  // At most, from the last save until the job is gone.

  // The script.
  double script_timer_minutes = 1190, script_start_up = 180;
  int64_t script_save_steps = 5000, script_save_steps_later = 250;
  double script_detect_rank = 10, script_detect_node = 300;
  double script_convert_minutes = 48;
  double person_from = 8, person_until = 20, person_every_minutes = 30;
};

enum class ChainFailure {
  kDevice,      // A GPU falls off the bus or has a double-bit error.
  kNode,        // Gone: host, network.
  kCorruption,  // A device computes wrongly, without a word.
  kProgram,     // A rank crashes on a good node.
};

struct DrawnFailure {
  double gpu_hours = 0;  // That jobs have held since the one before.
  ChainFailure kind = ChainFailure::kProgram;
  double node = 0;  // Which of the job's, as a share of them.
  bool unseen = false;
};

class ChainDraws {
 public:
  ChainDraws(const ChainAssumptions& assumed, uint64_t seed);

  // On the phase's whole layout.
  absl::Duration Step(int64_t step, bool extension) const;
  DrawnFailure Failure(int64_t index) const;
  // Of the index-th job that is submitted, or requeued.
  absl::Duration Wait(int64_t index) const;
  absl::Duration Launch(int64_t index) const;
  // Until it is taken away, or dies as a whole; infinite: neither.
  absl::Duration Preempted(int64_t index, absl::Duration limit) const;
  absl::Duration Crashed(int64_t index, absl::Duration limit) const;
  // Writing the state, once (the script) or with reading it back.
  absl::Duration Save(int64_t index, bool read_back) const;
  absl::Duration Stop(int64_t index) const;
  absl::Duration Strike(int64_t index) const;
  // For whoever places jobs on nodes.
  uint64_t Bits(int64_t index) const;
  // Evenly in (0, 1): how much of a range of nodes is free.
  double Share(int64_t index) const;

 private:
  enum class What : uint64_t;
  double Uniform(What what, int64_t index) const;
  absl::Duration Exponential(What what, int64_t index, double mean_hours) const;

  const ChainAssumptions assumed_;
  const uint64_t key_;  // Of all draws: far apart for seeds that are neighbours.
};

}  // namespace perdure::sim
