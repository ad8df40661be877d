#include "tests/cluster/slurm_cluster.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <sstream>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/cluster/run_program.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Below the ports that the kernel deals out, so that no connection comes to have one of ours.
constexpr int kPortsFirst = 20000, kPortsPerCluster = 64, kPortBlocks = 190;

const std::string& SystemPath() {
  static const std::string path = [] {
    const char* const set = std::getenv("PATH");
    return std::string(set == nullptr ? "/usr/bin:/bin" : set) + ":/usr/sbin:/sbin";
  }();
  return path;
}

bool Installed(const std::string& program) {
  std::istringstream folders(SystemPath());
  for (std::string folder; std::getline(folders, folder, ':');)
    if (::access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  return false;
}

// A name in the kernel that is gone with the descriptor. -1: somebody has it.
int TakeName(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(name.begin(), name.end(), address.sun_path + 1);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0) return fd;
  ::close(fd);
  return -1;
}

bool PortIsFree(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;  // What is left of closed connections is in nobody's way.
  (void)::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool free = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return free;
}

// The last ten lines, without what every daemon complains of where PMIx is not installed.
std::string LastLines(const std::string& text) {
  std::istringstream stream(text);
  std::deque<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    if (line.find("pmix") != std::string::npos || line.find("error: MPI:") != std::string::npos)
      continue;
    lines.push_back(line);
    if (lines.size() > 10) lines.pop_front();
  }
  return fmt::format("{}", fmt::join(lines, "\n"));
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

std::string SlurmCluster::WhyNot() {
  for (const char* program : {"slurmctld", "slurmd", "sbatch"})
    if (!Installed(program))
      return "slurmctld and slurmd are not installed here: launch/install_packages.sh tests";
  return "";
}

absl::StatusOr<std::unique_ptr<SlurmCluster>> SlurmCluster::Start(SlurmClusterOptions options) {
  PERDURE_CHECK(options.nodes >= 1 && options.nodes < kPortsPerCluster);
  if (const std::string why = WhyNot(); !why.empty()) return Unavailable("{}", why);
  std::unique_ptr<SlurmCluster> cluster(new SlurmCluster(std::move(options)));
  RETURN_IF_ERROR(cluster->Begin());
  return cluster;
}

absl::Status SlurmCluster::Begin() {
  directory_ = (fs::path(testing::TempDir()) / "slurm-XXXXXX").string();
  if (::mkdtemp(directory_.data()) == nullptr) return ErrnoStatus(errno, "mkdtemp " + directory_);
  // Sockets of steps lie below it, and their names have 107 bytes at most.
  if (directory_.size() > 60)
    return InvalidArgument(
        "{} is too long for a cluster's sockets: set TEST_TMPDIR to a shorter "
        "path",
        directory_);
  RETURN_IF_ERROR(TakePorts());
  RETURN_IF_ERROR(WriteFiles());
  ASSIGN_OR_RETURN(warden_, Warden::Start(Environment(), "SLURM_CONF=" + conf(), directory_));
  if (options_.munge) RETURN_IF_ERROR(StartMunge());
  RETURN_IF_ERROR(StartController());
  for (const std::string& node : nodes()) RETURN_IF_ERROR(StartNode(node));
  for (const std::string& node : nodes()) RETURN_IF_ERROR(AwaitNodeState(node, {"idle"}));
  return absl::OkStatus();
}

SlurmCluster::~SlurmCluster() { (void)Stop(); }

absl::Status SlurmCluster::Stop() {
  absl::Status status;
  if (warden_ != nullptr) status = warden_->Stop();
  warden_.reset();
  daemons_.clear();
  if (port_lock_ >= 0) ::close(std::exchange(port_lock_, -1));
  std::error_code ignored;  // The warden has done it, if it was there.
  if (!directory_.empty()) fs::remove_all(directory_, ignored);
  return status;
}

