#include "runtime/control/coordinator.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

Coordinator::Coordinator(const ControlOptions& options, const LayoutRule& rule,
                         const Identity& identity, LogView view, absl::Time now)
    : options_(options),
      rule_(rule),
      identity_(identity),
      view_(std::move(view)),
      now_(now),
      authority_(options, identity.nodes),
      fence_(options, identity.nodes),
      detector_(DetectorOptions(options)),
      slow_(SlowRanksOptions(options)),
      peers_(identity.nodes),
      changed_at_(now) {}

void Coordinator::Step(absl::Time now, const Event& event, Effects& effects) {
  now_ = now;
  if (phase_ == Phase::kResigned) return;
  if (term_ == 0 && phase_ == Phase::kClaiming && pending_.empty()) {
    Post({.kind = EntryKind::kLead, .generation = view_.generation}, 0, effects);
  }
  std::visit([&](const auto& e) { On(e, effects); }, event);
  Timers(effects);
}

absl::Time Coordinator::NextDeadline() const {
  if (phase_ == Phase::kResigned) return absl::InfiniteFuture();
  return std::min({phase_due_, append_due_, poll_due_, look_again_, go_due_, choose_due_, save_due_,
                   save_give_up_, retry_due_, detector_.NextDeadline()});
}

void Coordinator::Timers(Effects& effects) {
  Detect(FailureDetector::Tick{}, effects);
  if (now_ >= append_due_) IssueAppend(effects);
  if (now_ >= poll_due_) {
    poll_due_ = now_ + options_.poll;
    effects.emplace_back(ReadLog{view_.next_slot, now_});
  }
  if (now_ >= retry_due_) RetrySlow();
  if (now_ >= look_again_) {
    look_again_ = absl::InfiniteFuture();
    ConsiderChange(effects);
  }
  if (now_ >= phase_due_) {
    phase_due_ = absl::InfiniteFuture();
    PhaseIsLate(effects);
  }
  if (now_ >= choose_due_) AskWhichCheckpoint(effects);
  if (now_ >= pulse_due_) LeavesPulse(effects);
  if (now_ >= go_due_) phase_ == Phase::kEnding ? TryEnd(effects) : TryGo(effects);
  SaveTimers(effects);
}

// Reports come all the time where there is anybody to lead: it needs no deadline of its own. Who is
// followed by less than half may be the one that is cut off.
void Coordinator::LeavesPulse(Effects& effects) {
  if (phase_ == Phase::kClaiming || phase_ == Phase::kEnded || phase_ == Phase::kResigned) return;
  pulse_due_ = now_ + PulseEvery(options_);
  const auto answers = [this](NodeId node, absl::Duration within) {
    return peers_[node].present && absl::FromUnixNanos(peers_[node].report.echo) > now_ - within;
  };
  bool all = true;
  for (NodeId node = 0; node < identity_.nodes && all; ++node)
    all = answers(node, options_.leader_silence / 2);
  if (all) return;
  std::vector<NodeId> voters;
  if (RanBefore())
    voters = NodesOf(*view_.live.back().layout);
  else
    for (NodeId node = 0; node < identity_.nodes; ++node) voters.push_back(node);
  const auto followers = std::count_if(voters.begin(), voters.end(), [&](NodeId node) {
    return answers(node, options_.lease_support);
  });
  if (2 * followers > static_cast<int64_t>(voters.size()))
    effects.emplace_back(LeavePulse{{.term = term_, .count = ++pulses_}});
}

void Coordinator::Say(std::string text, Effects& effects) {
  effects.emplace_back(Remark{std::move(text)});
}

void Coordinator::Resigns(std::string reason, Effects& effects) {
  phase_ = Phase::kResigned;
  effects.emplace_back(Resign{std::move(reason)});
}

// ---- the log

void Coordinator::Post(LogEntry entry, int32_t attempt, Effects& effects) {
  entry.author = identity_.me;
  entry.id = uint64_t{identity_.number} << 32 | ++ids_;
  pending_.push_back({.entry = std::move(entry), .attempt = attempt});
  if (pending_.size() == 1) IssueAppend(effects);
}

