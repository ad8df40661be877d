#include "tests/sim/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <utility>

namespace perdure::sim {
namespace {

// No schedule needs more; one that does has lost its way.
constexpr uint64_t kEventsMax = 20'000'000;
// Of one step of a machine on n nodes: a few for each.
constexpr size_t kEffectsPerNode = 16, kEffectsMore = 64;
// What a coordinator is answered: `d` of kLeadReply.
constexpr int64_t kMeasured = 0, kJoined = 1, kUnpublished = 2, kWoundUp = 3;

// Adds the real time of its life to a sum.
class Timed {
 public:
  explicit Timed(int64_t* sum) : sum_(sum) {
    if (sum_ != nullptr) begin_ = std::chrono::steady_clock::now();
  }
  ~Timed() {
    if (sum_ != nullptr)
      *sum_ += std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin_).count();
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  int64_t* sum_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace

World::World(const Scenario& scenario, bool trace)
    : scenario_(scenario),
      calm_(scenario.Calm()),
      trace_(trace),
      network_(scenario.seed, 11),
      disk_(scenario.seed, 12),
      work_(scenario.seed, 13),
      clocks_(scenario.seed, 14),
      manifests_(scenario.seed, 15),
      shell_(scenario.seed, 16),
      checker_(scenario) {}

// ---- time

absl::Time World::Local(const Agent& agent, Nanos at) const {
  return absl::FromUnixNanos(agent.offset + at + at / 1'000'000 * agent.ppm);
}

// The first instant of the world at which the agent's clock shows `local` or more.
Nanos World::Global(const Agent& agent, absl::Time local) const {
  const int64_t shown = absl::ToUnixNanos(local) - agent.offset;
  if (shown <= 0) return 0;
  Nanos at = shown / (1'000'000 + agent.ppm) * 1'000'000 +
             shown % (1'000'000 + agent.ppm) * 1'000'000 / (1'000'000 + agent.ppm) - 2;
  while (Local(agent, at) < local) {
    const int64_t missing = absl::ToInt64Nanoseconds(local - Local(agent, at));
    at += std::max<int64_t>(1, missing - missing / 50);
  }
  return at;
}

uint32_t World::Put(Happening happening) {
  if (free_.empty()) {
    happenings_.push_back(std::move(happening));
    return static_cast<uint32_t>(happenings_.size() - 1);
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  happenings_[slot] = std::move(happening);
  return slot;
}

void World::At(Nanos at, Happening happening) {
  heap_.push_back({at, order_++, Put(std::move(happening))});
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void World::Begin() {
  if (std::exchange(begun_, true)) return;
  for (size_t i = 0; i < scenario_.faults.size(); ++i)
    At(scenario_.faults[i].at, {.what = What::kFault, .a = static_cast<int64_t>(i)});
  At(scenario_.heal_at, {.what = What::kHeal});
  StartJob();
}

// False: nothing happens any more before `until`.
bool World::HandleNext(Nanos until) {
  if (heap_.empty() || !outcome_.violation.empty() || heap_.front().at > until) return false;
  std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
  const Due due = heap_.back();
  heap_.pop_back();
  now_ = due.at;
  Happening h = std::move(happenings_[due.slot]);
  free_.push_back(due.slot);
  Handle(h);
  if (++outcome_.events > kEventsMax * static_cast<uint64_t>(1 + scenario_.nodes / 100))
    Violate("the schedule does not end");
  return true;
}

Outcome World::Run() {
  Begin();
  while (HandleNext(std::numeric_limits<Nanos>::max()))
    if (complete_
            ? std::none_of(agents_.begin(), agents_.end(), [](const Agent& a) { return a.alive; })
            : healed_ && checker_.commits() >= commits_at_heal_ + 3)
      break;
  if (outcome_.violation.empty()) CheckNotes();
  outcome_.ended = now_;
  outcome_.generations = checker_.generations();
  outcome_.commits = checker_.commits();
  outcome_.leads = checker_.leads();
  outcome_.complete = complete_ ? 1 : 0;
  outcome_.failures_max = checker_.failures_max();
  outcome_.saved_first = checker_.saved_first();
  outcome_.rollbacks = checker_.rollbacks();
  return outcome_;
}

const Outcome& World::RunUntil(Nanos until) {
  Begin();
  while (HandleNext(until)) {
  }
  if (outcome_.violation.empty()) now_ = until;
  return outcome_;
}

void World::Break(NodeId node) {
  calm_ = false;
  CrashNode(IndexOf({job_ending_.size() - 1, node}), -1);
}

const Coordinator* World::Lead() const {
  const Coordinator* lead = nullptr;
  for (const Agent& agent : agents_)
    if (agent.job + 1 == job_ending_.size() && agent.lead.has_value() &&
        agent.lead->phase() != Coordinator::Phase::kClaiming)
      lead = &*agent.lead;
  return lead;
}

void World::Violate(std::string what) {
  if (!outcome_.violation.empty()) return;
  outcome_.violation = std::move(what);
  outcome_.violated_at = now_;
  if (trace_) Trace("VIOLATION: " + outcome_.violation);
}

void World::Trace(const std::string& line) const {
  std::printf("%10.4f %s\n", static_cast<double>(now_) / 1e9, line.c_str());
}

// What stands still takes no part; it finds all of it when it goes on.
bool World::Defer(const Happening& h) {
  Agent& agent = agents_[h.agent];
  Nanos until = 0;
  switch (h.what) {
    case What::kDeliver:
    case What::kTick:
    case What::kClosed:
    case What::kLogReply:
    case What::kLeadReply:
    case What::kNote:
    case What::kChosen:
    case What::kRanksMade:
    case What::kRanksLoaded:
    case What::kRankFailed:
    case What::kFrozen:
    case What::kWritten:
    case What::kVerified:
      until = agent.paused;
      break;
    case What::kContribute:
    case What::kApply:
    case What::kRanksStopped:
      until = agent.ranks_paused;
      break;
    default:
      return false;
  }
  if (until <= now_) return false;
  if (h.what == What::kTick) {
    if (agent.tick_at != now_) return true;
    agent.tick_at = until;
  }
  At(until, h);
  return true;
}

void World::Handle(Happening& h) {
  outcome_.digest = Mix(outcome_.digest, Mix(static_cast<uint64_t>(now_),
                                             static_cast<uint64_t>(h.what) << 32 | h.agent));
  if (h.agent < agents_.size() && Defer(h)) return;
  switch (h.what) {
    case What::kDeliver:
      Deliver(h);
      return;
    case What::kTick: {
      Agent& agent = Of(h.agent);
      if (agent.tick_at != now_ || !agent.alive) return;
      agent.tick_at = -1;
      const absl::Time local = Local(agent, now_);
      if (agent.lead.has_value() && agent.lead->NextDeadline() <= local)
        StepLead(h.agent, Coordinator::Tick{});
      if (agent.alive && agent.member->NextDeadline() <= local) StepMember(h.agent, Member::Tick{});
      ScheduleTick(h.agent);
      return;
    }
    case What::kBoot:
      if (Of(h.agent).incarnation == h.version) Boot(h.agent);
      return;
    case What::kClosed: {
      const Agent& peer = Of(h.from);
      if (Of(h.agent).alive) StepMember(h.agent, Member::Closed{{peer.job, peer.node}});
      if (Of(h.agent).lead.has_value() && Of(h.agent).job == peer.job)
        StepLead(h.agent, Coordinator::Closed{peer.node});
      return;
    }
    case What::kLogExecute:
      ExecuteLog(static_cast<uint32_t>(h.a));
      return;
    case What::kLogReply:
      ReplyLog(static_cast<uint32_t>(h.a));
      return;
    case What::kLeadReply:
      if (!Of(h.agent).lead.has_value() || Of(h.agent).lead_id != h.version) return;
      if (h.d == kUnpublished) {
        StepLead(h.agent, Coordinator::Unpublished{});
      } else if (h.d == kWoundUp) {
        StepLead(h.agent, Coordinator::WoundUp{});
      } else if (h.d == kMeasured) {
        StepLead(h.agent, Coordinator::Measured{static_cast<Generation>(h.a), h.b, true});
      } else {
        Coordinator::PartsJoined joined{
            static_cast<Generation>(h.a), h.b, static_cast<int32_t>(h.c), {}, {}, true};
        const std::vector<NodeId>& members = Of(h.agent).lead->members();
        for (size_t f = 0; f < members.size(); ++f) {
          joined.readers.push_back(static_cast<int>((f + 1) % members.size()));
          joined.parts.push_back(
              PartOf(checker_.Written(joined.generation, joined.step, joined.attempt, members[f])));
        }
        StepLead(h.agent, joined);
      }
      return;
    case What::kNote:
      if (!Of(h.agent).lead.has_value() || Of(h.agent).lead_id != h.version) return;
      notes_.push_back({.agent = h.agent, .lead_id = h.version, .told_at = now_});
      StepLead(h.agent, Coordinator::Note{notes_.size() - 1});
      return;
    case What::kChosen:
      if (Of(h.agent).lead.has_value() && Of(h.agent).lead_id == h.version)
        AnswerChosen(h.agent, static_cast<uint64_t>(h.a));
      return;
    case What::kRanksMade: {
      Agent& agent = Of(h.agent);
      if (!agent.alive || agent.ranks.version != h.version) return;
      Member::RanksMade made{agent.ranks.prepare.generation, {}};
      for (const auto& rank : agent.ranks.prepare.ranks)
        made.addresses.push_back(Address(made.generation, {agent.node, rank.local_rank}));
      StepMember(h.agent, made);
      return;
    }
    case What::kRanksLoaded:
      if (Of(h.agent).ranks.version == h.version) FinishLoad(h.agent);
      return;
    case What::kRanksStopped:
      if (Of(h.agent).ranks.version == h.version)
        FinishStop(h.agent, static_cast<Generation>(h.a), h.b != 0);
      return;
    case What::kContribute:
      if (Of(h.agent).ranks.version == h.version) Contribute(h.agent);
      return;
    case What::kComplete:
      Complete(static_cast<Generation>(h.a), h.b);
      return;
    case What::kApply:
      if (Of(h.agent).ranks.version == h.version) Apply(h.agent);
      return;
    case What::kSnapshot: {
      Agent& agent = Of(h.agent);
      if (agent.incarnation == 0 || agent.left || Cut(h.from, h.agent)) return;
      if (agent.ranks.state == Ranks::kNone) return;
      Remember(agent,
               {{static_cast<Generation>(h.a), h.b, static_cast<int32_t>(h.c)}, h.version, false});
      return;
    }
    case What::kFrozen:
      if (Of(h.agent).alive && Of(h.agent).ranks.version == h.version)
        StepMember(h.agent, Member::Frozen{static_cast<Generation>(h.a), h.b});
      return;
    case What::kWritten: {
      Agent& agent = Of(h.agent);
      if (agent.ranks.version != h.version) return;
      agent.ranks.written |= agent.ranks.frozen == h.b && agent.ranks.attempt == h.c;
      const auto generation = static_cast<Generation>(h.a);
      const auto attempt = static_cast<int32_t>(h.c);
      if (agent.alive)
        StepMember(h.agent,
                   Member::Written{generation, h.b, attempt, h.d != 0,
                                   checker_.Written(generation, h.b, attempt, agent.node)});
      return;
    }
    case What::kVerified: {
      Agent& agent = Of(h.agent);
      if (!agent.alive || agent.ranks.version != h.version) return;
      const auto attempt = static_cast<int32_t>(h.c >> 32);
      const auto file = static_cast<int32_t>(h.c & 0xffffffff);
      StepMember(h.agent,
                 Member::Verified{static_cast<Generation>(h.a), h.b, attempt, file, h.d != 0});
      return;
    }
    case What::kRankFailed: {
      Agent& agent = Of(h.agent);
      if (!agent.alive || agent.ranks.version != h.version) return;
      StepMember(h.agent,
                 Member::RankFailed{agent.ranks.prepare.generation, static_cast<int32_t>(h.a),
                                    static_cast<EvidenceKind>(h.b), 0, h.c != 0});
      return;
    }
    case What::kRenewed:
      if (Of(h.agent).incarnation == h.version)
        Renew(h.agent, static_cast<Generation>(h.a), absl::FromUnixNanos(h.b));
      return;
    case What::kFault:
      Strike(scenario_.faults[static_cast<size_t>(h.a)]);
      return;
    case What::kHeal:
      if (!healed_) {
        Heal();
        return;
      }
      CheckProgress();
      return;
    case What::kNextJob:
      EndJobs();
      return;
    case What::kHardEnd:
      if (calm_ && std::any_of(agents_.begin(), agents_.end(),
                               [&](const Agent& a) { return a.job == h.a && !a.left; }))
        Violate(fmt::format("job {} did not end in the time that it was given", h.a));
      for (Index i = 0; i < agents_.size(); ++i)
        if (agents_[i].job == h.a && !agents_[i].left) {
          CrashNode(i, -1);
          agents_[i].left = true;
        }
      EndJobs();
      return;
  }
}

// ---- machines

void World::Boot(Index index) {
  Agent& agent = Of(index);
  if (agent.left || agent.alive) return;
  agent.alive = true;
  agent.incarnation = ++incarnations_;
  Member::Adopted adopted;
  RankGroup& ranks = agent.ranks;
  if (ranks.state == Ranks::kRunning && ranks.failed_local_rank < 0) {
    adopted = {
        .generation = ranks.prepare.generation, .finished = ranks.finished, .frozen = ranks.frozen};
  } else if (ranks.state != Ranks::kNone) {
    ++ranks.version;
    ranks = {.version = ranks.version};
    agent.memory.clear();
  }
  if (trace_)
    Trace(fmt::format("job {} node {} boots, incarnation {}", agent.job, agent.node,
                      agent.incarnation));
  const Member::Identity identity{
      .me = {.at = {agent.job, agent.node}, .incarnation = agent.incarnation},
      .slots = agent.slots,
      .domain = agent.node % static_cast<uint32_t>(scenario_.domains)};
  agent.member.emplace(scenario_.control, identity, adopted, Local(agent, now_));
  agent.tick_at = -1;
  StepMember(index, Member::Tick{});
  if (agent.alive && adopted.generation != 0 &&
      (agent.ranks.AwaitsSettle() || scenario_.no_snapshots != 0))
    SayProgress(index);
  if (agent.alive && agent.ranks.bad != BadStep{})
    StepMember(index, Member::RanksFoundBad{agent.ranks.prepare.generation, agent.ranks.bad});
}

void World::ScheduleTick(Index index) {
  Agent& agent = Of(index);
  if (!agent.alive) return;
  absl::Time next = agent.member->NextDeadline();
  if (agent.lead.has_value()) next = std::min(next, agent.lead->NextDeadline());
  if (next == absl::InfiniteFuture()) return;
  // A timer is never early, and a little late.
  const Nanos at = std::max(now_ + 1, Global(agent, next));
  if (agent.tick_at >= 0 && agent.tick_at <= at) return;
  agent.tick_at = at;
  At(at, {.what = What::kTick, .agent = index});
}

void World::StepMember(Index index, const Member::Event& event) {
  Agent& agent = Of(index);
  if (!agent.alive) return;
  Member::Effects effects;
  effects.swap(member_effects_);
  effects.clear();
  agent.member->Step(Local(agent, now_), event, effects);
  if (effects.size() > kEffectsPerNode * static_cast<size_t>(scenario_.nodes) + kEffectsMore)
    Violate(fmt::format("a member has {} effects at once", effects.size()));
  Perform(index, effects);
  effects.swap(member_effects_);
  ScheduleTick(index);
}

void World::StepLead(Index index, const Coordinator::Event& event) {
  Agent& agent = Of(index);
  if (!agent.alive || !agent.lead.has_value()) return;
  Coordinator::Effects effects;
  effects.swap(lead_effects_);
  effects.clear();
  {
    const Timed timed(measure_ ? &lead_nanos_ : nullptr);
    agent.lead->Step(Local(agent, now_), event, effects);
  }
  if (effects.size() > kEffectsPerNode * static_cast<size_t>(scenario_.nodes) + kEffectsMore)
    Violate(fmt::format("a coordinator has {} effects at once", effects.size()));
  PerformLead(index, effects);
  effects.swap(lead_effects_);
  ScheduleTick(index);
}

void World::Perform(Index index, Member::Effects& effects) {
  for (Member::Effect& effect : effects) {
    Agent& agent = Of(index);
    if (!agent.alive) return;
    if (auto* send = std::get_if<Member::Send>(&effect)) {
      Send(index, send->to, send->message);
    } else if (auto* read = std::get_if<Member::ReadLog>(&effect)) {
      AskLog({.kind = LogRequest::Kind::kMemberRead,
              .agent = index,
              .incarnation = agent.incarnation,
              .from = read->from,
              .asked = read->asked});
    } else if (std::holds_alternative<Member::TakeLead>(effect)) {
      if (trace_) Trace(fmt::format("job {} node {} wants to lead", agent.job, agent.node));
      ++agent.lead_id;
      agent.lead.emplace(scenario_.control, scenario_.rule,
                         Coordinator::Identity{.me = {.at = {agent.job, agent.node},
                                                      .incarnation = agent.incarnation},
                                               .nodes = static_cast<NodeId>(scenario_.nodes),
                                               .number = static_cast<uint32_t>(agent.lead_id)},
                         agent.member->view(), Local(agent, now_));
      StepLead(index, Coordinator::Tick{});
      if (job_ending_[agent.job]) StepLead(index, Coordinator::EndJob{75});
    } else if (std::holds_alternative<Member::DropLead>(effect)) {
      agent.lead.reset();
    } else if (auto* make = std::get_if<Member::MakeRanks>(&effect)) {
      MakeRanks(index, make->prepare);
    } else if (auto* connect = std::get_if<Member::Connect>(&effect)) {
      Connect(index, connect->table);
    } else if (std::holds_alternative<Member::Load>(effect)) {
      Load(index);
    } else if (std::holds_alternative<Member::Run>(effect)) {
      agent.ranks.state = Ranks::kRunning;
      agent.ranks.guard.Join(agent.ranks.prepare.generation);
      StartStep(index);
    } else if (auto* renew = std::get_if<Member::Renew>(&effect)) {
      // Now and then it gets to them once more, later.
      if (work_.PerMille(20))
        At(now_ + work_.Between(kMs, kSecond), {.what = What::kRenewed,
                                                .agent = index,
                                                .version = agent.incarnation,
                                                .a = static_cast<int64_t>(renew->generation),
                                                .b = absl::ToUnixNanos(renew->until)});
      Renew(index, renew->generation, renew->until);
    } else if (auto* stop = std::get_if<Member::StopRanks>(&effect)) {
      StopRanks(index, *stop);
    } else if (auto* kill = std::get_if<Member::KillRanks>(&effect)) {
      KillRanks(index, kill->generation);
    } else if (auto* freeze = std::get_if<Member::FreezeState>(&effect)) {
      GenerationBooks& books = generations_[freeze->save.generation];
      const StepIndex after = freeze->save.after;
      books.freeze_last |= freeze->save.last;
      // One that they hold, or are about to, is what is asked for.
      if (agent.ranks.state == Ranks::kRunning && agent.ranks.frozen <= after &&
          books.freeze_step <= std::max(after, agent.ranks.finished)) {
        books.freeze_after = after;
        books.freeze_pause = freeze->save.pause;
      }
    } else if (auto* write = std::get_if<Member::WriteState>(&effect)) {
      WriteState(index, write->write);
    } else if (auto* verify = std::get_if<Member::VerifyFile>(&effect)) {
      VerifyFile(index, verify->verify);
    } else if (auto* settle = std::get_if<Member::SettleState>(&effect)) {
      if (settle->settle.committed !=
          checker_.HasCommit(settle->settle.generation, settle->settle.step))
        Violate(fmt::format("node {} is told that step {} is {}committed", agent.node,
                            settle->settle.step, settle->settle.committed ? "" : "not "));
      SettleState(index, settle->settle);
    } else if (std::holds_alternative<Member::Exit>(effect)) {
      if (trace_) Trace(fmt::format("job {} node {} leaves", agent.job, agent.node));
      CrashNode(index, -1);
      agent.left = true;
      At(now_ + 200 * kMs, {.what = What::kNextJob, .agent = ~Index{0}});
      return;
    }
  }
}

void World::PerformLead(Index index, Coordinator::Effects& effects) {
  const uint64_t lead_id = Of(index).lead_id;
  for (Coordinator::Effect& effect : effects) {
    Agent& agent = Of(index);
    if (!agent.alive || !agent.lead.has_value() || agent.lead_id != lead_id) return;
    if (auto* send = std::get_if<Coordinator::Send>(&effect)) {
      // Encoding is the coordinator's work too.
      const Timed timed(measure_ ? &lead_nanos_ : nullptr);
      Send(index, send->to, send->message);
    } else if (auto* append = std::get_if<Coordinator::Append>(&effect)) {
      const EntryKind kind = append->entry.kind;
      if (kind == EntryKind::kStart || kind == EntryKind::kCommit) WantNotes(index);
      if (kind == EntryKind::kNote && !NoteHasBody(append->entry.note, index)) {
        At(now_ + kMs,
           {.what = What::kLeadReply, .agent = index, .version = lead_id, .d = kUnpublished});
        continue;
      }
      if (append->entry.kind == EntryKind::kCommit && now_ < scenario_.heal_at &&
          scenario_.manifest_fails > 0 && manifests_.PerMille(scenario_.manifest_fails)) {
        At(now_ + kMs,
           {.what = What::kLeadReply, .agent = index, .version = lead_id, .d = kUnpublished});
        continue;
      }
      AskLog({.kind = LogRequest::Kind::kAppend,
              .agent = index,
              .incarnation = agent.incarnation,
              .lead_id = lead_id,
              .entry = append->entry});
    } else if (auto* read = std::get_if<Coordinator::ReadLog>(&effect)) {
      AskLog({.kind = LogRequest::Kind::kLeadRead,
              .agent = index,
              .incarnation = agent.incarnation,
              .lead_id = lead_id,
              .from = read->from,
              .asked = read->asked});
    } else if (auto* leave = std::get_if<Coordinator::LeavePulse>(&effect)) {
      LogRequest request{.kind = LogRequest::Kind::kPulse, .agent = index};
      request.pulse = leave->pulse;
      AskLog(std::move(request));
    } else if (auto* measure = std::get_if<Coordinator::MeasureRoom>(&effect)) {
      At(now_ + kMs, {.what = What::kLeadReply,
                      .agent = index,
                      .version = lead_id,
                      .a = static_cast<int64_t>(measure->generation),
                      .b = measure->step,
                      .d = kMeasured});
    } else if (std::holds_alternative<Coordinator::WindUp>(effect)) {
      WantNotes(index);
      At(now_ + 30 * kMs,
         {.what = What::kLeadReply, .agent = index, .version = lead_id, .d = kWoundUp});
    } else if (auto* choose = std::get_if<Coordinator::ChooseCheckpoint>(&effect)) {
      Choose(index, *choose);
    } else if (auto* noted = std::get_if<Coordinator::Noted>(&effect)) {
      OnNoted(index, noted->tag);
    } else if (auto* good = std::get_if<Coordinator::GoodSteps>(&effect)) {
      OnGoodSteps(index, good->generation);
    } else if (auto* join = std::get_if<Coordinator::JoinParts>(&effect)) {
      Join(index, *join);
      At(now_ + kMs, {.what = What::kLeadReply,
                      .agent = index,
                      .version = lead_id,
                      .a = static_cast<int64_t>(join->generation),
                      .b = join->step,
                      .c = join->attempt,
                      .d = kJoined});
    } else if (auto* evidence = std::get_if<Coordinator::Evidence>(&effect)) {
      if (evidence->kind == EvidenceKind::kSlow) OnSlow(index, evidence->node);
    } else if (auto* remark = std::get_if<Coordinator::Remark>(&effect)) {
      // The planner's: all nodes are leaving, or broken.
      if (remark->text.starts_with("none of ")) checker_.OnNoSlots();
      if (trace_)
        Trace(fmt::format("job {} node {} (term {}): {}", agent.job, agent.node, agent.lead->term(),
                          remark->text));
    } else if (auto* resign = std::get_if<Coordinator::Resign>(&effect)) {
      if (trace_)
        Trace(fmt::format("job {} node {} resigns: {}", agent.job, agent.node, resign->reason));
      if (!log_.empty() && log_leads_.back() == lead_id &&
          log_.back().second.author.at == Endpoint{agent.job, agent.node} &&
          log_.back().second.author.incarnation == agent.incarnation)
        Violate("a coordinator resigns although the newest record is its own");
      agent.lead.reset();
      StepMember(index, Member::LeadLost{});
      return;
    }
  }
}

// After the faults are over the run must go on.
void World::CheckProgress() {
  std::string states;
  for (const Agent& agent : agents_)
    if (agent.alive)
      states += fmt::format(
          " [{}.{} stage {} generation {} term {}{}]", agent.job, agent.node,
          static_cast<int>(agent.member->stage()), agent.member->generation(), agent.member->term(),
          agent.lead ? fmt::format(" leads, phase {}", static_cast<int>(agent.lead->phase())) : "");
  Violate(fmt::format("{} commits since the faults ended:{}", checker_.commits() - commits_at_heal_,
                      states));
}

}  // namespace perdure::sim
