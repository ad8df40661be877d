#include "launch/agents_job.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "launch/agent_record.h"
#include "launch/exit_codes.h"
#include "launch/local_lock.h"
#include "launch/run_data.h"
#include "launch/run_directory.h"
#include "monitoring/journal.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/records.h"
#include "runtime/agent/snapshot_shelf.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

// An agent that died is started again after this, doubled for each life that was shorter than
// kLongLife.
constexpr absl::Duration kRestartAfter = absl::Seconds(1), kRestartAfterMost = absl::Seconds(30);
constexpr absl::Duration kLongLife = absl::Minutes(1);
// So many short lives of all agents together, and there is no use in going on.
constexpr int kShortLivesMax = 20;
// After END, how long agents may take to leave; after a stop at once, how long to die.
constexpr absl::Duration kLeave = absl::Seconds(10), kDie = absl::Seconds(2);

// Not a scheduler's: those are small.
uint64_t NewJobId() {
  std::random_device random;
  return uint64_t{1} << 51 | (uint64_t{random()} << 20 ^ random()) % (uint64_t{1} << 51);
}

void Say(const std::string& line) { std::fprintf(stderr, "perdure run: %s\n", line.c_str()); }

// Prints why the job does not begin; the exit code that fits.
int RefuseRun(const absl::Status& status) {
  Say(Message(status));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

// The exit code of a run that has nothing to do, which is said.
std::optional<int> NothingToDo(const JobOptions& options, const OpenedRun& run) {
  const std::string& name = run.config.name;
  if (run.start.step >= StepSchedule(run.config).steps()) {
    Say(fmt::format("run {} is complete at step {}", name, run.start.step));
    return kExitComplete;
  }
  if (options.until_step < 0 || !run.start.manifest.has_value() ||
      run.start.step < options.until_step)
    return std::nullopt;
  Say(fmt::format("run {} is at step {} already; --until-step {} asks for nothing more", name,
                  run.start.step, options.until_step));
  return kExitStopped;
}

// The last job of the log that has begun and not ended.
std::optional<uint64_t> OpenJob(const RunLog& log) {
  std::optional<uint64_t> open;
  for (const Record& record : log.records()) {
    if (record.type == RecordType::kLead) open = record.author.at.job;
    if (record.type == RecordType::kEnd && open == record.author.at.job) open.reset();
  }
  return open;
}

// Of that job; nothing: it has not ended.
std::optional<EndRecord> EndOf(const RunLog& log, uint64_t job) {
  for (const Record& record : log.records())
    if (record.type == RecordType::kEnd && record.author.at.job == job)
      if (const absl::StatusOr<EndRecord> end = ParseEnd(record.body); end.ok()) return *end;
  return std::nullopt;
}

// What a job that is over did not say itself. REQUIRES: none of its processes is left.
absl::Status AppendEnd(RunLog& log, uint64_t job, const std::string& reason) {
  int64_t step = 0;
  for (const Record& record : log.records())
    if (record.type == RecordType::kCommit)
      if (const absl::StatusOr<CommitRecord> commit = ParseCommit(record.body); commit.ok())
        step = commit->step;
  log.WriteAs({.at = {.job = job, .node = 0}, .incarnation = std::random_device()() | 1U});
  return log.Append(RecordType::kEnd, log.generation(),
                    SerializeEnd({.reason = reason, .exit_code = kExitFailed, .step = step}));
}

class AgentsJob {
 public:
  AgentsJob(const JobOptions& options, LocalLock lock, RunLog log, uint64_t job,
            std::unique_ptr<EventLoop> loop)
      : options_(options),
        lock_(std::move(lock)),
        log_(std::move(log)),
        job_(job),
        loop_(std::move(loop)),
        oom_(OomKills::OfThisProcess()),
        nodes_(static_cast<size_t>(options.nodes)) {}

  absl::StatusOr<int> Run();

 private:
  struct Node {
    std::unique_ptr<SupervisedProcess> agent;
    absl::Time started;
    absl::Duration restart_after = kRestartAfter;
    EventLoop::TimerId restart;
  };

  absl::Status StartAgent(size_t node);
  void Ended(size_t node, const ProcessEnd& end);
  void OnSignal(int signal);
  void Leave(absl::Duration patience);
  int Tell(const EndRecord& end) const;
  bool AnyLives() const {
    return std::any_of(nodes_.begin(), nodes_.end(),
                       [](const Node& node) { return node.agent != nullptr; });
  }

  const JobOptions options_;
  const LocalLock lock_;
  RunLog log_;
  const uint64_t job_;
  const std::unique_ptr<EventLoop> loop_;
  OomKills oom_;
  std::vector<Node> nodes_;
  int short_lives_ = 0;
  bool leaving_ = false;  // No agent is started again.
  bool asked_ = false;    // To stop.
  std::string why_;       // It leaves without an END.
};

absl::Status AgentsJob::StartAgent(size_t node) {
  ProcessOptions process{
      .argv = {"/proc/self/exe", "agent", options_.run_directory, "--node", std::to_string(node),
               "--nodes", std::to_string(options_.nodes), "--ranks-per-node",
               std::to_string(options_.ranks_per_node), "--job", std::to_string(JobOf(job_)),
               "--data-dir", options_.data_directory},
      .environment = {},
      .descriptors = {{lock_.fd(), kLocalLockFd}},
      .log_path = {},
      .group = 0};
  // The nodes share this machine.
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency() / options_.nodes);
  process.argv.insert(process.argv.end(), {"--cores", std::to_string(cores)});
  if (options_.until_step >= 0)
    process.argv.insert(process.argv.end(), {"--until-step", std::to_string(options_.until_step)});
  if (asked_) process.argv.emplace_back("--stops");
  if (options_.quiet) process.argv.emplace_back("--quiet");
  if (options_.retry) process.argv.emplace_back("--retry");
  nodes_[node].started = MonotonicNow();
  ASSIGN_OR_RETURN(
      nodes_[node].agent,
      SupervisedProcess::Start(loop_.get(), &oom_, process,
                               {.ended = [this, node](const ProcessEnd& end) { Ended(node, end); },
                                .unkillable = nullptr}));
  return absl::OkStatus();
}