// A record that could not be written is tried again under the same id: the first try may still be
// on its way.
void Coordinator::IssueAppend(Effects& effects) {
  append_due_ = absl::InfiniteFuture();
  Pending& next = pending_.front();
  next.entry.slot = view_.next_slot;
  if (next.entry.kind == EntryKind::kNote) next.entry.generation = view_.generation;
  next.asked = std::min(next.asked, now_);
  ++next.tries;
  effects.emplace_back(Append{next.entry, next.attempt});
}

void Coordinator::On(const Appended& event, Effects& effects) {
  if (pending_.empty()) return;
  if (!event.entry.has_value()) {
    append_due_ = now_ + options_.append_retry;
    return;
  }
  if (event.entry->slot != view_.next_slot) return;
  const LogEntry& mine = pending_.front().entry;
  if (event.entry->author != mine.author || event.entry->id != mine.id) {
    Resigns(fmt::format("slot {} of the run log is job {}'s, node {}", event.entry->slot,
                        event.entry->author.at.job, event.entry->author.at.node),
            effects);
    return;
  }
  const LogEntry entry = *event.entry;
  // When the record got its slot there was no other; that was not before it was first asked for.
  authority_.LogRead(pending_.front().asked);
  const uint64_t note = mine.note;
  pending_.pop_front();
  view_.Absorb(entry);
  const bool more = !pending_.empty();
  Won(entry, note, effects);
  if (more && !pending_.empty()) IssueAppend(effects);
  TryStopped(effects);
}

// A try before this one may still be executed: then the record is not given up.
void Coordinator::On(const Unpublished&, Effects& effects) {
  if (pending_.empty()) return;
  const EntryKind kind = pending_.front().entry.kind;
  if (kind != EntryKind::kCommit && kind != EntryKind::kNote) return;
  if (pending_.front().tries > 1) {
    append_due_ = now_ + options_.append_retry;
    return;
  }
  pending_.pop_front();
  if (kind == EntryKind::kCommit) DoCommit(CheckpointCommit::Published{.ok = false}, effects);
  if (!pending_.empty()) IssueAppend(effects);
  TryStopped(effects);
}

bool Coordinator::Posted(EntryKind kind) const {
  return std::any_of(pending_.begin(), pending_.end(),
                     [&](const Pending& p) { return p.entry.kind == kind; });
}

void Coordinator::On(const Note& event, Effects& effects) {
  if (phase_ != Phase::kEnded && !Posted(EntryKind::kEnd))
    Post({.kind = EntryKind::kNote, .layout = {}, .failure = {}, .note = event.tag}, 0, effects);
}

void Coordinator::Won(const LogEntry& entry, uint64_t note, Effects& effects) {
  switch (entry.kind) {
    case EntryKind::kLead: {
      term_ = entry.slot;
      poll_due_ = now_ + options_.poll;
      fence_.Inherit(view_.live, identity_.me.at.job, now_);
      phase_ = Phase::kGathering;
      phase_due_ = now_ + (RanBefore() ? options_.gather_again : options_.gather);
      finished_ = RanBefore() ? view_.live.back().resumed : 0;
      for (const auto& [node, times] : view_.slow)
        if (node < identity_.nodes) Avoid(node, times);
      for (NodeId node = 0; node < identity_.nodes; ++node)
        effects.emplace_back(Send{At(node), msg::Announce{.term = term_}});
      return;
    }
    case EntryKind::kStart:
      if (entry.gaps.size() > 0 && entry.gaps.back() == bad_.gap)
        effects.emplace_back(WentBack{entry.generation, bad_});
      Form(effects);
      return;
    case EntryKind::kCommit:
      effects.emplace_back(SaveOver{entry.generation, entry.step, true});
      DoCommit(CheckpointCommit::Published{.ok = true}, effects);
      return;
    case EntryKind::kEnd:
      phase_ = Phase::kEnded;
      phase_due_ = poll_due_ = absl::InfiniteFuture();
      for (NodeId node = 0; node < identity_.nodes; ++node)
        if (peers_[node].present)
          effects.emplace_back(
              Send{At(node), msg::Bye{.term = term_, .exit_code = entry.exit_code}});
      effects.emplace_back(Finished{entry.exit_code});
      return;
    case EntryKind::kNote:
      effects.emplace_back(Noted{note});
      return;
  }
}

