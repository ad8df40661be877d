#include "tests/cluster/slurm_conf.h"

#include <fmt/format.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "runtime/base/check.h"

namespace perdure {
namespace {

std::string ShortHostName() {
  char name[HOST_NAME_MAX + 1] = {};
  PERDURE_CHECK(::gethostname(name, HOST_NAME_MAX) == 0);
  const std::string whole = name;
  return whole.substr(0, whole.find('.'));
}

std::string UserName() {
  const passwd* const user = ::getpwuid(::geteuid());
  PERDURE_CHECK(user != nullptr);
  return user->pw_name;
}

std::string PartitionLine(const SlurmPartition& partition, bool first) {
  std::string line = fmt::format(
      "PartitionName={} Nodes={} Default={} MaxTime={} PriorityTier={} OverSubscribe={} State=UP",
      partition.name, partition.nodes, first ? "YES" : "NO", partition.max_time,
      partition.priority_tier, partition.exclusive ? "EXCLUSIVE" : "NO");
  if (!partition.default_time.empty()) line += " DefaultTime=" + partition.default_time;
  if (partition.max_nodes > 0) line += fmt::format(" MaxNodes={}", partition.max_nodes);
  if (!partition.preempt_mode.empty()) line += " PreemptMode=" + partition.preempt_mode;
  if (partition.grace_time > absl::ZeroDuration())
    line += fmt::format(" GraceTime={}", absl::ToInt64Seconds(partition.grace_time));
  return line;
}

}  // namespace

std::vector<std::string> SlurmNodes(const SlurmClusterOptions& options) {
  std::vector<std::string> names;
  for (int node = 1; node <= options.nodes; ++node) names.push_back(fmt::format("n{}", node));
  return names;
}

std::string SlurmConf(const SlurmClusterOptions& options, const std::string& directory, int port) {
  // Below, SLURM takes its default of two minutes.
  PERDURE_CHECK(options.cred_expire >= absl::Seconds(5));
  const std::string user = UserName(), host = ShortHostName();
  const auto seconds = [](absl::Duration time) { return absl::ToInt64Seconds(time); };
  const std::string auth = options.munge ? "munge" : "none";
  std::vector<std::string> lines = {
      "ClusterName=perdure",
      fmt::format("SlurmctldHost={}(127.0.0.1)", host),
      fmt::format("SlurmctldPort={}", port),
      // Loopback alone.
      "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
      "SlurmUser=" + user,
      "SlurmdUser=" + user,
      "AuthType=auth/" + auth,
      "CredType=cred/" + auth,
      fmt::format("AuthInfo={}cred_expire={}",
                  options.munge ? fmt::format("socket={}/munge/socket,", directory) : "",
                  seconds(options.cred_expire)),
      // %n: daemons of several nodes share this file.
      fmt::format("StateSaveLocation={}/state", directory),
      fmt::format("SlurmdSpoolDir={}/spool/%n", directory),
      fmt::format("SlurmctldPidFile={}/slurmctld.pid", directory),
      fmt::format("SlurmdPidFile={}/slurmd-%n.pid", directory),
      fmt::format("SlurmctldLogFile={}/log/slurmctld.log", directory),
      fmt::format("SlurmdLogFile={}/log/%n.log", directory),
      fmt::format("MailProg={}/mail", directory),
      "MpiDefault=none",
      "SwitchType=switch/none",
      // Needs no control groups, so an ordinary user may.
      "ProctrackType=proctrack/linuxproc",
      "TaskPlugin=task/none",
      "JobAcctGatherType=jobacct_gather/none",
      "AccountingStorageType=accounting_storage/none",
      "JobCompType=jobcomp/filetxt",
      fmt::format("JobCompLoc={}/log/jobcomp.txt", directory),
      "SelectType=select/cons_tres",
      "SelectTypeParameters=CR_Core",
      "SlurmdParameters=config_overrides",
      "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
      "PriorityType=" + options.priority_type,
      "ReturnToService=1",
      "SlurmctldTimeout=30",
      fmt::format("SlurmdTimeout={}", seconds(options.slurmd_timeout)),
      fmt::format("KillWait={}", seconds(options.kill_wait)),
      fmt::format("JobRequeue={}", options.job_requeue ? 1 : 0),
      fmt::format("OverTimeLimit={}", options.over_time_limit_minutes),
      "MinJobAge=3600",
  };
  // What a partition says counts only where the cluster preempts at all.
  if (std::any_of(options.partitions.begin(), options.partitions.end(),
                  [](const SlurmPartition& p) { return !p.preempt_mode.empty(); }))
    lines.insert(lines.end(), {"PreemptType=preempt/partition_prio", "PreemptMode=CANCEL"});
  std::string gres;
  if (options.gpus_per_node > 0) {
    lines.push_back("GresTypes=gpu");
    gres = fmt::format(" Gres=gpu:{}", options.gpus_per_node);
  }
  lines.insert(lines.end(), options.lines.begin(), options.lines.end());
  lines.push_back(fmt::format(
      "NodeName=n[1-{}] NodeHostname={} NodeAddr=127.0.0.1 Port=[{}-{}] CPUs={} "
      "RealMemory=1000{} State=UNKNOWN",
      options.nodes, host, port + 1, port + options.nodes, options.cpus_per_node, gres));
  for (const SlurmPartition& partition : options.partitions) {
    const bool first = &partition == &options.partitions.front();
    SlurmPartition meant = partition;
    if (meant.preempt_mode.empty()) meant.preempt_mode = "OFF";
    lines.push_back(PartitionLine(meant, first));
  }
  return fmt::format("{}\n", fmt::join(lines, "\n"));
}

std::string GresConf(const SlurmClusterOptions& options) {
  static constexpr const char* kDevices[kSlurmGpusMax] = {"null",    "zero", "full", "random",
                                                          "urandom", "tty",  "ptmx"};
  PERDURE_CHECK(options.gpus_per_node <= kSlurmGpusMax);
  std::string text;
  for (int gpu = 0; gpu < options.gpus_per_node; ++gpu)
    text += fmt::format("Name=gpu File=/dev/{}\n", kDevices[gpu]);
  return text;
}

}  // namespace perdure
