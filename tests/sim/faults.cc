// What befalls the world, and how it ends.
#include <fmt/format.h>

#include <algorithm>

#include "tests/sim/world.h"

namespace perdure::sim {
namespace {

constexpr Nanos kNever = -1;

}  // namespace

void World::StartJob() {
  const auto job = static_cast<uint32_t>(job_ending_.size());
  job_ending_.push_back(false);
  if (trace_) Trace(fmt::format("job {} starts", job));
  for (NodeId node = 0; node < static_cast<NodeId>(scenario_.nodes); ++node) {
    Agent agent;
    agent.job = job;
    agent.node = node;
    agent.slots = (uint64_t{1} << scenario_.slots) - 1;
    agent.offset = clocks_.Between(0, 1000 * kSecond);
    agent.ppm =
        scenario_.drift_ppm == 0 ? 0 : clocks_.Between(-scenario_.drift_ppm, scenario_.drift_ppm);
    if (scenario_.control.drift_percent > 1)
      agent.ppm = agent.ppm < 0 ? -scenario_.drift_ppm : scenario_.drift_ppm;
    agents_.push_back(std::move(agent));
    const bool late =
        !healed_ && static_cast<int32_t>(node) >= scenario_.nodes - scenario_.keep_back;
    At(now_ + clocks_.Between(0, 500 * kMs) + (late ? scenario_.heal_at / 2 : 0),
       {.what = What::kBoot, .agent = static_cast<Index>(agents_.size() - 1), .version = 0});
  }
}

// The chain: when no job is left, the next one begins.
void World::EndJobs() {
  const bool any =
      std::any_of(agents_.begin(), agents_.end(), [](const Agent& a) { return !a.left; });
  if (!any && !complete_) StartJob();
}

void World::CrashAgent(Index index, Nanos back_at) {
  Agent& agent = Of(index);
  if (!agent.alive) return;
  if (trace_) Trace(fmt::format("job {} node {}: agent dies", agent.job, agent.node));
  agent.alive = false;
  agent.lead.reset();
  agent.member.reset();
  agent.tick_at = -1;
  CloseConnectionsOf(index);
  if (back_at >= 0)
    At(back_at, {.what = What::kBoot, .agent = index, .version = agent.incarnation});
}

void World::CrashNode(Index index, Nanos back_at) {
  Agent& agent = Of(index);
  if (trace_ && agent.alive) Trace(fmt::format("job {} node {} dies", agent.job, agent.node));
  agent.alive = false;
  agent.lead.reset();
  agent.member.reset();
  agent.tick_at = -1;
  agent.ranks = {.version = agent.ranks.version + 1};
  agent.memory.clear();
  if (back_at >= 0)
    At(back_at, {.what = What::kBoot, .agent = index, .version = agent.incarnation});
}

void World::Strike(const Fault& fault) {
  if (healed_) return;
  const auto job = static_cast<uint32_t>(job_ending_.size() - 1);
  const Index index = IndexOf({job, fault.node % static_cast<uint32_t>(scenario_.nodes)});
  const Index other = IndexOf({job, fault.other % static_cast<uint32_t>(scenario_.nodes)});
  Agent& agent = Of(index);
  const Nanos until = now_ + fault.lasts;
  if (trace_)
    Trace(fmt::format("FAULT {} node {} other {} for {} ms", Name(fault.kind), fault.node,
                      fault.other, fault.lasts / kMs));
  bool hit = agent.alive;
  switch (fault.kind) {
    case FaultKind::kAgentCrash:
      CrashAgent(index, until);
      break;
    case FaultKind::kNodeCrash: {
      // One of each job may be gone for good, where the others are enough.
      const bool first = std::none_of(agents_.begin(), agents_.end(),
                                      [&](const Agent& a) { return a.job == job && a.left; });
      const LayoutRule& rule = scenario_.rule;
      if (fault.lasts > 6 * kSecond && first &&
          (scenario_.nodes - 1) * (scenario_.slots / rule.tensor) >= rule.pipeline) {
        CrashNode(index, kNever);
        agent.left = true;
      } else {
        CrashNode(index, until);
      }
      break;
    }
    case FaultKind::kRankCrash:
    case FaultKind::kSlotLost: {
      const bool lost = fault.kind == FaultKind::kSlotLost;
      hit = agent.ranks.state != Ranks::kNone && !agent.ranks.prepare.ranks.empty();
      if (!hit) break;
      const auto& ranks = agent.ranks.prepare.ranks;
      FailRank(index, ranks[fault.other % ranks.size()].local_rank,
               lost ? EvidenceKind::kDeviceError : EvidenceKind::kRankKilled, lost);
      break;
    }
    case FaultKind::kNodePause:
      agent.paused = agent.ranks_paused = until;
      break;
    case FaultKind::kAgentPause:
      agent.paused = until;
      break;
    case FaultKind::kIsolate:
      agent.isolated = until;
      ++isolations_;
      break;
    case FaultKind::kCut:
      cuts_.push_back({index, other, until});
      hit = index != other;
      break;
    case FaultKind::kClose:
      if (agent.alive) CloseConnectionsOf(index);
      break;
    case FaultKind::kSlowNetwork:
      slow_network_ = until;
      hit = true;
      break;
    case FaultKind::kLogStall:
      log_stalled_ = until;
      hit = true;
      break;
    case FaultKind::kLogErrors:
      log_errors_ = until;
      hit = true;
      break;
    case FaultKind::kLogBlind:
      agent.log_blind = until;
      break;
    case FaultKind::kDrain:
      if (agent.alive) {
        agent.leaving = true;
        StepMember(index, Member::Leave{});
      }
      break;
    case FaultKind::kWriteErrors:
      agent.write_errors = until;
      break;
    case FaultKind::kStubborn:
      agent.stubborn = until;
      agent.ranks.deaf |= agent.ranks.state == Ranks::kRunning && fault.lasts > 4 * kSecond;
      break;
    case FaultKind::kUnkillable:
      agent.stubborn = agent.unkillable = until;
      break;
    case FaultKind::kStall:
      stalled_ = until;
      // For ever: unless nobody would notice.
      agent.ranks.hung |= agent.ranks.state == Ranks::kRunning && fault.lasts > 4 * kSecond &&
                          scenario_.control.stall_min < absl::Minutes(1);
      hit = true;
      break;
    case FaultKind::kEndJob:
      hit = !job_ending_[job];
      job_ending_[job] = true;
      for (Index i = 0; i < agents_.size(); ++i)
        if (agents_[i].job == job) StepLead(i, Coordinator::EndJob{75});
      At(now_ + 10 * kSecond, {.what = What::kHardEnd, .agent = ~Index{0}, .a = job});
      break;
    case FaultKind::kKillJob: {
      hit = !job_ending_[job];
      job_ending_[job] = true;
      // The scheduler does not fence: a node that it cannot reach goes on.
      for (Index i = 0; i < agents_.size(); ++i)
        if (agents_[i].job == job && (i != index || fault.lasts < 4 * kSecond)) {
          CrashNode(i, kNever);
          agents_[i].left = true;
        }
      At(now_ + 10 * kSecond, {.what = What::kHardEnd, .agent = ~Index{0}, .a = job});
      if (!complete_) StartJob();
      break;
    }
    case FaultKind::kSlowNode:
      SlowDown(index, until, 200 + 100 * (fault.other % 3));
      break;
    case FaultKind::kTwoJobs:
      hit = job_ending_.size() < 6 && !complete_;
      if (hit) StartJob();
      break;
  }
  if (hit) outcome_.faults_hit |= 1u << static_cast<int>(fault.kind);
}

// Everything works from now on, and the run must go on within a bound.
void World::Heal() {
  if (trace_) Trace("HEAL");
  healed_ = looked_ = true;
  cuts_.clear();
  isolations_ = 0;
  slow_network_ = log_stalled_ = log_errors_ = stalled_ = 0;
  scenario_.loss = scenario_.doubled = 0;
  for (Index i = 0; i < agents_.size(); ++i) {
    Agent& agent = agents_[i];
    agent.isolated = agent.log_blind = agent.write_errors = agent.stubborn = agent.unkillable = 0;
    agent.paused = agent.ranks_paused = agent.slow = 0;
    if (agent.left) continue;
    // A node that is given back, or has lost a device, goes, and another one comes.
    const uint64_t all = (uint64_t{1} << scenario_.slots) - 1;
    if (agent.leaving || agent.slots != all) CrashNode(i, kNever);
    agent.leaving = false;
    agent.slots = all;
    if (!agent.alive)
      At(now_ + 100 * kMs, {.what = What::kBoot, .agent = i, .version = agent.incarnation});
  }
  EndJobs();
  commits_at_heal_ = checker_.commits();
  const ControlOptions& o = scenario_.control;
  // That the control plane may be patient is no reason to be.
  const absl::Duration bound =
      3 * (o.save_every + std::min(o.save_max, absl::Seconds(8))) +
      2 * (o.lease_log + o.gather + std::min(o.form_max, absl::Seconds(6)) + 4 * o.stop_max) +
      absl::Seconds(scenario_.bad_checkpoints + scenario_.crash_step > 0 ? 60 : 30) +
      absl::Seconds(scenario_.bad_steps > 0 ? 120 : 0);
  At(now_ + absl::ToInt64Nanoseconds(bound), {.what = What::kHeal, .agent = ~Index{0}});
}

}  // namespace perdure::sim