absl::Status SlurmCluster::TakePorts() {
  for (int tried = 0; tried < kPortBlocks; ++tried) {
    // Each test process begins elsewhere, so few meet.
    const int block = (::getpid() * 7 + tried) % kPortBlocks;
    const int first = kPortsFirst + block * kPortsPerCluster;
    const int lock = TakeName(fmt::format("perdure-slurm-cluster-{}", first));
    if (lock < 0) continue;
    bool free = true;
    for (int port = first; free && port <= first + options_.nodes; ++port) free = PortIsFree(port);
    if (free) {
      port_ = first;
      port_lock_ = lock;
      return absl::OkStatus();
    }
    ::close(lock);
  }
  return ResourceExhausted("no {} ports in a row are free between {} and {}", options_.nodes + 1,
                           kPortsFirst, kPortsFirst + kPortBlocks * kPortsPerCluster);
}

absl::Status SlurmCluster::WriteFiles() const {
  // Jobs of other users come here, too.
  std::error_code error;
  for (const auto& [name, mode] : {std::pair{"", 0755},
                                   {"/state", 0700},
                                   {"/spool", 0755},
                                   {"/log", 0755},
                                   {"/munge", 0755},
                                   {"/work", 01777}}) {
    fs::create_directories(directory_ + name, error);
    if (::chmod((directory_ + name).c_str(), static_cast<mode_t>(mode)) != 0)
      return ErrnoStatus(errno, "chmod " + directory_ + name);
  }
  RETURN_IF_ERROR(ReplaceFileFast(conf(), SlurmConf(options_, directory_, port_)));
  RETURN_IF_ERROR(ReplaceFileFast(directory_ + "/gres.conf", GresConf(options_)));
  for (const char* readable : {"/slurm.conf", "/gres.conf"})
    (void)::chmod((directory_ + readable).c_str(), 0644);
  const std::string mail = directory_ + "/mail";
  RETURN_IF_ERROR(ReplaceFileFast(
      mail, fmt::format("#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{}/log/mails'\n", directory_)));
  if (::chmod(mail.c_str(), 0755) != 0) return ErrnoStatus(errno, "chmod " + mail);
  return absl::OkStatus();
}

absl::Status SlurmCluster::StartDaemon(const std::string& name,
                                       const std::vector<std::string>& argv) {
  ASSIGN_OR_RETURN(daemons_[name],
                   warden_->Run(argv, fmt::format("{}/log/{}.out", directory_, name)));
  return absl::OkStatus();
}

absl::Status SlurmCluster::StartMunge() {
  if (!Installed("munged") || !Installed("mungekey"))
    return Unavailable("munged is not installed here: launch/install_packages.sh tests");
  const std::string folder = directory_ + "/munge";
  if (const CommandResult made = Run({"mungekey", "-c", "-k", folder + "/key"});
      made.exit_code != 0)
    return Unavailable("mungekey: {}", made.errors);
  RETURN_IF_ERROR(
      StartDaemon("munged", {"munged", "--foreground", "--key-file=" + folder + "/key",
                             "--socket=" + folder + "/socket", "--pid-file=" + folder + "/pid",
                             "--log-file=" + folder + "/log", "--seed-file=" + folder + "/seed"}));
  if (!Await([&] { return Run({"munge", "-n", "-S", folder + "/socket"}).exit_code == 0; }))
    return Unavailable("munged does not answer:\n{}", Logs());
  return absl::OkStatus();
}

absl::Status SlurmCluster::StartController() {
  RETURN_IF_ERROR(StartDaemon("slurmctld", {"slurmctld", "-D"}));
  const auto up = [&] {
    return Run({"scontrol", "ping"}).output.find(" is UP") != std::string::npos;
  };
  if (!Await(up)) return Unavailable("slurmctld does not answer:\n{}", Logs());
  return absl::OkStatus();
}

