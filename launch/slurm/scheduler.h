// Slurm, asked and told through its commands: the library's soname changes with every release, and
// what users may do they may do by command. Each call starts one or two processes and blocks until
// they end or their time is over, so it is asked seldom and not in a thread that others wait for.
//
// Errors are told apart by what a caller does next:
//   Unavailable        the controller does not answer, or in time: try again later
//   NotFound           no such job (any more) or partition
//   PermissionDenied   somebody else may
//   InvalidArgument    Slurm refused it, in its own words: change what was asked for
//   FailedPrecondition the job is not, or no longer, in a state for it; no Slurm on this machine
//   Unimplemented      this site has no accounting database
//   Internal           an answer that cannot be read
// Messages name the command and what it printed.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/slurm/command.h"
#include "launch/slurm/scheduler_view.h"

namespace perdure {

// A job to queue: `script` (its text, beginning with "#!"), or `script_path`, or --wrap in options.
struct Submission {
  std::vector<std::string> options;  // sbatch's, before the script; as they are.
  std::string script, script_path;
  std::vector<std::string> arguments;  // The script's, if it is given by its path.
};

// A job's id as commands take it: "123", or "123_4" for an element of an array.
std::string JobText(int64_t id);

class Scheduler {
 public:
  struct Options {
    absl::Duration timeout = absl::Seconds(90);  // Of one command. Slurm's own patience ends at 60.
    // Between the fields of squeue and sinfo, because a job's name may hold anything. Empty: one
    // that nobody can guess, for each Scheduler.
    std::string separator;
    // Whose jobs are meant by name; empty: this process's effective user, by number.
    std::string user;
    // Whether this process runs in a job: what Slurm's variables say of that job is then kept from
    // those that it submits.
    bool inside_job = false;
  };
  // `runner` is RunCommand but in tests.
  Scheduler(CommandRunner runner, Options options);
  explicit Scheduler(CommandRunner runner);

  // ---- jobs

  // All that is known of one job. An array's own id means the elements that are pending as one, and
  // later its last element, which takes that id.
  absl::StatusOr<JobView> Job(const std::string& job);
  // The user's jobs of that name which the scheduler still knows, the ended ones too, by id.
  absl::StatusOr<std::vector<JobView>> JobsNamed(const std::string& name);
  // Its id. Variables SBATCH_* hold for it as for any sbatch, and it gets this process's
  // environment. Unavailable after a time limit may mean that it was queued all the same: look for
  // it by name before trying again.
  absl::StatusOr<int64_t> Submit(const Submission& submission);

  absl::Status Hold(const std::string& job);     // Pending: keeps its age in the queue.
  absl::Status Release(const std::string& job);  // What its owner held.
  // Pending or running. OK also if it has ended, or never was.
  absl::Status Cancel(const std::string& job);
  // Those of the user's jobs of that name that are pending. None is OK.
  absl::Status CancelPendingNamed(const std::string& name);
  absl::Status Requeue(const std::string& job);
  // To all processes of its steps, the batch script not among them: "TERM". OK also if it has
  // ended.
  absl::Status Signal(const std::string& job, const std::string& signal);

  // Of a pending job.
  absl::Status SetExcludedNodes(const std::string& job, std::span<const std::string> nodes);
  // For jobs of one task a node. Slurm 22.05 then gives `nodes_min` nodes, also where more are
  // free: a range is used in full by jobs alone that were submitted with it (--nodes=2-8) and
  // without a number of tasks (--ntasks, --ntasks-per-node=1).
  absl::Status SetNumNodes(const std::string& job, int nodes_min, int nodes_max);
  absl::Status SetTimeLimit(const std::string& job, absl::Duration limit);  // In whole minutes.
  absl::Status SetDependency(const std::string& job, const std::string& dependency);  // "": none.

  // ---- the site

  absl::StatusOr<std::vector<PartitionView>> Partitions();
  absl::StatusOr<PartitionView> Partition(const std::string& name);
  absl::StatusOr<std::vector<QosView>> Qos();
  // What the accounts of `user`, a name, give: one or more for each account. None: not in the
  // database.
  absl::StatusOr<std::vector<AssociationView>> Associations(const std::string& user);
  absl::StatusOr<SchedulerConfig> Config();
  absl::StatusOr<std::vector<NodeView>> Nodes();
  // Jobs of all users (those that this user may see) that ran or were pending since then. An empty
  // `partition`: of all.
  absl::StatusOr<std::vector<PastJob>> History(absl::Time since, const std::string& partition);

 private:
  absl::StatusOr<InvocationResult> Run(Invocation command);
  // The output of a command that ended well.
  absl::StatusOr<std::string> Ask(std::vector<std::string> argv);
  absl::Status Tell(std::vector<std::string> argv);
  absl::StatusOr<std::string> NameOf(const std::string& job);
  absl::Status Update(const std::string& job, const std::vector<std::string>& changes);

  const CommandRunner runner_;
  const Options options_;
};

}  // namespace perdure
