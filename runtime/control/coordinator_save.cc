// Checkpoints: asks the ranks to freeze their state, and leads CheckpointCommit through it.
#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/coordinator.h"

namespace perdure {

int Coordinator::MemberIndex(NodeId node) const {
  return static_cast<int>(std::lower_bound(members_.begin(), members_.end(), node) -
                          members_.begin());
}

void Coordinator::On(const SaveNow&, Effects&) {
  if (options_.keeps_state && phase_ == Phase::kRunning && saving_ < 0) save_due_ = now_;
}

void Coordinator::SaveTimers(Effects& effects) {
  if (phase_ != Phase::kRunning) return;
  if (now_ >= save_due_) {
    // That the job is to end is said beside a save too: ranks that freeze by themselves may have
    // the next state in their hands before this one is settled, again and again. Likewise that they
    // are to wait, unless they do.
    const bool beside = ending_.has_value() || pausing_;
    const bool said = saving_ < 0 || ending_.has_value() || (pausing_ && !AllWait());
    save_due_ = saving_ < 0 || beside ? now_ + options_.resend : absl::InfiniteFuture();
    if (said)
      effects.emplace_back(
          Send{At(layout_.seats.front().node), msg::Save{.term = term_,
                                                         .generation = layout_.generation,
                                                         .after = std::max(Past(), saving_),
                                                         .last = ending_.has_value(),
                                                         .pause = pausing_}});
  }
  // Unless its COMMIT may be in the log already.
  if (now_ >= save_give_up_) {
    save_give_up_ = absl::InfiniteFuture();
    if (Posted(EntryKind::kCommit)) return;
    Say("a checkpoint took too long and was given up", effects);
    settled_ = std::exchange(saving_, -1);
    effects.emplace_back(SaveOver{layout_.generation, settled_, false});
    commit_.emplace(CheckpointCommit::Options{.ranks = static_cast<int>(members_.size())});
    AfterSave(true, effects);
  }
}

// The members are told that the state of settled_ may go. A job that is to end has one more saved,
// the newest, unless this was the last already: then there is nobody to freeze it. Who could not
// write for long will not now.
void Coordinator::AfterSave(bool given_up, Effects& effects) {
  save_give_up_ = absl::InfiniteFuture();
  save_due_ = ending_.has_value() ? now_ : now_ + options_.save_every;
  for (NodeId node : members_) TellSettled(node, settled_, effects);
  if (!given_up || !ending_.has_value()) return;
  LeaveUnsaved(effects);
  BeginStop(true, "the job ends", effects);
}

// No checkpoint will be made of a state up to this step.
StepIndex Coordinator::Past() const { return std::max({settled_, dropped_, view_.commit_step}); }

// Of a state that was not frozen for this coordinator, or is settled.
void Coordinator::Drop(NodeId node, StepIndex step, Effects& effects) {
  dropped_ = std::max(dropped_, step);
  TellSettled(node, step, effects);
}

void Coordinator::TellSettled(NodeId node, StepIndex step, Effects& effects) {
  Tell(node,
       msg::Settle{.term = term_,
                   .generation = layout_.generation,
                   .step = step,
                   .committed = std::find(view_.commits.begin(), view_.commits.end(), step) !=
                                view_.commits.end()},
       effects);
}

// Of a generation that is over.
void Coordinator::DropSave(Effects& effects) {
  if (saving_ >= 0) effects.emplace_back(SaveOver{layout_.generation, saving_, false});
  commit_.reset();
  saving_ = -1;
  pausing_ = false;
  parts_.clear();
  save_due_ = save_give_up_ = absl::InfiniteFuture();
  for (Peer& peer : peers_) {
    peer.verifying.clear();
    peer.packed.clear();
  }
}

// Whether no rank goes on before the state that is saved is settled.
bool Coordinator::AllWait() const {
  return std::all_of(members_.begin(), members_.end(), [this](NodeId node) {
    const msg::Report& r = peers_[node].report;
    return r.generation == layout_.generation && r.waits && r.frozen == saving_ &&
           r.finished == saving_;
  });
}

// A member is past the step that is saved and does not have it: a coordinator before this one told
// it to let go. (Who finishes a step has said what he froze after those before.)
bool Coordinator::NeverWhole(const msg::Report& report) const {
  return saving_ >= 0 && report.frozen != saving_ && report.finished > saving_ &&
         !Posted(EntryKind::kCommit);
}

void Coordinator::LetGo(Effects& effects) {
  const StepIndex step = std::exchange(saving_, -1);
  effects.emplace_back(SaveOver{layout_.generation, step, false});
  commit_.emplace(CheckpointCommit::Options{.ranks = static_cast<int>(members_.size())});
  save_give_up_ = absl::InfiniteFuture();
  save_due_ = now_;
  for (NodeId node : members_) Drop(node, step, effects);
}

// A member's report says what state it froze, because it was asked or because it is due.
void Coordinator::OnSaving(NodeId node, const msg::Report& report, Effects& effects) {
  if (!commit_.has_value()) return;
  if (NeverWhole(report)) LetGo(effects);
  if (report.frozen < 0) return;
  Peer& peer = peers_[node];
  const bool may_tell = now_ >= peer.told + options_.resend;
  // Settled already, or frozen for a coordinator before this one: what one node was told to drop
  // will never be whole, nor what others are past.
  if (report.frozen <= Past() || report.frozen < saving_) {
    if (may_tell) Drop(node, report.frozen, effects);
    return;
  }
  if (saving_ < 0) {
    saving_ = report.frozen;
    save_due_ = ending_.has_value() || pausing_ ? now_ + options_.resend : absl::InfiniteFuture();
    save_give_up_ = now_ + options_.save_max;
  }
  if (report.frozen != saving_) return;
  DoCommit(CheckpointCommit::Frozen{MemberIndex(node)}, effects);
  if (commit_->attempt() == 0 || !may_tell) return;
  if (peer.wrote == commit_->attempt()) {
    for (int32_t file : peer.verifying) TellVerify(node, file, effects);
  } else {
    Tell(node,
         msg::Write{.term = term_,
                    .generation = layout_.generation,
                    .step = saving_,
                    .attempt = commit_->attempt()},
         effects);
  }
}

void Coordinator::OnWrote(NodeId node, const msg::Wrote& m, Effects& effects) {
  Peer& peer = peers_[node];
  if (!commit_.has_value() || !peer.member || m.generation != layout_.generation ||
      m.step != saving_ || m.attempt != commit_->attempt() || m.attempt == peer.wrote)
    return;
  peer.wrote = m.attempt;
  peer.packed = m.packed;
  DoCommit(CheckpointCommit::Written{MemberIndex(node), m.ok}, effects);
}

void Coordinator::On(const Measured& event, Effects& effects) {
  if (commit_.has_value() && event.generation == layout_.generation && event.step == saving_)
    DoCommit(CheckpointCommit::Measured{event.ok}, effects);
}

void Coordinator::On(const PartsJoined& event, Effects& effects) {
  if (!commit_.has_value() || event.generation != layout_.generation || event.step != saving_ ||
      event.attempt != commit_->attempt())
    return;
  const bool known = std::all_of(event.readers.begin(), event.readers.end(), [&](int reader) {
    return reader >= 0 && static_cast<size_t>(reader) < members_.size();
  });
  const bool ok = event.ok && known && event.parts.size() == event.readers.size();
  if (ok) parts_ = event.parts;
  DoCommit(CheckpointCommit::Joined{event.readers, ok}, effects);
}

void Coordinator::OnVoted(NodeId node, const msg::Voted& m, Effects& effects) {
  Peer& peer = peers_[node];
  if (!commit_.has_value() || m.generation != layout_.generation || m.step != saving_ ||
      m.attempt != commit_->attempt() || std::erase(peer.verifying, m.file) == 0)
    return;
  DoCommit(CheckpointCommit::Voted{m.file, m.ok}, effects);
}

void Coordinator::DoCommit(const CheckpointCommit::Event& event, Effects& effects) {
  if (!commit_.has_value()) return;
  CheckpointCommit::Effects done;
  commit_->Step(event, done);
  for (const CheckpointCommit::Effect& effect : done)
    std::visit([&](const auto& e) { OnCommit(e, effects); }, effect);
}

void Coordinator::OnCommit(const CheckpointCommit::Measure&, Effects& effects) {
  effects.emplace_back(MeasureRoom{layout_.generation, saving_});
}

void Coordinator::OnCommit(const CheckpointCommit::Write& e, Effects& effects) {
  for (NodeId node : members_) {
    peers_[node].verifying.clear();
    peers_[node].wrote = 0;
    peers_[node].packed.clear();
    Tell(
        node,
        msg::Write{
            .term = term_, .generation = layout_.generation, .step = saving_, .attempt = e.attempt},
        effects);
  }
}

void Coordinator::OnCommit(const CheckpointCommit::Join&, Effects& effects) {
  JoinParts join{layout_.generation, saving_, commit_->attempt(), {}};
  for (NodeId node : members_) join.packed.push_back(std::move(peers_[node].packed));
  effects.emplace_back(std::move(join));
}

void Coordinator::OnCommit(const CheckpointCommit::Verify& e, Effects& effects) {
  const NodeId node = members_[static_cast<size_t>(e.rank)];
  peers_[node].verifying.push_back(e.file);
  TellVerify(node, e.file, effects);
}

void Coordinator::TellVerify(NodeId node, int32_t file, Effects& effects) {
  Tell(node,
       msg::Verify{.term = term_,
                   .generation = layout_.generation,
                   .step = saving_,
                   .attempt = commit_->attempt(),
                   .file = file,
                   .packed = parts_[static_cast<size_t>(file)]},
       effects);
}

void Coordinator::OnCommit(const CheckpointCommit::Publish&, Effects& effects) {
  Post({.kind = EntryKind::kCommit, .generation = layout_.generation, .step = saving_},
       commit_->attempt(), effects);
}

void Coordinator::OnCommit(const CheckpointCommit::Settle& e, Effects& effects) {
  const bool paused = pausing_ && e.committed && AllWait();
  settled_ = std::exchange(saving_, -1);
  if (!e.committed) effects.emplace_back(SaveOver{layout_.generation, settled_, false});
  Say(fmt::format("checkpoint of step {} {}", settled_, e.committed ? "committed" : "given up"),
      effects);
  // Nobody is told that it is settled, so nobody goes on.
  paused_ = paused;
  if (paused) ConsiderChange(effects);
  paused_ = false;
  if (phase_ != Phase::kRunning) return;
  AfterSave(false, effects);
  if (pausing_ && e.committed) save_due_ = now_;  // It was one that not all waited with.
}

}  // namespace perdure
