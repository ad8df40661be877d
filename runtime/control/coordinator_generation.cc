// From one generation to the next: gather, stop, decide, start, form, go; and the end of the job.
#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/control/coordinator.h"

namespace perdure {
namespace {

// Parts of the table of about this many bytes.
constexpr size_t kTableBytes = size_t{128} << 10;

}  // namespace

// ---- gathering

// Nothing ran before: all nodes of the allocation are waited for. Otherwise the nodes of the
// running generation: when all of them run it still, it is taken over as it is.
void Coordinator::Gather(NodeId node, Effects& effects) {
  Peer& peer = peers_[node];
  if (!std::exchange(peer.gathered, true)) ++gathered_;
  if (!RanBefore()) {
    if (gathered_ == identity_.nodes) Decide(effects);
    return;
  }
  const PlacedLayout& layout = *view_.live.back().layout;
  if (gathered_nodes_.empty()) gathered_nodes_ = NodesOf(layout);
  const std::vector<NodeId>& nodes = gathered_nodes_;
  if (gathered_ < nodes.size()) return;
  for (NodeId member : nodes)
    if (!peers_[member].present) return;
  for (NodeId member : nodes) {
    const msg::Report& r = peers_[member].report;
    if (r.generation != layout.generation || r.stage != NodeStage::kRunning) {
      if (r.generation < layout.generation) Blame(EvidenceKind::kNodeLost, 0, member);
      BeginStop(false, fmt::format("node {} does not run generation {}", member, layout.generation),
                effects);
      return;
    }
  }
  Say(fmt::format("generation {} runs on under a new coordinator", layout.generation), effects);
  TakeOver(layout);
  if (view_.live.back().from_checkpoint) good_at_ = view_.live.back().resumed + kGoodSteps;
  StepIndex finished = 0;
  for (NodeId member : nodes) finished = std::max(finished, peers_[member].report.finished);
  Runs(finished, effects);
  for (NodeId member : members_) {
    peers_[member].addressed = peers_[member].ready = true;
    if (peers_[member].report.frozen >= 0) Drop(member, peers_[member].report.frozen, effects);
  }
}

void Coordinator::Runs(StepIndex finished, Effects& effects) {
  phase_ = Phase::kRunning;
  phase_due_ = absl::InfiniteFuture();
  save_due_ = !options_.keeps_state ? absl::InfiniteFuture()
              : ending_.has_value() ? now_
                                    : now_ + options_.save_every;
  std::vector<NodeId> nodes;
  nodes.reserve(layout_.seats.size());
  for (const Seat& seat : layout_.seats) nodes.push_back(seat.node);
  slow_.Begin(layout_, now_);
  Detect(FailureDetector::GenerationFormed{layout_.generation, std::move(nodes), finished},
         effects);
}

// `layout` is what this coordinator answers for from now on.
void Coordinator::TakeOver(PlacedLayout layout) {
  layout_ = std::move(layout);
  loads_.clear();
  members_ = NodesOf(layout_);
  for (Peer& peer : peers_) peer.member = peer.addressed = peer.ready = peer.done = false;
  for (NodeId member : members_) peers_[member].member = true;
  addressed_ = ready_ = done_ = 0;
  authority_.Elect(members_, now_);
  commit_.emplace(CheckpointCommit::Options{.ranks = static_cast<int>(members_.size())});
  saving_ = settled_ = dropped_ = -1;
}

// ---- stopping

bool Coordinator::StoppedFor(const Peer& peer) const {
  const msg::Report& r = peer.report;
  if (r.generation == 0 && r.stage == NodeStage::kIdle) return true;
  return Idle(r.stage) && peer.stopped == r.generation;
}

// Whether the generation ends because a step of it did.
bool Coordinator::Stalls() const {
  return cause_.has_value() && cause_->kind == EvidenceKind::kHung;
}

void Coordinator::CountStopped(NodeId node) {
  Peer& peer = peers_[node];
  if (peer.stop_counted || !StoppedFor(peer)) return;
  peer.stop_counted = true;
  --stop_missing_;
}

void Coordinator::BeginStop(bool at_boundary, std::string why, Effects& effects) {
  DropSave(effects);
  // What is under way may be in its slot already; notes are of no generation.
  if (!pending_.empty())
    pending_.erase(
        std::remove_if(pending_.begin() + 1, pending_.end(),
                       [](const Pending& p) { return p.entry.kind != EntryKind::kNote; }),
        pending_.end());
  Detect(FailureDetector::GenerationEnded{detector_.generation()}, effects);
  slow_.End();
  Say(fmt::format("stopping generation {}: {}", view_.generation, why), effects);
  phase_ = Phase::kStopping;
  phase_due_ = now_ + options_.stop_max;
  go_due_ = look_again_ = save_due_ = choose_due_ = absl::InfiniteFuture();
  stopping_ = view_.generation;
  stop_at_boundary_ = at_boundary;
  stop_missing_ = 0;
  for (NodeId node = 0; node < identity_.nodes; ++node) {
    Peer& peer = peers_[node];
    peer.stop_counted = !peer.present || peer.stuck || StoppedFor(peer);
    if (peer.stop_counted) continue;
    ++stop_missing_;
    Tell(node,
         msg::Stop{.term = term_,
                   .generation = stopping_,
                   .at_boundary = at_boundary,
                   .stalled = Stalls()},
         effects);
  }
  TryStopped(effects);
}

void Coordinator::OnStopped(NodeId node, const msg::Stopped& m, Effects& effects) {
  Peer& peer = peers_[node];
  if (m.incarnation != peer.report.incarnation || m.generation < peer.report.generation) return;
  peer.stopped = m.generation;
  peer.holdings = m.holdings;
  if (peer.report.generation != m.generation || !Idle(peer.report.stage)) {
    peer.report.generation = m.generation;
    peer.report.stage = NodeStage::kStopped;
  }
  fence_.Stopped(node, m.generation);
  if (phase_ != Phase::kStopping) return;
  CountStopped(node);
  TryStopped(effects);
}

void Coordinator::TryStopped(Effects& effects) {
  // What is in the log decides; a record that is under way is not known yet.
  if (phase_ != Phase::kStopping || stop_missing_ > 0 || !pending_.empty()) return;
  phase_due_ = absl::InfiniteFuture();
  Decide(effects);
}

// ---- forming

void Coordinator::Form(Effects& effects) {
  TakeOver(*view_.live.back().layout);
  loads_ = resume_.checkpoint;
  finished_ = resume_.step;
  cause_.reset();
  bad_ = {};
  phase_ = Phase::kForming;
  phase_due_ = now_ + options_.form_max;
  assignments_.assign(members_.size(), {});
  for (size_t rank = 0; rank < layout_.seats.size(); ++rank) {
    const Seat& seat = layout_.seats[rank];
    assignments_[static_cast<size_t>(MemberIndex(seat.node))].push_back(
        {.local_rank = seat.local_rank, .rank = static_cast<int32_t>(rank)});
  }
  addresses_.assign(layout_.seats.size(), {});
  tables_.clear();
  std::string words = fmt::format("generation {}: {} ranks on {} nodes", layout_.generation,
                                  layout_.seats.size(), members_.size());
  if (options_.keeps_state)
    words += fmt::format(", from {} at step {}",
                         !resume_.from_checkpoint     ? "memory"
                         : resume_.checkpoint.empty() ? "the beginning"
                                                      : "a checkpoint",
                         resume_.step);
  Say(std::move(words), effects);
  if (ending_.has_value() && !WorthSaving(resume_)) {
    BeginStop(false, "the job ends", effects);
    return;
  }
  if (ending_.has_value()) ++last_generations_;
  for (NodeId node : members_)
    if (!peers_[node].present) {
      BeginStop(false, fmt::format("node {} was lost meanwhile", node), effects);
      return;
    }
  for (NodeId node : members_) Tell(node, PrepareFor(node), effects);
}

// Node i hands the table on to the nodes fan_out * (i + 1) + 0, 1, ...; the coordinator to the
// first fan_out.
msg::Prepare Coordinator::PrepareFor(NodeId node) const {
  const auto index = static_cast<size_t>(MemberIndex(node));
  msg::Prepare prepare{.term = term_,
                       .generation = layout_.generation,
                       .shape = layout_.shape,
                       .ranks = assignments_[index],
                       .resume = resume_,
                       .children = {},
                       .gaps = view_.gaps,
                       .begins = view_.begins};
  const auto fan_out = static_cast<size_t>(options_.table_fan_out);
  for (size_t child = fan_out * (index + 1); child < fan_out * (index + 2); ++child)
    if (child < members_.size()) prepare.children.push_back(members_[child]);
  return prepare;
}

void Coordinator::OnPresent(NodeId node, const msg::Present& m, Effects& effects) {
  Peer& peer = peers_[node];
  if (phase_ != Phase::kForming || !peer.member || m.generation != layout_.generation ||
      peer.addressed)
    return;
  const std::vector<msg::Prepare::Assignment>& ranks =
      assignments_[static_cast<size_t>(MemberIndex(node))];
  if (m.addresses.size() != ranks.size()) {
    MembersFail(fmt::format("node {} has {} addresses for {} ranks", node, m.addresses.size(),
                            ranks.size()),
                effects);
    return;
  }
  for (size_t i = 0; i < ranks.size(); ++i)
    addresses_[static_cast<size_t>(ranks[i].rank)] = m.addresses[i];
  peer.addressed = true;
  if (++addressed_ < members_.size()) return;
  effects.emplace_back(AllPresent{layout_.generation, resume_.checkpoint, resume_.step});
  const size_t first = std::min(static_cast<size_t>(options_.table_fan_out), members_.size());
  MakeTables();
  for (size_t i = 0; i < first; ++i) SendTables(members_[i], effects);
}

// Cut into parts, once.
void Coordinator::MakeTables() {
  msg::Table table{.term = term_,
                   .generation = layout_.generation,
                   .ranks = static_cast<int32_t>(addresses_.size()),
                   .first = 0,
                   .count = 0,
                   .packed = {}};
  for (size_t rank = 0; rank < addresses_.size(); ++rank) {
    PackAddress(addresses_[rank], table.packed);
    ++table.count;
    if (table.packed.size() < kTableBytes && rank + 1 < addresses_.size()) continue;
    tables_.push_back(table);
    table.packed.clear();
    table.first += std::exchange(table.count, 0);
  }
  addresses_.clear();
}

void Coordinator::SendTables(NodeId node, Effects& effects) {
  if (phase_ != Phase::kForming || !peers_[node].member) return;
  for (const msg::Table& table : tables_) effects.emplace_back(Send{At(node), table});
}

void Coordinator::OnMemberReport(NodeId node, const msg::Report& before, Effects& effects) {
  Peer& peer = peers_[node];
  const msg::Report& r = peer.report;
  const bool had = before.generation == layout_.generation && before.incarnation != 0;
  if (r.generation < layout_.generation) {
    if (had || phase_ == Phase::kRunning) {
      Blame(EvidenceKind::kNodeLost, 0, node);
      MembersFail(fmt::format("node {} came back without its ranks", node), effects);
    }
    return;
  }
  if (r.generation != layout_.generation) return;
  switch (r.stage) {
    case NodeStage::kBroken:
      effects.emplace_back(Evidence{.node = node, .kind = r.failure, .number = r.failure_number});
      MembersFail(fmt::format("local rank {} of node {} failed: {}", r.failed_local_rank, node,
                              WordsOf(r.failure, r.failure_number)),
                  effects);
      return;
    case NodeStage::kIdle:
    case NodeStage::kStopping:
    case NodeStage::kStopped:
      MembersFail(fmt::format("the ranks of node {} have stopped", node), effects);
      return;
    case NodeStage::kDone:
      if (phase_ != Phase::kRunning || std::exchange(peer.done, true)) return;
      if (++done_ < members_.size()) return;
      BeginStop(false, ending_.has_value() ? "the job ends" : "nothing is left to do", effects);
      LeaveUnsaved(effects);
      ending_ = ending_.value_or(options_.done_code);
      return;
    case NodeStage::kReady:
      if (phase_ == Phase::kForming && !std::exchange(peer.ready, true)) {
        ++ready_;
        TryGo(effects);
      }
      return;
    case NodeStage::kRunning:
      if (phase_ != Phase::kRunning) return;
      if (bad_.gap.bad_step != 0) {
        BeginStop(false, fmt::format("step {} is bad: {}", bad_.gap.bad_step, bad_.why), effects);
        return;
      }
      Detect(FailureDetector::StepProgress{r.generation, node, r.finished, 0}, effects);
      if (phase_ == Phase::kRunning) OnSaving(node, r, effects);
      if (phase_ == Phase::kRunning) HearWork(node, effects);
      return;
    default:
      return;
  }
}

// All are ready; the leases of whatever ran before have ended.
void Coordinator::TryGo(Effects& effects) {
  if (phase_ != Phase::kForming || ready_ < members_.size()) return;
  go_due_ = fence_.Opens();
  if (now_ < go_due_) return;
  go_due_ = absl::InfiniteFuture();
  Runs(resume_.step, effects);
  look_again_ = now_ + options_.resend;
  tables_.clear();
  for (NodeId node : members_)
    Tell(node, msg::Go{.term = term_, .generation = layout_.generation}, effects);
}

// ---- failures

void Coordinator::MembersFail(std::string why, Effects& effects) {
  if (phase_ == Phase::kForming || phase_ == Phase::kRunning)
    BeginStop(false, std::move(why), effects);
}

void Coordinator::OnFound(const FailureDetector::NodeLost& found, Effects& effects) {
  Peer& peer = peers_[found.node];
  if (!peer.present) return;
  peer.present = false;
  changed_at_ = now_;
  Detect(FailureDetector::NodeForgotten{found.node}, effects);
  effects.emplace_back(Evidence{.node = found.node, .kind = EvidenceKind::kNodeLost, .number = 0});
  if (peer.member) Blame(EvidenceKind::kNodeLost, 0, found.node);
  if (phase_ == Phase::kStopping) {
    if (!std::exchange(peer.stop_counted, true)) --stop_missing_;
    StopWithoutBoundary(effects);
    TryStopped(effects);
    return;
  }
  if (peer.member)
    MembersFail(
        fmt::format("node {} is silent for {}", found.node, absl::FormatDuration(found.silent)),
        effects);
}

void Coordinator::OnFound(const FailureDetector::Stalled& found, Effects& effects) {
  // Who waits for a checkpoint does not hang; that one is given up in time. The detector is told
  // when they go on.
  if (phase_ == Phase::kRunning && std::any_of(members_.begin(), members_.end(), [&](NodeId node) {
        return peers_[node].report.waits && peers_[node].report.generation == layout_.generation;
      }))
    return;
  Blame(EvidenceKind::kHung, 0,
        found.suspects.empty() ? std::nullopt : std::optional(found.suspects.front().node));
  std::string names;
  for (const FailureDetector::Suspect& suspect : found.suspects) {
    effects.emplace_back(Evidence{.node = suspect.node, .kind = EvidenceKind::kHung, .number = 0});
    names += fmt::format(" {}", suspect.node);
  }
  if (phase_ == Phase::kRunning)
    BeginStop(false,
              fmt::format("step {} did not end in {}; suspected:{}", found.step + 1,
                          absl::FormatDuration(found.limit), names.empty() ? " nobody" : names),
              effects);
}

// A boundary that somebody is missing at will not come.
void Coordinator::StopWithoutBoundary(Effects& effects) {
  if (phase_ != Phase::kStopping || !std::exchange(stop_at_boundary_, false)) return;
  for (NodeId node = 0; node < identity_.nodes; ++node)
    if (!peers_[node].stop_counted)
      Tell(node, msg::Stop{.term = term_, .generation = stopping_, .at_boundary = false}, effects);
}

void Coordinator::PhaseIsLate(Effects& effects) {
  switch (phase_) {
    case Phase::kGathering:
      if (!RanBefore()) {
        Decide(effects);
        return;
      }
      for (NodeId member : NodesOf(*view_.live.back().layout))
        if (!peers_[member].present) Blame(EvidenceKind::kNodeLost, 0, member);
      BeginStop(false, "nodes of it are missing", effects);
      return;
    case Phase::kStopping:
      if (stop_at_boundary_) {
        StopWithoutBoundary(effects);
        phase_due_ = now_ + options_.stop_max;
        return;
      }
      for (NodeId node = 0; node < identity_.nodes; ++node) {
        Peer& peer = peers_[node];
        if (peer.stop_counted) continue;
        peer.stop_counted = peer.stuck = true;
        effects.emplace_back(
            Evidence{.node = node, .kind = EvidenceKind::kUnkillable, .number = 0});
        Say(fmt::format("node {} does not stop its ranks: done without", node), effects);
      }
      stop_missing_ = 0;
      changed_at_ = now_;
      TryStopped(effects);
      return;
    case Phase::kForming:
      for (NodeId node : members_)
        if (!peers_[node].ready) {
          Blame(EvidenceKind::kStartFailed, 0, node);
          effects.emplace_back(
              Evidence{.node = node, .kind = EvidenceKind::kStartFailed, .number = 0});
        }
      BeginStop(false, fmt::format("{} of {} nodes were ready in time", ready_, members_.size()),
                effects);
      return;
    default:
      return;
  }
}

// ---- the end

void Coordinator::On(const EndJob& event, Effects& effects) {
  if (ending_.has_value() || phase_ == Phase::kEnded) return;
  ending_ = event.exit_code;
  switch (phase_) {
    case Phase::kRunning:
      if (!options_.keeps_state) {
        BeginStop(true, "the job ends", effects);
        return;
      }
      // Behind one that is under way. When the last one is settled the ranks are done.
      save_due_ = now_;
      return;
    case Phase::kForming:
      // Then it runs, saves and ends.
      if (!WorthSaving(resume_)) BeginStop(false, "the job ends", effects);
      return;
    case Phase::kGathering:
      if (!RanBefore()) BeginStop(false, "the job ends", effects);
      return;
    case Phase::kWaiting:
    case Phase::kChoosing:
      BeginStop(false, "the job ends", effects);
      return;
    default:
      return;  // What is under way comes to Decide, Form or Runs.
  }
}

bool Coordinator::EndsWell() const {
  return !ending_.has_value() || *ending_ == 0 || *ending_ == kExitMoreToDo;
}

// Nobody may take it for a good end that what was done last is not kept.
void Coordinator::LeaveUnsaved(Effects& effects) {
  if (!EndsWell() || !options_.keeps_state ||
      std::max(view_.commit_step, StepIndex{0}) >= finished_)
    return;
  // The run was about to leave those steps: the next job comes to the bad one again.
  if (bad_.gap.bad_step != 0) {
    Say(fmt::format("the job ends before the run has gone back for step {}: the next one finds it "
                    "bad again",
                    bad_.gap.bad_step),
        effects);
    return;
  }
  Say(fmt::format("the state of step {} could not be saved, the newest checkpoint is of step {}: "
                  "what lies between will be done again",
                  finished_, view_.commit_step),
      effects);
  ending_ = kExitUnsaved;
}

// END says that nobody steps any more, and that nothing of the job is done behind it.
void Coordinator::TryEnd(Effects& effects) {
  if (phase_ == Phase::kEnded || Posted(EntryKind::kEnd)) return;
  phase_ = Phase::kEnding;
  phase_due_ = look_again_ = absl::InfiniteFuture();
  go_due_ = fence_.Opens();
  if (now_ < go_due_) return;
  go_due_ = absl::InfiniteFuture();
  if (!std::exchange(winding_up_, true)) effects.emplace_back(WindUp{});
  if (!wound_up_) return;
  Post({.kind = EntryKind::kEnd,
        .generation = view_.generation,
        .step = std::max(view_.commit_step, StepIndex{0}),
        .exit_code = *ending_},
       0, effects);
}

void Coordinator::On(const WoundUp&, Effects& effects) {
  if (!winding_up_ || std::exchange(wound_up_, true)) return;
  if (phase_ == Phase::kEnding) TryEnd(effects);
}

}  // namespace perdure