absl::Status SlurmCluster::StopController() {
  const pid_t pid = daemons_["slurmctld"];
  SignalEach(Ours(pid), SIGTERM);
  if (!Await([&] { return Ours(pid).empty(); }))
    return Internal("slurmctld {} does not end on SIGTERM:\n{}", pid, Logs());
  return absl::OkStatus();
}

absl::Status SlurmCluster::KillController() {
  const pid_t pid = daemons_["slurmctld"];
  if (!KillAll([&] { return Ours(pid); })) return Internal("slurmctld {} survives SIGKILL", pid);
  return absl::OkStatus();
}

FoundProcesses SlurmCluster::Ours(pid_t pid) const {
  FoundProcesses found;
  for (const FoundProcess& process : Below(warden_->pid(), RunningProcesses()))
    if (process.pid == pid) found.insert(process);
  return found;
}

absl::Status SlurmCluster::StartNode(const std::string& node) {
  return StartDaemon(node, {"slurmd", "-D", "-N", node});
}

FoundProcesses SlurmCluster::ProcessesOf(const std::string& node) const {
  const auto slurmd = daemons_.find(node);
  PERDURE_CHECK(slurmd != daemons_.end());
  const FoundProcesses all = RunningProcesses(), ours = Below(warden_->pid(), all);
  std::map<pid_t, FoundProcess> by_pid;
  for (const FoundProcess& process : ours) by_pid[process.pid] = process;
  FoundProcesses found;
  const auto add = [&](const FoundProcess& process) {
    const FoundProcesses below = Below(process.pid, ours);
    found.insert(process);
    found.insert(below.begin(), below.end());
  };
  if (by_pid.contains(slurmd->second)) add(by_pid[slurmd->second]);
  for (const FoundProcess& process : ours) {
    if (!StartedWith(process.pid, "SLURMD_NODENAME=" + node)) continue;
    // What a task is started by is its step, which does not have the variable.
    FoundProcess top = process;
    while (by_pid.contains(top.parent)) top = by_pid[top.parent];
    add(top);
  }
  return found;
}

absl::Status SlurmCluster::KillNode(const std::string& node) {
  // All at one instant, as a machine dies: an srun that dies before its second process is found
  // dead by that, which has the step killed on all nodes. So all are stopped first, and children
  // killed before parents, because the kernel continues a group that is orphaned while it is
  // stopped.
  FoundProcesses stopped, found = ProcessesOf(node);
  while (!std::includes(stopped.begin(), stopped.end(), found.begin(), found.end())) {
    SignalEach(found, SIGSTOP);
    stopped.insert(found.begin(), found.end());
    found = ProcessesOf(node);
  }
  while (!found.empty()) {
    FoundProcesses childless;
    for (const FoundProcess& process : found)
      if (Below(process.pid, found).empty()) childless.insert(process);
    SignalEach(childless, SIGKILL);
    for (const FoundProcess& process : childless) found.erase(process);
  }
  if (!KillAll([&] { return ProcessesOf(node); }))
    return Internal("processes of node {} survive SIGKILL", node);
  return absl::OkStatus();
}

absl::Status SlurmCluster::LoseNode(const std::string& node) {
  RETURN_IF_ERROR(KillNode(node));
  return DownNode(node);
}

absl::Status SlurmCluster::AwaitSaved(JobId job) const {
  const fs::path state = directory_ + "/state/job_state";
  // Whatever is changed makes it save; what is older than the change is not enough.
  const fs::file_time_type before = fs::file_time_type::clock::now();
  RETURN_IF_ERROR(Scontrol({"update", fmt::format("JobId={}", job), "Comment=saved"}));
  std::error_code missing;
  if (!Await([&] { return fs::last_write_time(state, missing) > before && !missing; }))
    return DeadlineExceeded("slurmctld does not write {}:\n{}", state.string(), Logs());
  return absl::OkStatus();
}

