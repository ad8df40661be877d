#include "tests/agent/agent_stage.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr absl::Duration kStepTime = absl::Milliseconds(5);

}  // namespace

// ---- ranks

void Lockstep::Step() {
  std::map<Generation, std::vector<StageRanks*>> running;
  for (StageRanks* ranks : all_)
    if (ranks->running_ && ranks->guard_.MayStep(MonotonicNow()))
      running[ranks->prepare_.generation].push_back(ranks);
  for (const auto& [generation, nodes] : running) {
    size_t ranks = 0;
    for (const StageRanks* node : nodes) ranks += node->prepare_.ranks.size();
    const StageRanks& first = *nodes.front();
    if (ranks != static_cast<size_t>(first.prepare_.shape.ranks())) continue;
    const StepIndex next = first.finished_ + 1;
    if (generation < generation_ || (generation == generation_ && next != step_ + 1))
      wrong_ = fmt::format("step {} of generation {} after step {} of {}", next, generation, step_,
                           generation_);
    generation_ = generation;
    step_ = next;
    // What training ends with is kept without being asked for.
    const bool last = next == steps_max || std::any_of(nodes.begin(), nodes.end(), [](auto* node) {
                        return node->freeze_ && node->freezes_last_;
                      });
    const bool freeze = last || std::any_of(nodes.begin(), nodes.end(),
                                            [](StageRanks* node) { return node->freeze_; });
    for (StageRanks* node : nodes) {
      node->finished_ = next;
      node->freeze_ = false;
      if (freeze) {
        node->frozen_ = next;
        node->Tell(Member::Frozen{generation, next});
      }
      node->running_ &= !last;
      if (last) node->last_step_ = next;
      node->Tell(Member::Progress{generation, next});
    }
  }
}

StageRanks::~StageRanks() {
  *alive_ = false;
  lockstep_->Leave(this);
}

// Never from inside an order.
void StageRanks::Tell(Member::Event event) {
  loop_->AddTimer(MonotonicNow(), [this, alive = alive_, event = std::move(event)] {
    if (*alive && tell) tell(event);
  });
}

Member::Adopted StageRanks::Adopted() {
  if (!running_) return {};
  return {.generation = prepare_.generation, .finished = finished_, .frozen = frozen_};
}

void StageRanks::Do(const Member::MakeRanks& order) {
  prepare_ = order.prepare;
  finished_ = prepare_.resume.step;
  frozen_ = last_step_ = -1;
  connected_ = 0;
  running_ = freeze_ = freezes_last_ = false;
  std::vector<std::string> addresses;
  for (const auto& rank : prepare_.ranks)
    addresses.push_back(fmt::format("rank {} of generation {}", rank.rank, prepare_.generation));
  Tell(Member::RanksMade{prepare_.generation, std::move(addresses)});
}

void StageRanks::Do(const Member::Load& order) {
  PERDURE_CHECK(connected_ == prepare_.shape.ranks());
  if (!bad_checkpoint.empty() && prepare_.resume.checkpoint == bad_checkpoint) {
    Tell(Member::RankFailed{.generation = order.generation,
                            .local_rank = prepare_.ranks.front().local_rank,
                            .kind = EvidenceKind::kBadCheckpoint});
    return;
  }
  Tell(Member::RanksLoaded{order.generation});
}

void StageRanks::Do(const Member::Run& order) {
  running_ = true;
  guard_.Join(order.generation);
}

void StageRanks::Do(const Member::Renew& order) { guard_.Renew(order.generation, order.until); }

void StageRanks::Do(const Member::StopRanks&) {
  if (!deaf) Stopped(true);
}

void StageRanks::Do(const Member::KillRanks&) { Stopped(false); }

// Nothing is left to do once the last state is kept.
void StageRanks::Do(const Member::SettleState& order) {
  settled.push_back(order.settle);
  if (order.settle.step == last_step_) Tell(Member::Progress{prepare_.generation, finished_, true});
}

void StageRanks::Stopped(bool keep) {
  running_ = false;
  std::vector<Holding> holdings;
  if (keep && finished_ > 0)
    for (const auto& rank : prepare_.ranks)
      holdings.push_back({prepare_.generation, finished_, rank.rank});
  Tell(Member::RanksStopped{prepare_.generation, std::move(holdings)});
}

void StageRanks::Do(const Member::FreezeState& order) {
  freeze_ = true;
  freezes_last_ |= order.save.last;
}

void StageRanks::Do(const Member::WriteState& order) {
  const msg::Write& w = order.write;
  std::string packed = fmt::format("step {}:", w.step);
  for (const auto& rank : prepare_.ranks) packed += fmt::format(" {}", rank.rank);
  Tell(Member::Written{w.generation, w.step, w.attempt, true, std::move(packed)});
}

void StageRanks::Do(const Member::VerifyFile& order) {
  const msg::Verify& v = order.verify;
  const bool mine = v.packed == fmt::format("file {} of step {}", v.file, v.step);
  Tell(Member::Verified{v.generation, v.step, v.attempt, v.file, mine});
}

// ---- checkpoints

void StageStore::Do(const Coordinator::MeasureRoom& order,
                    std::function<void(Coordinator::Measured)> then) {
  then({order.generation, order.step, true});
}

void StageStore::Do(const Coordinator::JoinParts& order,
                    std::function<void(Coordinator::PartsJoined)> then) {
  joined = order.packed;
  then(
      {order.generation,
       order.step,
       order.attempt,
       {0, 0},
       {fmt::format("file 0 of step {}", order.step), fmt::format("file 1 of step {}", order.step)},
       true});
}