// A foreign record that is there: somebody else leads. None: nobody did when this was asked.
void Coordinator::On(const LogRead& event, Effects& effects) {
  if (!event.entries.has_value() || phase_ == Phase::kClaiming || phase_ == Phase::kEnded) return;
  for (const LogEntry& entry : *event.entries)
    if (entry.author != identity_.me) {
      Resigns(fmt::format("slot {} of the run log is job {}'s, node {}", entry.slot,
                          entry.author.at.job, entry.author.at.node),
              effects);
      return;
    }
  authority_.LogRead(event.asked);
}

// ---- members

void Coordinator::On(const Received& event, Effects& effects) {
  if (const auto* probe = std::get_if<msg::Probe>(&event.message)) {
    if (probe->term == term_ && phase_ != Phase::kClaiming && phase_ != Phase::kEnded)
      effects.emplace_back(Send{event.from, msg::Leading{.term = term_}});
    return;
  }
  if (event.from.job != identity_.me.at.job || event.from.node >= identity_.nodes ||
      phase_ == Phase::kClaiming)
    return;
  const NodeId from = event.from.node;
  if (const auto* report = std::get_if<msg::Report>(&event.message)) {
    if (report->term == term_) OnReport(from, *report, effects);
    return;
  }
  if (!peers_[from].present) return;
  if (const auto* stopped = std::get_if<msg::Stopped>(&event.message)) {
    if (stopped->term == term_) OnStopped(from, *stopped, effects);
  } else if (const auto* present = std::get_if<msg::Present>(&event.message)) {
    if (present->term == term_) OnPresent(from, *present, effects);
  } else if (const auto* need = std::get_if<msg::NeedTable>(&event.message)) {
    if (need->term == term_ && need->generation == layout_.generation) SendTables(from, effects);
  } else if (const auto* voted = std::get_if<msg::Voted>(&event.message)) {
    if (voted->term == term_) OnVoted(from, *voted, effects);
  } else if (const auto* wrote = std::get_if<msg::Wrote>(&event.message)) {
    if (wrote->term == term_) OnWrote(from, *wrote, effects);
  }
}

void Coordinator::On(const Closed& event, Effects& effects) {
  if (event.node < identity_.nodes && peers_[event.node].present)
    Detect(FailureDetector::ConnectionClosed{event.node}, effects);
}

void Coordinator::On(const Drain& event, Effects&) {
  if (event.node >= identity_.nodes || peers_[event.node].drained == event.drained) return;
  peers_[event.node].drained = event.drained;
  changed_at_ = now_;
  look_again_ = std::min(look_again_, now_ + options_.resend);
}

// False: an older one, or of a life that is over.
bool Coordinator::Hear(NodeId node, const msg::Report& report) {
  const msg::Report& last = peers_[node].report;
  return report.incarnation != last.incarnation || report.sequence > last.sequence;
}

void Coordinator::OnReport(NodeId node, const msg::Report& report, Effects& effects) {
  if (phase_ == Phase::kEnded) {
    effects.emplace_back(Send{At(node), msg::Bye{.term = term_, .exit_code = *ending_}});
    return;
  }
  if (!Hear(node, report)) return;
  Peer& peer = peers_[node];
  const msg::Report before = std::exchange(peer.report, report);
  const bool returned = !peer.present || before.incarnation != report.incarnation;
  const bool changed = returned || before.slots != report.slots || before.leaving != report.leaving;
  if (!peer.present) {
    peer.present = true;
    Detect(FailureDetector::NodeWatched{node}, effects);
  }
  Detect(FailureDetector::Heard{node}, effects);
  fence_.Joined(node, now_);
  authority_.Answered(node, absl::FromUnixNanos(report.echo), now_);
  if (before.incarnation != report.incarnation) {
    peer.stopped.reset();
    peer.holdings.clear();
    peer.wrote = 0;
  }
  if (changed) changed_at_ = now_;
  Advance(node, before, effects);
  if (phase_ == Phase::kResigned) return;
  AnswerReport(node, effects);
  Reconcile(node, effects);
  if (changed) look_again_ = std::min(look_again_, now_ + options_.resend);
}