absl::Status SlurmCluster::SignalSlurmd(const std::string& node, int signal) {
  const auto slurmd = daemons_.find(node);
  PERDURE_CHECK(slurmd != daemons_.end());
  const FoundProcesses found = Ours(slurmd->second);
  if (found.empty()) return NotFound("the slurmd of node {} does not run: StartNode", node);
  SignalEach(found, signal);
  return absl::OkStatus();
}

std::vector<std::string> SlurmCluster::Environment() const {
  std::vector<std::string> entries;
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string entry = *at;
    const auto begins = [&](const char* start) { return entry.starts_with(start); };
    // An outer job's, its commands' defaults, and ours.
    if (begins("SLURM") || begins("SBATCH_") || begins("SRUN_") || begins("SALLOC_") ||
        begins("SQUEUE_") || begins("SINFO_") || begins("SCANCEL_") || begins("PATH=") ||
        begins("LC_ALL="))
      continue;
    entries.push_back(entry);
  }
  entries.push_back("PATH=" + SystemPath());
  entries.push_back("LC_ALL=C");
  entries.push_back("SLURM_CONF=" + conf());
  return entries;
}

std::vector<std::string> SlurmCluster::nodes() const { return SlurmNodes(options_); }

CommandResult SlurmCluster::Run(const std::vector<std::string>& argv,
                                const RunOptions& options) const {
  std::vector<std::string> environment = Environment();
  for (const std::string& entry : options.environment) {
    const std::string name = entry.substr(0, entry.find('=') + 1);
    std::erase_if(environment, [&](const std::string& e) { return e.starts_with(name); });
    environment.push_back(entry);
  }
  return RunProgram(argv, {.environment = environment,
                           .directory = options.directory.empty() ? work() : options.directory,
                           .input = options.input,
                           .user = options.user,
                           .timeout = options.timeout});
}

absl::StatusOr<SlurmCluster::JobId> SlurmCluster::Submit(const std::vector<std::string>& options,
                                                         const std::string& script,
                                                         const RunOptions& run) const {
  std::vector<std::string> argv = {"sbatch", "--parsable"};
  argv.insert(argv.end(), options.begin(), options.end());
  RunOptions with_script = run;
  with_script.input = script.starts_with("#!") ? script : "#!/bin/bash\n" + script;
  const CommandResult result = Run(argv, with_script);
  if (result.exit_code != 0)
    return InvalidArgument("sbatch: exit code {}: {}", result.exit_code, result.errors);
  // "JOB" or "JOB;CLUSTER".
  const JobId job = std::atoll(result.output.c_str());
  if (job <= 0) return Internal("sbatch --parsable printed '{}'", result.output);
  return job;
}

std::string SlurmCluster::JobState(JobId job) const {
  return FirstLine(
      Run({"squeue", "-h", "-t", "all", "-j", std::to_string(job), "-o", "%T"}).output);
}

std::string SlurmCluster::JobField(JobId job, const std::string& name) const {
  const CommandResult shown = Run({"scontrol", "show", "job", "-o", std::to_string(job)});
  std::istringstream words(shown.output);
  for (std::string word; words >> word;)
    if (word.starts_with(name + "=")) return word.substr(name.size() + 1);
  return "";
}

std::string SlurmCluster::NodeState(const std::string& node) const {
  return FirstLine(Run({"sinfo", "-h", "-N", "-n", node, "-o", "%T"}).output);
}

bool SlurmCluster::Await(const std::function<bool()>& done, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!done()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(50));
  }
  return true;
}