// The run log says whether the job is over; otherwise the node is to come back.
void AgentsJob::Ended(size_t node, const ProcessEnd& end) {
  Node& ended = nodes_[node];
  ended.agent.reset();
  if (leaving_) {
    if (!AnyLives()) loop_->Stop();
    return;
  }
  const absl::Status read = log_.Refresh();
  if (read.ok() && EndOf(log_, job_).has_value()) {
    Leave(kLeave);
    return;
  }
  const bool refused = end.kind == EvidenceKind::kRankCrashed && end.number == kExitUsage;
  const bool person = end.kind == EvidenceKind::kRankCrashed && end.number == kExitNoRestart;
  const bool short_life = MonotonicNow() - ended.started < kLongLife;
  short_lives_ = short_life ? short_lives_ + 1 : 0;
  if (refused || person || short_lives_ > kShortLivesMax || !options_.restart_agents) {
    if (refused || person || !AnyLives() || short_lives_ > kShortLivesMax) {
      why_ = fmt::format("the agent of node {} {}", node, end.Text());
      Leave(kDie);
    }
    return;
  }
  Say(fmt::format("the agent of node {} {}; it is started again in {}", node, end.Text(),
                  absl::FormatDuration(ended.restart_after)));
  ended.restart = loop_->AddTimer(MonotonicNow() + ended.restart_after, [this, node] {
    if (leaving_) return;
    if (const absl::Status started = StartAgent(node); !started.ok()) {
      why_ = Message(started);
      Leave(kDie);
    }
  });
  ended.restart_after =
      short_life ? std::min(2 * ended.restart_after, kRestartAfterMost) : kRestartAfter;
}

// SIGTERM: one step more and a checkpoint, which is the agents' to do; again, or SIGQUIT: at once.
void AgentsJob::OnSignal(int signal) {
  if (asked_ || signal == SIGQUIT) {
    why_ = "stopped at once on request";
    Leave(absl::ZeroDuration());
    return;
  }
  asked_ = true;
  Say(fmt::format("signal {}: stopping after this step with a checkpoint (again: at once)",
                  signal));
  for (Node& node : nodes_)
    if (node.agent != nullptr) node.agent->Signal(SIGTERM);
}

void AgentsJob::Leave(absl::Duration patience) {
  leaving_ = true;
  const absl::Time deadline = MonotonicNow() + patience;
  loop_->AddTimer(deadline, [this] {
    for (Node& node : nodes_)
      if (node.agent != nullptr) node.agent->Kill();
  });
  if (!AnyLives()) loop_->Stop();
}