// The newest that nobody called bad.
void StageStore::Do(const Coordinator::ChooseCheckpoint& order,
                    std::function<void(Coordinator::CheckpointChosen)> then) {
  asked.push_back(order);
  if (order.last_is_bad) bad_.insert(order.last);
  Coordinator::CheckpointChosen chosen{.question = order.question, .ok = true};
  const RunLog log = *RunLog::Open(run_directory_);
  for (const Record& record : log.records()) {
    if (record.type != RecordType::kCommit) continue;
    const CommitRecord commit = *ParseCommit(record.body);
    if (bad_.contains(commit.checkpoint)) continue;
    chosen.step = commit.step;
    chosen.packed = commit.checkpoint;
  }
  then(chosen);
}

absl::StatusOr<ControlLog::NoteBody> StageStore::NoteBody(uint64_t tag) {
  RETURN_IF_ERROR(notes);
  return ControlLog::NoteBody{
      .type = RecordType::kAttempt,
      .body = SerializeAttempt({.name = fmt::format("s{:09}.g1.00000000", tag)})};
}

absl::StatusOr<CommitRecord> StageStore::Publish(const LogEntry& commit, Slot, int32_t) {
  RETURN_IF_ERROR(publishes);
  return CommitRecord{
      .checkpoint = fmt::format("s{:09}.g{}.00000000", commit.step, commit.generation),
      .step = commit.step,
      .samples = commit.step,
      .bytes = 1,
      .files = 2};
}

// ---- the stage

AgentStage::AgentStage(const std::string& run_directory) : loop_(*EventLoop::New()) {
  log_ = *ControlLog::New(loop_.get(), *RunLog::Open(run_directory));
  lockstep_ = std::make_unique<Lockstep>(loop_.get());
  options.run_directory = run_directory;
  options.nodes = 4;
  options.control.gather = absl::Seconds(1);
  options.control.save_every = absl::Hours(1);
  options.rule = {.data = 0,
                  .data_min = 1,
                  .leaves = 1 << 20,
                  .grow_after = absl::Milliseconds(200),
                  .wait_max = absl::Minutes(5)};
  Beat();
}

AgentStage::~AgentStage() { loop_->CancelTimer(timer_); }

void AgentStage::Beat() {
  lockstep_->Step();
  timer_ = loop_->AddTimer(MonotonicNow() + kStepTime, [this] { Beat(); });
}

StageNode& AgentStage::Start(NodeId node, uint64_t job, bool own_log) {
  Kill(node, job);
  auto& stage = nodes_[{job, node}];
  stage = std::make_unique<StageNode>(lockstep_.get(), loop_.get(), options.run_directory);
  if (own_log) stage->own_log = *ControlLog::New(loop_.get(), *RunLog::Open(options.run_directory));
  StartAgent(node, job);
  return *stage;
}

void AgentStage::StartAgent(NodeId node, uint64_t job) {
  StageNode* const n = nodes_.at({job, node}).get();
  AgentOptions mine = options;
  mine.node = node;
  mine.job = job;
  n->agent =
      *Agent::New(loop_.get(), n->own_log != nullptr ? n->own_log.get() : log_.get(), mine,
                  &n->ranks, &n->store,
                  {.remark = [n](const std::string& text) { n->remarks.push_back(text); },
                   .evidence = [n](const Coordinator::Evidence& e) { n->evidence.push_back(e); },
                   .ended = [n](int code) { n->exit_code = code; }});
  n->ranks.tell = [n](Member::Event event) {
    if (n->agent != nullptr) n->agent->Tell(std::move(event));
  };
}

void AgentStage::KillAgent(NodeId node, uint64_t job) { nodes_.at({job, node})->agent.reset(); }

void AgentStage::Kill(NodeId node, uint64_t job) {
  const auto at = nodes_.find({job, node});
  if (at == nodes_.end()) return;
  at->second->agent.reset();
  nodes_.erase(at);
}

bool AgentStage::Until(const std::function<bool()>& done, absl::Duration within) {
  const absl::Time end = MonotonicNow() + within;
  while (!done()) {
    if (MonotonicNow() > end) return false;
    loop_->RunOnce(MonotonicNow() + absl::Milliseconds(10));
  }
  return true;
}

void AgentStage::For(absl::Duration time) {
  (void)Until([] { return false; }, time);
}

bool AgentStage::Steps(int64_t steps) {
  const StepIndex goal = lockstep_->step() + steps;
  return Until([&] { return lockstep_->step() >= goal; });
}

StageNode* AgentStage::Lead(uint64_t job) {
  for (auto& [where, node] : nodes_)
    if (where.first == job && node->agent != nullptr && node->agent->lead() != nullptr &&
        node->agent->lead()->phase() != Coordinator::Phase::kClaiming)
      return node.get();
  return nullptr;
}

std::vector<Record> AgentStage::Records() const {
  return RunLog::Open(options.run_directory)->records();
}

int AgentStage::Count(RecordType type) const {
  const std::vector<Record> records = Records();
  return static_cast<int>(std::count_if(records.begin(), records.end(),
                                        [&](const Record& record) { return record.type == type; }));
}

std::string AgentStage::Story() const {
  std::string story;
  for (const auto& [where, node] : nodes_)
    for (const std::string& remark : node->remarks)
      story += fmt::format("job {} node {}: {}\n", where.first, where.second, remark);
  return story;
}

}  // namespace perdure