absl::Status SlurmCluster::AwaitJobState(JobId job, const std::vector<std::string>& states,
                                         absl::Duration timeout) const {
  static const std::set<std::string> kEnds = {
      "BOOT_FAIL", "CANCELLED", "COMPLETED",     "DEADLINE",     "FAILED",
      "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "SPECIAL_EXIT", "TIMEOUT"};
  std::string state;
  bool reached = false;
  (void)Await(
      [&] {
        state = JobState(job);
        reached = std::find(states.begin(), states.end(), state) != states.end();
        return reached || kEnds.contains(state);
      },
      timeout);
  if (reached) return absl::OkStatus();
  return DeadlineExceeded("job {} is {}, not {}, within {}\n{}\nIts output:\n{}\n{}", job, state,
                          fmt::join(states, " or "), absl::FormatDuration(timeout),
                          Run({"scontrol", "show", "job", std::to_string(job)}).output, Output(job),
                          Logs());
}

absl::Status SlurmCluster::AwaitNodeState(const std::string& node,
                                          const std::vector<std::string>& states,
                                          absl::Duration timeout) const {
  std::string state;
  const auto reached = [&] {
    state = NodeState(node);
    return std::find(states.begin(), states.end(), state) != states.end();
  };
  if (Await(reached, timeout)) return absl::OkStatus();
  return DeadlineExceeded("node {} is {}, not {}, after {}\n{}", node, state,
                          fmt::join(states, " or "), absl::FormatDuration(timeout), Logs());
}

absl::Status SlurmCluster::CancelAll() const {
  const auto none = [&] {
    std::vector<std::string> cancel = {"scancel"};
    std::istringstream jobs(Run({"squeue", "-h", "-o", "%A"}).output);
    for (std::string job; jobs >> job;) cancel.push_back(job);
    if (cancel.size() == 1) return true;
    (void)Run(cancel);
    // SLURM would wait five seconds for what does not heed SIGTERM.
    FoundProcesses tasks;
    for (const FoundProcess& process : Below(warden_->pid(), RunningProcesses()))
      for (size_t job = 1; job < cancel.size(); ++job)
        if (StartedWith(process.pid, "SLURM_JOB_ID=" + cancel[job])) tasks.insert(process);
    SignalEach(tasks, SIGKILL);
    return false;
  };
  if (!Await(none)) return DeadlineExceeded("jobs do not end:\n{}", Run({"squeue"}).output);
  return absl::OkStatus();
}

std::string SlurmCluster::Output(JobId job) const {
  return ReadFile(JobField(job, "StdOut")).value_or("");
}

std::string SlurmCluster::Mails() const { return ReadFile(directory_ + "/log/mails").value_or(""); }

std::string SlurmCluster::Logs() const {
  std::set<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_ + "/log", error))
    if (entry.path().extension() == ".log") files.insert(entry.path());
  std::string text;
  for (const fs::path& file : files)
    text += fmt::format("---- {}\n{}\n", file.filename().string(),
                        LastLines(ReadFile(file.string()).value_or("")));
  return text;
}

absl::Status SlurmCluster::Scontrol(const std::vector<std::string>& words) const {
  std::vector<std::string> argv = {"scontrol"};
  argv.insert(argv.end(), words.begin(), words.end());
  const CommandResult result = Run(argv);
  if (result.exit_code == 0) return absl::OkStatus();
  return InvalidArgument("{}: {}{}", fmt::join(argv, " "), result.errors, result.output);
}

absl::Status SlurmCluster::SetNode(const std::string& node, const std::string& state) const {
  std::vector<std::string> words = {"update", "NodeName=" + node, "State=" + state};
  if (state != "RESUME") words.push_back("Reason=test");
  return Scontrol(words);
}

absl::Status SlurmCluster::Requeue(JobId job) const {
  return Scontrol({"requeue", std::to_string(job)});
}

absl::Status SlurmCluster::SetTimeLimit(JobId job, const std::string& limit) const {
  return Scontrol({"update", fmt::format("JobId={}", job), "TimeLimit=" + limit});
}

absl::StatusOr<SlurmCluster::JobId> SlurmCluster::Preempt(const std::string& partition,
                                                          int nodes) const {
  return Submit({"-p", partition, "-N", std::to_string(nodes), "-J", "preemptor"},
                "exec sleep infinity\n");
}

}  // namespace perdure