// The lease of a node whose ranks run what is to run.
void Coordinator::AnswerReport(NodeId node, Effects& effects) {
  const Peer& peer = peers_[node];
  msg::Answer answer{.term = term_,
                     .sequence = peer.report.sequence,
                     .stamp = absl::ToUnixNanos(now_),
                     .generation = layout_.generation,
                     .lease = 0};
  if (phase_ == Phase::kRunning && peer.member && peer.report.generation == layout_.generation) {
    const absl::Duration grant = authority_.Grant(now_);
    if (grant > absl::ZeroDuration()) {
      answer.lease = absl::ToInt64Nanoseconds(grant);
      fence_.Granted(node, layout_.generation, now_ + OthersWait(options_, grant));
    }
  }
  effects.emplace_back(Send{At(node), answer});
}

void Coordinator::Tell(NodeId node, ControlMessage message, Effects& effects) {
  peers_[node].told = now_;
  effects.emplace_back(Send{At(node), std::move(message)});
}

// Says again what a node has not done, or does not know that it should.
void Coordinator::Reconcile(NodeId node, Effects& effects) {
  Peer& peer = peers_[node];
  if (now_ < peer.told + options_.resend) return;
  const msg::Report& r = peer.report;
  const bool holds = r.generation != 0 && !Idle(r.stage);
  if (phase_ == Phase::kStopping) {
    if (!StoppedFor(peer))
      Tell(node,
           msg::Stop{.term = term_,
                     .generation = stopping_,
                     .at_boundary = stop_at_boundary_ && r.generation == stopping_,
                     .stalled = Stalls()},
           effects);
  } else if (phase_ == Phase::kForming || phase_ == Phase::kRunning) {
    const bool current = r.generation == layout_.generation;
    if (holds && (!peer.member || r.generation < layout_.generation))
      Tell(node, msg::Stop{.term = term_, .generation = r.generation, .at_boundary = false},
           effects);
    else if (peer.member && r.generation < layout_.generation)
      Tell(node, PrepareFor(node), effects);
    else if (peer.member && current && r.stage == NodeStage::kPresent && !peer.addressed)
      Tell(node, PrepareFor(node), effects);
    else if (peer.member && current && r.stage == NodeStage::kReady && phase_ == Phase::kRunning)
      Tell(node, msg::Go{.term = term_, .generation = layout_.generation}, effects);
  } else if (holds && phase_ != Phase::kGathering) {
    Tell(node, msg::Stop{.term = term_, .generation = r.generation, .at_boundary = false}, effects);
  }
}

// What a node's new report means for the phase.
void Coordinator::Advance(NodeId node, const msg::Report& before, Effects& effects) {
  Peer& peer = peers_[node];
  const msg::Report& r = peer.report;
  if (Idle(r.stage)) {
    // Who is idle runs nothing; but it may not have heard yet what it is to run.
    const Generation others = peer.member && layout_.generation == view_.generation
                                  ? view_.generation - 1
                                  : view_.generation;
    fence_.Stopped(node,
                   r.stage == NodeStage::kIdle ? std::max(r.generation, others) : r.generation);
    if (peer.stuck) {
      peer.stuck = false;
      changed_at_ = now_;
    }
  }
  Learn(node, before, effects);
  switch (phase_) {
    case Phase::kGathering:
      Gather(node, effects);
      return;
    case Phase::kStopping:
      if (r.stage == NodeStage::kBroken) StopWithoutBoundary(effects);
      CountStopped(node);
      TryStopped(effects);
      return;
    case Phase::kForming:
    case Phase::kRunning:
      if (peer.member) OnMemberReport(node, before, effects);
      return;
    case Phase::kWaiting:
      look_again_ = now_;
      return;
    default:
      return;
  }
}

// ---- failures

void Coordinator::Detect(const FailureDetector::Event& event, Effects& effects) {
  detector_.Step(now_, event, found_);
  if (found_.empty()) return;
  FailureDetector::Effects found;
  found.swap(found_);
  for (const FailureDetector::Effect& effect : found)
    std::visit([&](const auto& e) { OnFound(e, effects); }, effect);
}

}  // namespace perdure
