// A SLURM cluster of its own for a test: slurmctld and a slurmd for each of a few nodes, all of
// them on this host, in a directory and on ports of their own, as whatever user runs the test. So
// several tests have clusters at one time, and none sees the machine's own.
//
// What one host cannot show: all nodes have its name (a task reads its node in SLURMD_NODENAME),
// its file systems, processes and network. Accounting is off, because it needs a database: no
// sacct, no QoS. Nodes are n1, n2, ...; GPUs are character devices that nobody uses as such.
//
// Ports are bound on loopback, and with auth/none whoever reaches them may submit as anybody. Where
// the machine has other users and the test is root's, ask for munge.
//
// Lives under a Warden, so nothing outlives the object, nor a test that crashes. One thread at a
// time, and the thread that started it lives longer.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/cluster/cluster_processes.h"
#include "tests/cluster/slurm_conf.h"
#include "tests/cluster/warden.h"
#include "tests/launch/command_result.h"

namespace perdure {

class SlurmCluster {
 public:
  using JobId = int64_t;

  // Why there can be no cluster on this machine; empty: there can. For GTEST_SKIP.
  static std::string WhyNot();
  // Ready when it returns: every node idle. Unavailable with the daemons' last words otherwise.
  static absl::StatusOr<std::unique_ptr<SlurmCluster>> Start(SlurmClusterOptions options = {});
  ~SlurmCluster();  // Stop.
  SlurmCluster(const SlurmCluster&) = delete;
  SlurmCluster& operator=(const SlurmCluster&) = delete;
  // Ends all processes of the cluster and its jobs, and removes its directory.
  absl::Status Stop();

  const std::string& directory() const { return directory_; }
  // Where commands run that name no other place: jobs' own output ends there.
  std::string work() const { return directory_ + "/work"; }
  std::string conf() const { return directory_ + "/slurm.conf"; }
  // Of whoever speaks to the cluster: ours, without what an outer SLURM has left in it, and with
  // SLURM_CONF.
  std::vector<std::string> Environment() const;
  std::vector<std::string> nodes() const;  // All of them, alive or not.
  pid_t warden() const { return warden_->pid(); }

  // ---- Commands of SLURM, and others ----

  struct RunOptions {
    std::string input;                     // Standard input.
    std::vector<std::string> environment;  // "NAME=value", beside or in place of Environment().
    std::string directory;                 // Empty: work().
    std::optional<uid_t> user;             // As whom; only root may ask.
    absl::Duration timeout = absl::Minutes(1);
  };
  // argv[0] is searched for. Who is not done in time is killed with what it has started; the code
  // is then 137.
  CommandResult Run(const std::vector<std::string>& argv, const RunOptions& options) const;
  CommandResult Run(const std::vector<std::string>& argv) const { return Run(argv, {}); }
  // sbatch with these options and the text of a script. InvalidArgument in sbatch's words.
  absl::StatusOr<JobId> Submit(const std::vector<std::string>& options, const std::string& script,
                               const RunOptions& run) const;
  absl::StatusOr<JobId> Submit(const std::vector<std::string>& options,
                               const std::string& script) const {
    return Submit(options, script, {});
  }

  // ---- What it says ----

  // Asks every 50 ms until it is true. False: `timeout` has passed.
  static bool Await(const std::function<bool()>& done, absl::Duration timeout = absl::Minutes(1));

  // "RUNNING"; "" when it does not know the job, or does not answer.
  std::string JobState(JobId job) const;
  // A value of `scontrol show job`: "NodeList", "BatchHost", "Restarts". "" where there is none.
  std::string JobField(JobId job, const std::string& name) const;
  std::string NodeState(const std::string& node) const;  // "idle", "down*", as sinfo has it.
  // Why a wait failed is said with what the scheduler knows: `absl::Status` with DeadlineExceeded.
  absl::Status AwaitJobState(JobId job, const std::vector<std::string>& states,
                             absl::Duration timeout = absl::Minutes(1)) const;
  absl::Status AwaitNodeState(const std::string& node, const std::vector<std::string>& states,
                              absl::Duration timeout = absl::Minutes(1)) const;
  // Ends what is there, and waits until all nodes that answer are idle.
  absl::Status CancelAll() const;
  // What it has written so far, wherever sbatch was told to send it.
  std::string Output(JobId job) const;
  // The mails that the scheduler wanted to send: "-s SUBJECT USER", one a line.
  std::string Mails() const;
  std::string Logs() const;  // The last words of each daemon.

  // ---- What happens to it ----
  // Each is as sudden as it can be: it is done when it returns, and the scheduler knows nothing.

  // Its slurmd, and whatever of jobs runs on it; the scheduler sees it slurmd_timeout later.
  absl::Status KillNode(const std::string& node);
  // Only its slurmd, which no longer answers; tasks go on.
  absl::Status FreezeNode(const std::string& node) { return SignalSlurmd(node, SIGSTOP); }
  absl::Status ThawNode(const std::string& node) { return SignalSlurmd(node, SIGCONT); }
  // A slurmd anew. It is idle again when the scheduler has heard of it.
  absl::Status StartNode(const std::string& node);
  // Killed and found to be at once. With its slurmd alive (DownNode) a batch host would report how
  // its script ended, and the job would end with it.
  absl::Status LoseNode(const std::string& node);
  // What it has not saved is lost, and it saves every five seconds: a job that has started since is
  // started once more, beside the one that runs. AwaitSaved first, or StopController.
  absl::Status KillController();
  absl::Status AwaitSaved(JobId job) const;
  absl::Status StopController();   // It saves its state.
  absl::Status StartController();  // Answers when it returns.

  // What an administrator does. Under DownNode slurmd lives, and is told to kill what runs there.
  absl::Status DownNode(const std::string& node) const { return SetNode(node, "DOWN"); }
  absl::Status DrainNode(const std::string& node) const { return SetNode(node, "DRAIN"); }
  absl::Status ResumeNode(const std::string& node) const { return SetNode(node, "RESUME"); }
  absl::Status Requeue(JobId job) const;
  absl::Status SetTimeLimit(JobId job, const std::string& limit) const;
  // A job of `partition` on so many nodes that does nothing until it is cancelled.
  absl::StatusOr<JobId> Preempt(const std::string& partition, int nodes) const;

  // The node that runs the job's script, or did when it was lost.
  std::string BatchHost(JobId job) const { return JobField(job, "BatchHost"); }
  // Everything that runs on the node now: its slurmd, steps and tasks.
  FoundProcesses ProcessesOf(const std::string& node) const;

 private:
  explicit SlurmCluster(SlurmClusterOptions options) : options_(std::move(options)) {}
  absl::Status Begin();
  absl::Status TakePorts();
  absl::Status WriteFiles() const;
  absl::Status StartMunge();
  absl::Status StartDaemon(const std::string& name, const std::vector<std::string>& argv);
  FoundProcesses Ours(pid_t pid) const;  // That process, if it is one of the cluster's.
  absl::Status SignalSlurmd(const std::string& node, int signal);
  absl::Status SetNode(const std::string& node, const std::string& state) const;
  absl::Status Scontrol(const std::vector<std::string>& words) const;

  const SlurmClusterOptions options_;
  std::string directory_;
  int port_ = 0;        // The controller's; those behind it are the nodes'.
  int port_lock_ = -1;  // A name that is ours while it is open: nobody else takes these ports.
  std::unique_ptr<Warden> warden_;
  std::map<std::string, pid_t> daemons_;  // "slurmctld", "munged", "n1".
};

}  // namespace perdure
