#include "runtime/agent/command_ranks.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/layout_planner.h"
#include "runtime/wire/wire_sockets.h"

namespace perdure {
namespace {

// How often the trainer's own words are looked for.
constexpr absl::Duration kLook = absl::Milliseconds(500);

bool IsExit(const ProcessEnd& end) { return end.kind == EvidenceKind::kRankCrashed; }

}  // namespace

CommandRanks::CommandRanks(EventLoop* loop, OomKills* oom, CommandRanksOptions options, Hooks hooks)
    : loop_(loop),
      oom_(oom),
      options_(std::move(options)),
      hooks_(std::move(hooks)),
      progress_(options_.progress_path) {}

CommandRanks::~CommandRanks() {
  loop_->CancelTimer(lease_timer_);
  loop_->CancelTimer(progress_timer_);
  loop_->CancelTimer(settle_timer_);
  SignalAll(SIGKILL);
}

// ---- a generation begins

void CommandRanks::Do(const Member::MakeRanks& order) {
  generation_ = order.prepare.generation;
  prepare_ = order.prepare;
  ranks_.clear();
  addresses_.clear();
  hosts_.clear();
  port_.Close();
  running_ = stopping_ = asked_ = failed_ = false;
  killed_ = 0;
  const absl::StatusOr<WireAddress> at = ParseWireAddress(options_.address, 0);
  absl::StatusOr<WireListener> kept = at.ok() ? BindAt(*at) : at.status();
  Member::RanksMade made{.generation = generation_, .addresses = {}};
  for (const msg::Prepare::Assignment& seat : prepare_.ranks) {
    ranks_[seat.rank].local_rank = seat.local_rank;
    made.addresses.push_back(fmt::format("{} {} {}", options_.node, options_.address,
                                         kept.ok() ? kept->address.port : 0));
  }
  if (!kept.ok()) {
    const int32_t first = ranks_.empty() ? 0 : ranks_.begin()->first;
    Fail(first, EvidenceKind::kStartFailed, 0, Message(kept.status()));
    return;
  }
  if (ranks_.contains(0)) port_ = std::move(kept->fd);
  hooks_.tell(std::move(made));
}

void CommandRanks::Do(const Member::Connect& order) {
  const absl::StatusOr<std::vector<std::string>> addresses =
      UnpackAddresses(order.table.packed, order.table.count);
  // What the coordinator has packed; a part that is missing is noticed when they are started.
  if (!addresses.ok() || order.table.generation != generation_) return;
  for (size_t i = 0; i < addresses->size(); ++i)
    addresses_[order.table.first + static_cast<int32_t>(i)] = (*addresses)[i];
}

void CommandRanks::Do(const Member::Load& order) {
  if (order.generation != generation_) return;
  for (const auto& [rank, address] : addresses_) {
    const std::string node = address.substr(0, address.find(' '));
    if (std::find(hosts_.begin(), hosts_.end(), node) == hosts_.end()) hosts_.push_back(node);
  }
  hooks_.tell(Member::RanksLoaded{generation_});
}

// As torchrun(1) has it; TORCHELASTIC_USE_AGENT_STORE: rank 0 opens the store itself.
std::vector<std::string> CommandRanks::EnvironmentOf(int32_t rank, int32_t local_rank) const {
  const std::string& master = addresses_.at(0);
  const size_t host = master.find(' '), port = master.rfind(' ');
  const std::string own = addresses_.at(rank).substr(0, addresses_.at(rank).find(' '));
  const auto group = std::find(hosts_.begin(), hosts_.end(), own) - hosts_.begin();
  // Those of this node, in the order of their ranks: slots may have been lost.
  const auto local = std::distance(ranks_.begin(), ranks_.find(rank));
  std::vector<std::string> environment = options_.environment;
  const auto set = [&](const char* name, const auto& value) {
    environment.push_back(fmt::format("{}={}", name, value));
  };
  set("RANK", rank);
  set("WORLD_SIZE", addresses_.size());
  set("LOCAL_RANK", local);
  set("LOCAL_WORLD_SIZE", ranks_.size());
  set("GROUP_RANK", group);
  set("GROUP_WORLD_SIZE", hosts_.size());
  set("ROLE_RANK", rank);
  set("ROLE_WORLD_SIZE", addresses_.size());
  set("ROLE_NAME", "default");
  set("MASTER_ADDR", master.substr(host + 1, port - host - 1));
  set("MASTER_PORT", master.substr(port + 1));
  set("TORCHELASTIC_RESTART_COUNT", generation_ - 1);
  set("TORCHELASTIC_USE_AGENT_STORE", "False");
  set("PERDURE_GENERATION", generation_);
  set("PERDURE_SLOT", local_rank);
  set("PERDURE_PROGRESS", options_.progress_path);
  return environment;
}

std::string CommandRanks::LogOf(int32_t local_rank) const {
  return SlotLogPath(options_.log_directory, options_.node, local_rank);
}

absl::Status CommandRanks::Start(int32_t rank, Rank& seat) {
  ProcessOptions process{.argv = {"/usr/bin/env"},
                         .environment = EnvironmentOf(rank, seat.local_rank),
                         .descriptors = {},
                         .log_path = LogOf(seat.local_rank),
                         .group = 0};
  if (!options_.directory.empty()) process.argv.push_back("--chdir=" + options_.directory);
  process.argv.insert(process.argv.end(), options_.command.begin(), options_.command.end());
  std::error_code none;
  const auto begins = std::filesystem::file_size(process.log_path, none);
  seat.log_begins = none ? 0 : static_cast<int64_t>(begins);
  ASSIGN_OR_RETURN(
      seat.process,
      SupervisedProcess::Start(loop_, oom_, process,
                               {.ended = [this, rank](const ProcessEnd& end) { Ended(rank, end); },
                                .unkillable =
                                    [this, rank] {
                                      Fail(rank, EvidenceKind::kUnkillable, 0,
                                           "was killed, but the kernel does not let it die");
                                    }}));
  return absl::OkStatus();
}

void CommandRanks::Do(const Member::Run& order) {
  if (order.generation != generation_ || running_ || stopping_) return;
  running_ = true;
  started_ = MonotonicNow();
  progress_.SkipToEnd();
  // From here on it is rank 0's.
  port_.Close();
  for (auto& [rank, seat] : ranks_) {
    const absl::Status started = addresses_.contains(0) && addresses_.contains(rank)
                                     ? Start(rank, seat)
                                     : Internal("the table of ranks is not whole");
    if (started.ok()) continue;
    Fail(rank, EvidenceKind::kStartFailed, 0, Message(started));
    return;
  }
  if (hooks_.connected) hooks_.connected(generation_);
  LookForProgress();
}

// Nobody else may be at work while this generation's ranks are.
void CommandRanks::Do(const Member::Renew& order) {
  if (order.generation != generation_) return;
  loop_->CancelTimer(lease_timer_);
  lease_timer_ = loop_->AddTimer(order.until, [this, generation = generation_] {
    if (generation != generation_ || !AnyLives()) return;
    const int32_t rank = ranks_.begin()->first;
    KillAll();
    if (!stopping_)
      Fail(rank, EvidenceKind::kNetworkError, 0,
           "was killed: this node has not heard of the coordinator for the time of its lease");
  });
}

// ---- it runs

// A trainer that says nothing is as far as the minutes that it has run: what fails soon again has
// got nowhere.
void CommandRanks::LookForProgress() {
  if (!running_ || stopping_ || failed_) return;
  progress_timer_ = loop_->AddTimer(MonotonicNow() + kLook, [this] { LookForProgress(); });
  if (!ranks_.contains(0)) return;
  if (const std::optional<nlohmann::json> line = progress_.Poll(); line.has_value()) {
    speaks_ = true;
    hooks_.tell(Member::Progress{.generation = generation_, .finished = (*line)["step"]});
  } else if (!speaks_ && !options_.must_speak) {
    hooks_.tell(Member::Progress{.generation = generation_,
                                 .finished = (MonotonicNow() - started_) / absl::Minutes(1)});
  }
}

void CommandRanks::Ended(int32_t rank, const ProcessEnd& end) {
  Rank& seat = ranks_.at(rank);
  const pid_t pid = seat.process->pid();
  // What it has started and left behind.
  (void)::kill(-pid, SIGKILL);
  loop_->Defer([old = std::shared_ptr<SupervisedProcess>(std::move(seat.process))] {});
  seat.process = nullptr;
  const bool gives_up = IsExit(end) && end.number == kExitPersonMustLook;
  // Who only follows another is not told of.
  if (running_ && !stopping_ && !end.Good() && (!failed_ || gives_up || !IsExit(end))) {
    std::string words = end.Text();
    if (const std::string tail = TailOfLog(LogOf(seat.local_rank), seat.log_begins); !tail.empty())
      words += fmt::format("\n  its last output ({}):\n  {}", LogOf(seat.local_rank), tail);
    Fail(rank, gives_up ? EvidenceKind::kTrainingFailed : end.kind, end.number, std::move(words),
         pid);
  }
  CheckGone();
}

void CommandRanks::Fail(int32_t rank, EvidenceKind kind, int64_t number, std::string words,
                        pid_t pid) {
  const auto seat = ranks_.find(rank);
  const int32_t local_rank = seat == ranks_.end() ? 0 : seat->second.local_rank;
  if (pid == 0 && seat != ranks_.end() && seat->second.process != nullptr)
    pid = seat->second.process->pid();
  if (hooks_.failed)
    hooks_.failed({.generation = generation_,
                   .rank = rank,
                   .local_rank = local_rank,
                   .pid = pid,
                   .kind = kind,
                   .number = number,
                   .words = std::move(words)});
  const Member::RankFailed failure{.generation = generation_,
                                   .local_rank = local_rank,
                                   .kind = kind,
                                   .number = number,
                                   .slot_lost = kind == EvidenceKind::kUnkillable};
  const bool may_follow = kind == EvidenceKind::kRankCrashed;
  if (!std::exchange(failed_, true)) {
    failure_ = failure;
    told_ = false;
    if (may_follow)
      settle_timer_ = loop_->AddTimer(MonotonicNow() + options_.settle, [this] { TellFailed(); });
  } else if (!told_ && !may_follow) {
    failure_ = failure;
  }
  if (!may_follow) TellFailed();
}

void CommandRanks::TellFailed() {
  loop_->CancelTimer(settle_timer_);
  if (stopping_ || std::exchange(told_, true)) return;
  // Whatever was said of progress before.
  if (ranks_.contains(0))
    if (const std::optional<nlohmann::json> line = progress_.Poll(); line.has_value())
      hooks_.tell(Member::Progress{.generation = generation_, .finished = (*line)["step"]});
  hooks_.tell(failure_);
}

bool CommandRanks::AnyLives() const {
  return std::any_of(ranks_.begin(), ranks_.end(),
                     [](const auto& rank) { return rank.second.process != nullptr; });
}

// ---- and ends

void CommandRanks::SignalAll(int signal) {
  for (const auto& [_, seat] : ranks_)
    if (seat.process != nullptr) (void)::kill(-seat.process->pid(), signal);
}

void CommandRanks::KillAll() {
  SignalAll(SIGKILL);
  for (const auto& [_, seat] : ranks_)
    if (seat.process != nullptr) {
      ++killed_;
      seat.process->Kill();
    }
}

void CommandRanks::EndAll() {
  SignalAll(SIGTERM);
  for (const auto& [_, seat] : ranks_)
    if (seat.process != nullptr) seat.process->End(options_.grace);
}

void CommandRanks::Do(const Member::StopRanks& order) {
  if (order.generation != generation_) return;
  stopping_ = true;
  loop_->CancelTimer(progress_timer_);
  // Once: a second signal means something else to many programs.
  if (order.at_boundary && !failed_) {
    if (!std::exchange(asked_, true)) {
      asked_at_ = MonotonicNow();
      SignalAll(options_.signal);
    }
  } else if (order.stalled) {
    KillAll();
  } else {
    EndAll();
  }
  CheckGone();
}

void CommandRanks::Do(const Member::KillRanks& order) {
  if (order.generation != generation_) return;
  stopping_ = true;
  KillAll();
  CheckGone();
}

void CommandRanks::End(std::function<void()> then) {
  ended_ = std::move(then);
  stopping_ = true;
  EndAll();
  CheckGone();
}

// Tells what follows from nobody being left.
void CommandRanks::CheckGone() {
  if (AnyLives()) return;
  if (running_ || stopping_) loop_->CancelTimer(lease_timer_);
  if (ended_.has_value()) {
    loop_->Defer(*std::exchange(ended_, std::nullopt));
    return;
  }
  if (stopping_) {
    if (std::exchange(asked_, false) && hooks_.left)
      hooks_.left(generation_, MonotonicNow() - asked_at_, killed_);
    hooks_.tell(Member::RanksStopped{.generation = generation_, .holdings = {}});
    return;
  }
  if (!std::exchange(running_, false) || failed_) return;
  Member::Progress done{.generation = generation_, .finished = 0, .complete = true};
  if (ranks_.contains(0))
    if (const std::optional<nlohmann::json> line = progress_.Poll(); line.has_value()) {
      done.finished = (*line)["step"];
    }
  hooks_.tell(std::move(done));
}

std::vector<RankProcess> CommandRanks::processes() const {
  std::vector<RankProcess> processes;
  for (const auto& [rank, seat] : ranks_)
    if (seat.process != nullptr)
      processes.push_back(
          {.local_rank = seat.local_rank, .rank = rank, .pid = seat.process->pid()});
  return processes;
}

// ---- no checkpoints

void ForeignCheckpoints::Do(const Coordinator::MeasureRoom& order,
                            std::function<void(Coordinator::Measured)> then) {
  then({.generation = order.generation, .step = order.step, .ok = false});
}

void ForeignCheckpoints::Do(const Coordinator::JoinParts& order,
                            std::function<void(Coordinator::PartsJoined)> then) {
  then({.generation = order.generation,
        .step = order.step,
        .attempt = order.attempt,
        .readers = {},
        .parts = {},
        .ok = false});
}

void ForeignCheckpoints::Do(const Coordinator::ChooseCheckpoint& order,
                            std::function<void(Coordinator::CheckpointChosen)> then) {
  then({.question = order.question, .step = std::nullopt, .packed = {}, .ok = true, .words = {}});
}

absl::StatusOr<CommitRecord> ForeignCheckpoints::Publish(const LogEntry&, Slot, int32_t) {
  return Internal("a trainer that keeps its own state has nothing to publish");
}

absl::StatusOr<ControlLog::NoteBody> ForeignCheckpoints::NoteBody(uint64_t) {
  return NotFound("nothing was noted");
}

}  // namespace perdure