absl::StatusOr<int> AgentsJob::Run() {
  // Ranks whose agent died are ours then: none is left when we leave.
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ErrnoStatus(errno, "become a subreaper");
  if (const absl::Status told = RecordState(options_.run_directory, options_.config, "starting");
      !told.ok())
    Say("warning: " + Message(told));
  const int signals[] = {SIGINT, SIGTERM, SIGQUIT};
  RETURN_IF_ERROR(loop_->AddSignals(signals, [this](int signal) { OnSignal(signal); }));
  for (size_t node = 0; node < nodes_.size(); ++node) RETURN_IF_ERROR(StartAgent(node));
  loop_->Run();
  while (::waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
  }
  // What agents left that did not come back. No process of the job is there any more.
  for (size_t node = 0; node < nodes_.size(); ++node)
    if (const auto shelf = SnapshotShelf::Open({.directory = options_.config.snapshot.directory,
                                                .run_id = log_.run_id(),
                                                .job = job_,
                                                .node = static_cast<NodeId>(node)});
        shelf.ok())
      (*shelf)->Remove();
  RETURN_IF_ERROR(log_.Refresh());
  if (!EndOf(log_, job_).has_value()) {
    Say(why_);
    RETURN_IF_ERROR(AppendEnd(log_, job_, why_));
  }
  return Tell(EndOf(log_, job_).value_or(EndRecord{.exit_code = kExitFailed}));
}

// What became of the job, for people.
int AgentsJob::Tell(const EndRecord& end) const {
  const auto exit_code = static_cast<int>(end.exit_code);
  const std::string state = exit_code == kExitComplete  ? "complete"
                            : exit_code == kExitStopped ? "stopped"
                                                        : "failed";
  std::string certificate = "none";
  for (const Record& record : log_.records())
    if (record.type == RecordType::kCommit)
      if (const absl::StatusOr<CommitRecord> commit = ParseCommit(record.body); commit.ok())
        certificate = commit->certificate.Hex();
  if (state != "failed")
    std::fprintf(stderr, "%s\n",
                 fmt::format("{} at step {}/{}, certificate {}", state, end.step,
                             StepSchedule(options_.config).steps(), certificate)
                     .c_str());
  absl::Status told = RecordState(options_.run_directory, options_.config, state);
  const absl::StatusOr<std::unique_ptr<Journal>> journal =
      Journal::Open(options_.run_directory + "/journal.jsonl");
  told.Update(journal.status());
  if (journal.ok())
    told.Update((*journal)->Append("end", {{"generation", log_.generation()},
                                           {"state", state},
                                           {"step", end.step},
                                           {"exit_code", exit_code},
                                           {"why", end.reason}}));
  if (!told.ok()) Say("warning: " + Message(told));
  return exit_code;
}

}  // namespace

int RunAgentsJob(const JobOptions& options) {
  // Whether anything fits, said before anything is written.
  const absl::StatusOr<LayoutConfig> layout =
      ResolveLayout(options.config, options.nodes * options.ranks_per_node);
  if (!layout.ok()) return RefuseRun(layout.status());
  if (const absl::Status data = CheckData(options.config, options.data_directory); !data.ok())
    return RefuseRun(data);
  absl::StatusOr<OpenedRun> run = OpenRun(options.run_directory, options.config, options.retry);
  if (!run.ok()) {
    RefuseRun(run.status());
    return absl::IsDataLoss(run.status()) ? kExitNoRestart : kExitUsage;
  }
  if (const std::optional<int> exit_code = NothingToDo(options, *run)) return *exit_code;
  // Its coordinator need not be waited for.
  if (const std::optional<uint64_t> open = OpenJob(run->log);
      open.has_value() && open == run->lock.last_job()) {
    const absl::Status ended = AppendEnd(run->log, *open, "its processes are gone");
    if (!ended.ok()) return RefuseRun(ended);
  }
  const uint64_t job = JobStart(NewJobId(), 0);
  if (const absl::Status held = run->lock.Hold(job); !held.ok()) return RefuseRun(held);
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::New();
  if (!loop.ok()) return RefuseRun(loop.status());
  AgentsJob agents_job(options, std::move(run->lock), std::move(run->log), job, *std::move(loop));
  const absl::StatusOr<int> exit_code = agents_job.Run();
  return exit_code.ok() ? *exit_code : RefuseRun(exit_code.status());
}

}  // namespace perdure
