#include "launch/agent_launcher.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>

#include "launch/exit_codes.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/snapshot_shelf.h"
#include "runtime/base/status.h"

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

}  // namespace

AgentLauncher::AgentLauncher(AgentLauncherOptions options, EventLoop* loop, RunLog* log)
    : options_(std::move(options)), loop_(loop), log_(log), oom_(OomKills::OfThisProcess()) {
  nodes_.resize(options_.nodes.size());
  for (Node& node : nodes_) node.restart_after = kRestartAfter;
}

void AgentLauncher::Say(const std::string& line) const {
  std::fprintf(stderr, "%s: %s\n", options_.speaker.c_str(), line.c_str());
}

bool AgentLauncher::AnyLives() const {
  return std::any_of(nodes_.begin(), nodes_.end(),
                     [](const Node& node) { return node.agent != nullptr; });
}

absl::Status AgentLauncher::StartAgent(size_t index) {
  ProcessOptions process{
      .argv = {"/proc/self/exe", "agent", options_.run_directory, "--node",
               std::to_string(options_.nodes[index]), "--nodes",
               std::to_string(options_.nodes_of_job), "--job", std::to_string(JobOf(options_.job)),
               "--restart", std::to_string(RestartOf(options_.job)), "--data-dir",
               options_.data_directory, "--cores", std::to_string(options_.cores)},
      .environment = {},
      .descriptors = options_.descriptors,
      .log_path = {},
      .group = 0};
  process.argv.insert(process.argv.end(), options_.arguments.begin(), options_.arguments.end());
  if (asked_) process.argv.emplace_back("--stops");
  nodes_[index].started = MonotonicNow();
  ASSIGN_OR_RETURN(nodes_[index].agent,
                   SupervisedProcess::Start(
                       loop_, &oom_, process,
                       {.ended = [this, index](const ProcessEnd& end) { Ended(index, end); },
                        .unkillable = nullptr}));
  return absl::OkStatus();
}

// The run log says whether the job is over; otherwise the node is to come back.
void AgentLauncher::Ended(size_t index, const ProcessEnd& end) {
  Node& ended = nodes_[index];
  ended.agent.reset();
  if (leaving_) {
    if (!AnyLives()) loop_->Stop();
    return;
  }
  const absl::Status read = log_->Refresh();
  if (read.ok() && End().has_value()) {
    Leave(kLeave);
    return;
  }
  const bool refused = end.kind == EvidenceKind::kRankCrashed && end.number == kExitUsage;
  const bool person = end.kind == EvidenceKind::kRankCrashed && end.number == kExitNoRestart;
  const bool short_life = MonotonicNow() - ended.started < kLongLife;
  short_lives_ = short_life ? short_lives_ + 1 : 0;
  if (refused || person || short_lives_ > kShortLivesMax || !options_.restart_agents) {
    if (refused || person || !AnyLives() || short_lives_ > kShortLivesMax) {
      why_ = fmt::format("the agent of node {} {}", options_.nodes[index], end.Text());
      Leave(kDie);
    }
    return;
  }
  Say(fmt::format("the agent of node {} {}; it is started again in {}", options_.nodes[index],
                  end.Text(), absl::FormatDuration(ended.restart_after)));
  ended.restart = loop_->AddTimer(MonotonicNow() + ended.restart_after, [this, index] {
    if (leaving_) return;
    if (const absl::Status started = StartAgent(index); !started.ok()) {
      why_ = Message(started);
      Leave(kDie);
    }
  });
  ended.restart_after =
      short_life ? std::min(2 * ended.restart_after, kRestartAfterMost) : kRestartAfter;
}

// SIGTERM: one step more and a checkpoint, which is the agents' to do; SIGQUIT, or perhaps a second
// one: at once. SIGUSR1 is for the agents.
void AgentLauncher::OnSignal(int signal) {
  if (signal == SIGUSR1) {
    for (Node& node : nodes_)
      if (node.agent != nullptr) node.agent->Signal(SIGUSR1);
    return;
  }
  if (signal == SIGQUIT || (asked_ && options_.hurries)) {
    why_ = "stopped at once on request";
    Leave(absl::ZeroDuration());
    return;
  }
  if (asked_) return;
  asked_ = true;
  Say(fmt::format("signal {}: stopping after this step with a checkpoint{}", signal,
                  options_.hurries ? " (again: at once)" : ""));
  for (Node& node : nodes_)
    if (node.agent != nullptr) node.agent->Signal(SIGTERM);
}

void AgentLauncher::Leave(absl::Duration patience) {
  leaving_ = true;
  loop_->AddTimer(MonotonicNow() + patience, [this] {
    for (Node& node : nodes_)
      if (node.agent != nullptr) node.agent->Kill();
  });
  if (!AnyLives()) loop_->Stop();
}

absl::Status AgentLauncher::Run() {
  // Ranks whose agent died are ours then: none is left when we leave.
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ErrnoStatus(errno, "become a subreaper");
  const int signals[] = {SIGINT, SIGTERM, SIGQUIT, SIGUSR1};
  RETURN_IF_ERROR(loop_->AddSignals(signals, [this](int signal) { OnSignal(signal); }));
  for (size_t index = 0; index < nodes_.size(); ++index) RETURN_IF_ERROR(StartAgent(index));
  loop_->Run();
  while (::waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
  }
  // What agents left that did not come back.
  for (const NodeId node : options_.nodes)
    if (const auto shelf = SnapshotShelf::Open({.directory = options_.snapshot_directory,
                                                .run_id = log_->run_id(),
                                                .job = options_.job,
                                                .node = node});
        shelf.ok())
      (*shelf)->Remove();
  return log_->Refresh();
}

std::optional<EndRecord> AgentLauncher::End() const { return EndOf(*log_, options_.job); }

std::optional<EndRecord> EndOf(const RunLog& log, uint64_t job) {
  for (const Record& record : log.records())
    if (record.type == RecordType::kEnd && record.author.at.job == job)
      if (const absl::StatusOr<EndRecord> end = ParseEnd(record.body); end.ok()) return *end;
  return std::nullopt;
}

}  // namespace perdure
