// The chain of a run: its jobs one after the other, each queued before the one before it has begun.
// RUN/chain has what all of them are made of (chain.json, run.toml, job.sh), a file for each start
// of a job, and why the chain stopped, if it did. Whoever owns the run may change it: the command
// that submits, the job that runs; never two jobs at a time, but where that would do no harm.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/train/run_config.h"

namespace perdure {

// One start of one job, as it told itself.
struct ChainJob {
  int64_t job = 0;
  int restarts = 0;
  std::vector<std::string> nodes;
  absl::Time began;
  absl::Time time_over = absl::InfiniteFuture();
  int64_t first_step = 0;          // Where it began: the step of the newest checkpoint.
  std::optional<absl::Time> left;  // Nothing: it runs, or could not say.
  int exit_code = 0;               // Once it has left:
  int64_t last_step = 0;
  std::string why;
};

// Why a chain was stopped, where somebody has asked for it.
inline constexpr char kStopCommand[] = "perdure stop", kStopTrigger[] = "triggers/stop";

class Chain {
 public:
  // What all jobs share.
  struct Common {
    std::string job_name;              // The same for all, and of no other run.
    std::string data_directory;        // Absolute.
    std::vector<std::string> options;  // Of sbatch, from the command line of perdure submit.
  };
  struct Stop {
    std::string why;
    int64_t job = 0;  // Whose doing it was.
    absl::Time time;
  };

  // Creates or replaces chain.json.
  static absl::StatusOr<Chain> Create(const std::string& run_directory, const Common& common);
  // NotFound: the run has none.
  static absl::StatusOr<Chain> Open(const std::string& run_directory);

  const Common& common() const { return common_; }
  std::string config_path() const { return directory_ + "/run.toml"; }
  std::string script_path() const { return directory_ + "/job.sh"; }

  // By time; what cannot be read is left out.
  std::vector<ChainJob> Jobs() const;
  // Over what it told before.
  absl::Status Tell(const ChainJob& job) const;

  // On how many nodes a job was asked to be, as NodesFor has it: while it waits Slurm shows what it
  // expects to give. Empty: not known.
  absl::Status TellAsked(int64_t job, const std::string& nodes) const;
  std::string Asked(int64_t job) const;

  // No job begins any more, until it is let go on. The first reason counts.
  absl::Status StopFor(const Stop& stop) const;
  std::optional<Stop> stopped() const;
  absl::Status GoOn() const;  // Also where it was not stopped.

 private:
  Chain(std::string directory, Common common)
      : directory_(std::move(directory)), common_(std::move(common)) {}

  std::string directory_;
  Common common_;
};

// "perdure-<run>-<digest of the directory>": one word, of which Slurm lets one job run at a time.
std::string JobNameOf(const std::string& run_name, const std::string& run_directory);

// What the job that goes on from `step` asks for: [job] nodes or its phase's, spares besides, as
// sbatch --nodes wants it.
std::string NodesFor(const RunConfig& config, int64_t step);
// Behind `step` the first step that wants other nodes; -1: none does.
int64_t OtherNodesFrom(const RunConfig& config, int64_t step);

// What becomes of the chain behind a job that left with that exit code.
enum class NextJob {
  kNone,     // The run is complete.
  kStopped,  // None, and a person must look.
  kQueued,   // Unless somebody stopped the chain meanwhile.
};
NextJob NextJobAfter(int exit_code);

// Whether the last `jobs_max` starts of jobs all began at `step`, where the run still is: whatever
// ended them, one more would not get on either.
bool NoProgress(const std::vector<ChainJob>& jobs, int64_t step, int64_t jobs_max);

}  // namespace perdure
