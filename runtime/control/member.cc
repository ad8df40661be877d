#include "runtime/control/member.h"

#include <algorithm>
#include <utility>

namespace perdure {
namespace {

// Terms are slots, and slots begin at 0.
bool IsCoordinators(const ControlMessage& message) {
  return std::holds_alternative<msg::Answer>(message) ||
         std::holds_alternative<msg::Announce>(message) ||
         std::holds_alternative<msg::Stop>(message) ||
         std::holds_alternative<msg::Prepare>(message) ||
         std::holds_alternative<msg::Go>(message) || std::holds_alternative<msg::Save>(message) ||
         std::holds_alternative<msg::Write>(message) ||
         std::holds_alternative<msg::Verify>(message) ||
         std::holds_alternative<msg::Settle>(message) || std::holds_alternative<msg::Bye>(message);
}

Slot TermOf(const ControlMessage& message) {
  return std::visit([](const auto& m) { return m.term; }, message);
}

}  // namespace

Member::Member(const ControlOptions& options, const Identity& identity, const Adopted& adopted,
               absl::Time now)
    : options_(options),
      identity_(identity),
      now_(now),
      trusts_log_(now + OthersWait(options, options.visibility)),
      heard_(now),
      seek_due_(now),
      place_(identity.me.at.node),
      report_due_(now) {
  sent_.fill(absl::InfinitePast());
  if (adopted.generation == 0) return;
  stage_ = adopted.holdings.empty() ? NodeStage::kRunning : NodeStage::kStopped;
  holdings_ = adopted.holdings;
  generation_ = adopted.generation;
  finished_ = adopted.finished;
  frozen_ = adopted.frozen;
}

void Member::Step(absl::Time now, const Event& event, Effects& effects) {
  if (exited_) return;
  now_ = now;
  std::visit([&](const auto& e) { On(e, effects); }, event);
  Timers(effects);
}

absl::Time Member::NextDeadline() const {
  if (exited_) return absl::InfiniteFuture();
  return std::min({kill_due_, table_due_, report_due_, seek_due_, TurnToLead()});
}

void Member::Enter(NodeStage stage) {
  if (stage_ == stage) return;
  stage_ = stage;
  changed_ = true;
}

void Member::Timers(Effects& effects) {
  if (exited_) return;
  if (now_ >= kill_due_) {
    kill_due_ = now_ + options_.stop_max;  // And again: a process may not die at once.
    effects.emplace_back(KillRanks{generation_});
  }
  if (now_ >= table_due_) {
    table_due_ = now_ + options_.resend;
    effects.emplace_back(Send{leader_, msg::NeedTable{.term = term_, .generation = generation_}});
  }
  if (has_term_ && (changed_ || now_ >= report_due_)) Report(effects);
  if (!has_term_) report_due_ = absl::InfiniteFuture();
  Seek(effects);
}

// ---- who leads

// The coordinator is not heard: read the log, whose newest LEAD says who should be. When it is
// still the silent one (or nobody), leaves no pulse either, and it is this node's turn, offer this
// agent.
void Member::Seek(Effects& effects) {
  const absl::Time silent = heard_ + options_.leader_silence / 2;
  if (has_term_ && now_ < silent && !closed_) {
    viewed_ = false;
    pulse_ = 0;
    seek_due_ = silent;
    return;
  }
  if (now_ >= TurnToLead()) {
    Lead(effects);
    return;
  }
  if (now_ < seek_due_) return;
  effects.emplace_back(ReadLog{view_.next_slot, now_});
  seek_due_ = now_ + options_.seek;
}

void Member::Lead(Effects& effects) {
  leading_ = true;
  seek_due_ = now_ + options_.seek;
  effects.emplace_back(TakeLead{});
}

bool Member::OwnJobLeads() const {
  return view_.lead.has_value() && view_.lead->author.at.job == identity_.me.at.job;
}

// Nodes of the running generation first, in order; then the others.
int64_t Member::PlaceInLine() const {
  const NodeId me = identity_.me.at.node;
  if (view_.live.empty() || view_.live.back().job != identity_.me.at.job) return me;
  const std::vector<NodeId> nodes = NodesOf(*view_.live.back().layout);
  const auto at = std::lower_bound(nodes.begin(), nodes.end(), me);
  const bool member = at != nodes.end() && *at == me;
  return member ? at - nodes.begin() : static_cast<int64_t>(nodes.size()) + me;
}

absl::Time Member::TurnToLead() const {
  if (!viewed_ || leading_) return absl::InfiniteFuture();
  const absl::Duration wait = std::min(place_, options_.stagger_max) * options_.stagger;
  // Of another job: only when it was asked and has been silent for as long as it could still be
  // granting leases.
  if (view_.lead.has_value() && !OwnJobLeads())
    return probes_ < kProbesMin ? absl::InfiniteFuture()
                                : heard_ + OthersWait(options_, options_.lease_log) + wait;
  if (!view_.lead.has_value()) return heard_ + wait;
  const absl::Time lives = beat_ + options_.leader_silence;
  // Anything may cut a connection; whoever lives answers within a heartbeat.
  if (closed_) return std::max(heard_ + options_.heartbeat, lives) + wait;
  // Two readings tell whether it leaves pulses.
  const absl::Time read_twice = viewed_at_ + 3 * PulseEvery(options_);
  return std::max({heard_ + options_.leader_silence, read_twice, lives}) + wait;
}

// `heard`: by a message of it, not only in the log.
void Member::Follow(Slot term, const Endpoint& leader, bool heard, Effects& effects) {
  if (!trusts_ || (has_term_ && term <= term_)) return;
  if (view_.lead.has_value() && term < view_.lead->term) return;
  has_term_ = true;
  term_ = term;
  leader_ = leader;
  heard_ = now_;
  closed_ = false;
  echo_ = 0;
  pulse_ = 0;
  changed_ = true;
  sent_.fill(absl::InfinitePast());
  const bool mine = leader == identity_.me.at;
  if (leading_ && !(mine && heard)) effects.emplace_back(DropLead{});
  leading_ = mine && heard;
}

void Member::On(const LogRead& event, Effects& effects) {
  if (!event.entries.has_value()) return;
  const std::optional<LogView::Lead> before = view_.lead;
  for (const LogEntry& entry : *event.entries) {
    if (entry.slot != view_.next_slot) continue;
    view_.Absorb(entry);
    // For ever, whoever leads since.
    if (entry.kind == EntryKind::kEnd && entry.author.at.job == identity_.me.at.job) {
      exited_ = true;
      effects.emplace_back(Exit{entry.exit_code});
      return;
    }
  }
  if (event.from + event.entries->size() < view_.next_slot) return;  // Older than what is known.
  trusts_ |= event.asked >= trusts_log_;
  if (!trusts_) return;
  if (!std::exchange(viewed_, true)) viewed_at_ = now_;
  if (!event.entries->empty()) place_ = PlaceInLine();
  if (!view_.lead.has_value()) return;
  if (!OwnJobLeads()) {
    if (view_.lead != before) {
      heard_ = now_;  // It gets time to be heard.
      probes_ = 0;
    }
    ++probes_;
    effects.emplace_back(Send{view_.lead->author.at, msg::Probe{.term = view_.lead->term}});
    return;
  }
  // A life of this very agent that is over answers nobody. But what it has now may have won a
  // moment ago; if it has not, it will find its slot taken.
  const bool own = leading_ && view_.lead->author == identity_.me;
  Follow(view_.lead->term, view_.lead->author.at, own, effects);
  if (!event.pulse.has_value() || event.pulse->term != term_ || event.pulse->count <= pulse_)
    return;
  if (pulse_ > 0) beat_ = now_;
  pulse_ = event.pulse->count;
}

void Member::On(const LeadLost&, Effects&) {
  leading_ = false;
  heard_ = now_;  // Whoever won gets time to be heard.
  viewed_ = false;
  seek_due_ = now_;
}

void Member::On(const Closed& event, Effects&) {
  if (!has_term_ || event.peer != leader_ || closed_) return;
  closed_ = true;
  heard_ = now_;
  seek_due_ = now_;
  changed_ = true;  // The report asks it whether it lives.
}

void Member::On(const Received& event, Effects& effects) {
  if (const auto* leading = std::get_if<msg::Leading>(&event.message)) {
    // The other job's coordinator lives: wait on.
    if (view_.lead.has_value() && !OwnJobLeads() && leading->term == view_.lead->term) {
      heard_ = now_;
      probes_ = 0;
    }
    return;
  }
  if (event.from.job != identity_.me.at.job) return;
  const Slot term = TermOf(event.message);
  if (IsCoordinators(event.message)) {
    Follow(term, event.from, true, effects);
    if (!has_term_ || term != term_ || event.from != leader_) return;
    heard_ = now_;
    closed_ = false;
  } else if (!has_term_ || term != term_) {
    return;
  }
  std::visit([&](const auto& m) { OnMessage(m, effects); }, event.message);
}

// ---- reports and leases

void Member::Report(Effects& effects) {
  changed_ = false;
  report_due_ = now_ + options_.heartbeat;
  ++sequence_;
  sent_[sequence_ % kSentKept] = now_;
  effects.emplace_back(Send{leader_, msg::Report{.term = term_,
                                                 .incarnation = identity_.me.incarnation,
                                                 .sequence = sequence_,
                                                 .echo = echo_,
                                                 .slots = identity_.slots,
                                                 .domain = identity_.domain,
                                                 .leaving = leaving_,
                                                 .generation = generation_,
                                                 .stage = stage_,
                                                 .finished = finished_,
                                                 .failed_local_rank = failed_local_rank_,
                                                 .failure = failure_,
                                                 .failure_number = failure_number_,
                                                 .frozen = frozen_,
                                                 .waits = waits_,
                                                 .works = works_,
                                                 .no_snapshots = no_snapshots_,
                                                 .bad = bad_}});
}

// The lease runs from the sending of the report that is answered.
void Member::OnMessage(const msg::Answer& m, Effects& effects) {
  if (m.sequence > sequence_ || sequence_ - m.sequence >= kSentKept) return;
  echo_ = std::max(echo_, m.stamp);
  if (m.lease <= 0 || m.generation != generation_ || generation_ == 0) return;
  if (stage_ != NodeStage::kRunning && stage_ != NodeStage::kReady) return;
  const absl::Time sent = sent_[m.sequence % kSentKept];
  const absl::Time until =
      sent + HolderCounts(options_, std::min(absl::Nanoseconds(m.lease), options_.lease_agent));
  if (until > now_) effects.emplace_back(Renew{generation_, until});
}

// ---- generations

void Member::BeginStop(bool at_boundary, bool stalled, Effects& effects) {
  Enter(NodeStage::kStopping);
  table_due_ = absl::InfiniteFuture();
  kill_due_ = now_ + options_.stop_max / 2;
  effects.emplace_back(StopRanks{generation_, at_boundary, stalled});
}

void Member::OnMessage(const msg::Stop& m, Effects& effects) {
  if (m.generation < generation_) return;
  switch (stage_) {
    case NodeStage::kIdle:
    case NodeStage::kStopped:
    case NodeStage::kDone:
      SendStopped(effects);
      return;
    case NodeStage::kStopping:
      // What was to end at a boundary that will not come is to end now.
      if (!m.at_boundary) effects.emplace_back(StopRanks{generation_, false, m.stalled});
      return;
    default:
      BeginStop(m.at_boundary && stage_ == NodeStage::kRunning, m.stalled, effects);
  }
}

void Member::SendStopped(Effects& effects) {
  effects.emplace_back(Send{leader_, msg::Stopped{.term = term_,
                                                  .incarnation = identity_.me.incarnation,
                                                  .generation = generation_,
                                                  .holdings = holdings_}});
}

void Member::On(const RanksStopped& event, Effects& effects) {
  if (event.generation != generation_ || stage_ == NodeStage::kStopped ||
      stage_ == NodeStage::kDone)
    return;
  holdings_ = event.holdings;
  kill_due_ = absl::InfiniteFuture();
  Unfreeze();
  waits_ = false;
  failed_local_rank_ = -1;
  Enter(NodeStage::kStopped);
  if (has_term_) SendStopped(effects);
}

void Member::OnMessage(const msg::Prepare& m, Effects& effects) {
  if (m.generation == generation_ && stage_ == NodeStage::kPresent) SendPresent(effects);
  if (m.generation <= generation_) return;
  if (!Idle(stage_)) {
    if (stage_ != NodeStage::kStopping) BeginStop(false, false, effects);
    return;  // It will be said again.
  }
  generation_ = m.generation;
  finished_ = m.resume.step;
  works_.clear();
  no_snapshots_ = false;
  bad_ = {};
  prepare_ = m;
  addresses_.clear();
  parts_.clear();
  parts_ranks_ = 0;
  Unfreeze();
  waits_ = false;
  failed_local_rank_ = -1;
  Enter(NodeStage::kSpawning);
  effects.emplace_back(MakeRanks{m});
}

void Member::On(const RanksMade& event, Effects& effects) {
  if (event.generation != generation_ || stage_ != NodeStage::kSpawning) return;
  addresses_ = event.addresses;
  Enter(NodeStage::kPresent);
  table_due_ = now_ + 4 * options_.resend;
  SendPresent(effects);
}

void Member::SendPresent(Effects& effects) {
  effects.emplace_back(Send{
      leader_, msg::Present{.term = term_, .generation = generation_, .addresses = addresses_}});
}

// Parts come from the parent in the tree, or from the coordinator.
void Member::OnMessage(const msg::Table& m, Effects& effects) {
  if (m.generation != generation_ || stage_ != NodeStage::kPresent || m.count <= 0) return;
  const auto at = std::lower_bound(parts_.begin(), parts_.end(), m.first);
  if (at != parts_.end() && *at == m.first) return;
  parts_.insert(at, m.first);
  parts_ranks_ += m.count;
  for (NodeId child : prepare_.children)
    effects.emplace_back(Send{Endpoint{identity_.me.at.job, child}, m});
  effects.emplace_back(Connect{m});
  if (parts_ranks_ < m.ranks) return;
  table_due_ = absl::InfiniteFuture();
  Enter(NodeStage::kLoading);
  effects.emplace_back(Load{generation_});
}

void Member::On(const RanksLoaded& event, Effects&) {
  if (event.generation == generation_ && stage_ == NodeStage::kLoading) Enter(NodeStage::kReady);
}

void Member::OnMessage(const msg::Go& m, Effects& effects) {
  if (m.generation != generation_ || stage_ != NodeStage::kReady) return;
  Enter(NodeStage::kRunning);
  effects.emplace_back(Run{generation_});
}

void Member::On(const Progress& event, Effects&) {
  if (event.generation != generation_) return;
  finished_ = std::max(finished_, event.finished);
  changed_ |= waits_ != event.waits || no_snapshots_ != event.no_snapshots;
  no_snapshots_ = event.no_snapshots;
  waits_ = event.waits;
  works_ = event.works;
  if (!event.complete) return;
  kill_due_ = absl::InfiniteFuture();
  holdings_.clear();
  Enter(NodeStage::kDone);
}

void Member::On(const RankFailed& event, Effects&) {
  if (event.slot_lost) identity_.slots &= ~(uint64_t{1} << event.local_rank);
  changed_ |= event.slot_lost;
  if (event.generation != generation_ || stage_ == NodeStage::kStopping || Idle(stage_)) return;
  if (failed_local_rank_ < 0) {
    failure_ = event.kind;
    failure_number_ = event.number;
    failed_local_rank_ = event.local_rank;
  }
  table_due_ = absl::InfiniteFuture();
  Enter(NodeStage::kBroken);
}

void Member::On(const RanksFoundBad& event, Effects&) {
  if (event.generation != generation_) return;
  bad_ = event.bad;
  changed_ = true;
}

void Member::On(const Leave&, Effects&) {
  changed_ |= !leaving_;
  leaving_ = true;
}

// ---- checkpoints

void Member::OnMessage(const msg::Save& m, Effects& effects) {
  if (m.generation == generation_ && stage_ == NodeStage::kRunning &&
      (frozen_ < 0 || m.last || m.pause))
    effects.emplace_back(FreezeState{m});
}

void Member::Unfreeze() {
  frozen_ = -1;
  wrote_.reset();
  votes_.clear();
}

// One of an earlier step was on its way when the agent died and its next life found a later one.
void Member::On(const Frozen& event, Effects&) {
  if (event.generation != generation_ || stage_ == NodeStage::kStopped || event.step <= frozen_)
    return;
  Unfreeze();
  frozen_ = event.step;
  changed_ = true;
}

// What was written once is not written again: what was said of it may have got lost.
void Member::OnMessage(const msg::Write& m, Effects& effects) {
  if (m.generation != generation_ || m.step != frozen_ || m.attempt < std::max(1, WrittenAttempt()))
    return;
  if (wrote_.has_value() && m.attempt == wrote_->attempt)
    SendWrote(effects);
  else
    effects.emplace_back(WriteState{m});
}

void Member::On(const Written& event, Effects& effects) {
  if (event.generation != generation_ || event.step != frozen_ || event.attempt <= WrittenAttempt())
    return;
  wrote_ = msg::Wrote{.term = term_,
                      .generation = event.generation,
                      .step = event.step,
                      .attempt = event.attempt,
                      .ok = event.ok,
                      .packed = event.packed};
  if (has_term_) SendWrote(effects);
}

void Member::SendWrote(Effects& effects) {
  wrote_->term = term_;
  effects.emplace_back(Send{leader_, *wrote_});
}

void Member::OnMessage(const msg::Verify& m, Effects& effects) {
  if (m.generation != generation_ || m.step != frozen_ || m.attempt != WrittenAttempt()) return;
  for (msg::Voted& vote : votes_)
    if (vote.file == m.file && vote.attempt == m.attempt) {
      vote.term = term_;
      effects.emplace_back(Send{leader_, vote});
      return;
    }
  effects.emplace_back(VerifyFile{m});
}

void Member::On(const Verified& event, Effects& effects) {
  if (event.generation != generation_ || event.step != frozen_ || event.attempt != WrittenAttempt())
    return;
  for (const msg::Voted& vote : votes_)
    if (vote.file == event.file && vote.attempt == event.attempt) return;
  votes_.push_back({.term = term_,
                    .generation = event.generation,
                    .step = event.step,
                    .attempt = event.attempt,
                    .file = event.file,
                    .ok = event.ok});
  effects.emplace_back(Send{leader_, votes_.back()});
}

void Member::OnMessage(const msg::Settle& m, Effects& effects) {
  if (m.generation != generation_ || m.step != frozen_) return;
  Unfreeze();
  waits_ = false;
  changed_ = true;
  effects.emplace_back(SettleState{m});
}

void Member::OnMessage(const msg::Bye& m, Effects& effects) {
  exited_ = true;
  effects.emplace_back(Exit{m.exit_code});
}

}  // namespace perdure
