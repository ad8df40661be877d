// What comes after a generation: with which layout the next one begins, and with which state; or
// that none does.
#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/resume.h"

namespace perdure {
namespace {

// A store reads files: it gets more time than a member.
constexpr int64_t kChooseResends = 10;

}  // namespace

// ---- why a generation ended

// Of the newest generation, whoever started it.
void Coordinator::Learn(NodeId node, const msg::Report& before, Effects& effects) {
  const msg::Report& r = peers_[node].report;
  if (r.generation != view_.generation || !RanBefore()) return;
  finished_ = std::max(finished_, r.finished);
  FindBad(r.bad);
  if (phase_ == Phase::kRunning) {
    if (before.generation == r.generation && before.waits && !r.waits)
      Detect(FailureDetector::StoodStill{r.generation}, effects);
    if (good_at_.has_value() && finished_ >= *good_at_) {
      good_at_.reset();
      effects.emplace_back(GoodSteps{layout_.generation});
    }
  }
  if (r.failed_local_rank < 0) return;
  Blame(r.failure, r.failure_number, node);
  if (r.failure == EvidenceKind::kTrainingFailed) ending_ = ending_.value_or(kExitPersonMustLook);
  if (r.failure == EvidenceKind::kBadCheckpoint && r.generation == layout_.generation &&
      !loads_.empty()) {
    last_is_bad_ = true;
    last_checkpoint_ = loads_;
  }
}

// All ranks come to the same: who says it first is believed. A decision that is under way is not
// changed by it: the next generation comes to the same step and finds the same.
void Coordinator::FindBad(const BadStep& bad) {
  const bool decided = phase_ == Phase::kChoosing || phase_ == Phase::kStarting;
  if (bad.gap.bad_step == 0 || bad_.gap.bad_step != 0 || decided ||
      !CheckGaps(WithGap(view_.gaps, bad.gap)).ok())
    return;
  bad_ = bad;
}

// Of the next generation.
Gaps Coordinator::NextGaps() const {
  return bad_.gap.bad_step == 0 ? view_.gaps : WithGap(view_.gaps, bad_.gap);
}

// What fails on one node breaks the connections of others, who may be heard first; and who is slow
// may fail while the others come to a boundary.
void Coordinator::Blame(EvidenceKind kind, int64_t number, std::optional<NodeId> node) {
  const auto gives_way = [](EvidenceKind of) {
    return of == EvidenceKind::kNetworkError || of == EvidenceKind::kSlow;
  };
  const bool first = !cause_.has_value() || (gives_way(*cause_->kind) && !gives_way(kind));
  if (first) cause_ = Failure{.kind = kind, .number = number, .step = 0, .node = node};
}

bool Coordinator::RanBefore() const {
  return !view_.live.empty() && view_.live.back().job == identity_.me.at.job;
}

Failure Coordinator::Ended() const {
  if (!RanBefore()) return {};
  Failure failure = cause_.value_or(Failure{});
  failure.step = finished_;
  return failure;
}

// Whether the job ends because it fails at the same step again and again.
bool Coordinator::GoesNowhere(Effects& effects) {
  std::vector<FailedGeneration> failures = view_.failures;
  AddFailure({.generation = view_.generation, .failure = Ended()}, failures);
  // Steps that the run leaves are not tried again.
  std::erase_if(failures, [gaps = NextGaps(), this](const FailedGeneration& f) {
    return !SameLine(view_.gaps, gaps, f.failure.step + 1);
  });
  ProgressVerdict verdict = JudgeProgress(failures);
  if (!verdict.words.empty() && verdict != verdict_) Say(verdict.words, effects);
  verdict_ = std::move(verdict);
  for (NodeId node : verdict_.drains)
    if (node < identity_.nodes) peers_[node].drained = true;
  return verdict_.ends;
}

// ---- deciding

Situation Coordinator::Survey() const {
  Situation situation;
  for (NodeId node = 0; node < identity_.nodes; ++node) {
    const Peer& peer = peers_[node];
    if (!peer.present || peer.stuck || peer.report.leaving) continue;
    NodeOffer offer{.node = node,
                    .slots = {},
                    .domain = peer.report.domain,
                    .drained = peer.drained,
                    .avoided = peer.avoided,
                    .coordinates = node == identity_.me.at.node};
    for (int32_t slot = 0; slot < static_cast<int32_t>(kNodeRanksMax); ++slot)
      if ((peer.report.slots >> slot & 1) != 0) offer.slots.push_back(slot);
    situation.offers.push_back(std::move(offer));
  }
  if (layout_.generation != 0)
    situation.current = layout_;
  else if (RanBefore())
    situation.current = *view_.live.back().layout;
  situation.now = now_;
  situation.unchanged_since = changed_at_;
  situation.waiting_since = waiting_since_;
  return situation;
}

void Coordinator::Decide(Effects& effects) {
  const bool nowhere = GoesNowhere(effects);
  if (nowhere) ending_ = ending_.value_or(kExitPersonMustLook);
  if (ending_.has_value() && (nowhere || !WorthSaving(NewestInMemory()))) {
    LeaveUnsaved(effects);
    TryEnd(effects);
    return;
  }
  Situation situation = Survey();
  const std::string before = std::move(decision_.words);
  decision_ = DecideLayout(rule_, situation);
  look_again_ = decision_.look_again;
  // Each report asks again; it is told once for each change of the nodes.
  const bool waits = decision_.action == LayoutAction::kWait;
  const bool told = waits ? phase_ == Phase::kWaiting && situation.offers == waits_with_
                          : phase_ == Phase::kChoosing && decision_.words == before;
  if (!told) Say(decision_.words, effects);
  if (waits) waits_with_ = std::move(situation.offers);
  // A job that is to end waits for no nodes; and keeps its code.
  const bool ends = decision_.action == LayoutAction::kEnd;
  if (ends || (waits && ending_.has_value())) {
    if (ending_.has_value()) LeaveUnsaved(effects);
    ending_ = ending_.value_or(decision_.exit_code);
    TryEnd(effects);
    return;
  }
  if (waits) {
    phase_ = Phase::kWaiting;
    phase_due_ = absl::InfiniteFuture();
    waiting_since_ = std::min(waiting_since_, now_);
    chosen_.reset();
    return;
  }
  waiting_since_ = absl::InfiniteFuture();
  look_again_ = absl::InfiniteFuture();
  Choose(effects);
}

// The state that memory holds whole; from_checkpoint: none, or none that is to be used.
Resume Coordinator::NewestInMemory() const {
  std::vector<NodeHoldings> holdings;
  for (NodeId node = 0; node < identity_.nodes; ++node)
    if (peers_[node].present && !peers_[node].stuck && !peers_[node].holdings.empty())
      holdings.push_back({node, &peers_[node].holdings});
  std::vector<LogView::Live> trusted = view_.live;
  std::erase_if(trusted, [&](const LogView::Live& live) {
    return live.layout->generation <= verdict_.distrusted;
  });
  const Gaps gaps = NextGaps();
  return ChooseResume(trusted, holdings, view_.NewestCheckpoint(gaps), gaps);
}

// A job that is to end well: whether it is worth one more generation, because memory holds what no
// checkpoint does. What could not be written will not be now, training that failed fails again, as
// a bad step is bad again, and nothing is tried for ever.
bool Coordinator::WorthSaving(const Resume& resume) const {
  const bool failed = cause_.has_value() && (cause_->kind == EvidenceKind::kStorageError ||
                                             cause_->kind == EvidenceKind::kTrainingFailed);
  const bool in_vain = failed || bad_.gap.bad_step != 0;
  // Than any checkpoint, and than what every run begins with.
  const bool newer = !resume.from_checkpoint && resume.step > 0;
  return EndsWell() && !in_vain && last_generations_ < kFailuresMax && newer;
}

// The state: from memory if it serves, otherwise from a checkpoint, which the store knows.
void Coordinator::Choose(Effects& effects) {
  Resume resume = NewestInMemory();
  if (!resume.from_checkpoint) {
    Start(std::move(resume), std::nullopt, effects);
    return;
  }
  if (!chosen_.has_value()) {
    phase_ = Phase::kChoosing;
    phase_due_ = absl::InfiniteFuture();
    ++question_;
    AskWhichCheckpoint(effects);
    return;
  }
  resume.step = chosen_->step.value_or(0);
  resume.checkpoint = chosen_->packed;
  Start(std::move(resume), chosen_->step, effects);
}

void Coordinator::AskWhichCheckpoint(Effects& effects) {
  choose_due_ = now_ + kChooseResends * options_.resend;
  effects.emplace_back(ChooseCheckpoint{.term = term_,
                                        .question = question_,
                                        .last_is_bad = last_is_bad_,
                                        .last = last_checkpoint_,
                                        .gaps = NextGaps()});
}

// Nodes may have come and gone meanwhile.
void Coordinator::On(const CheckpointChosen& event, Effects& effects) {
  if (phase_ != Phase::kChoosing || event.question != question_) return;
  choose_due_ = absl::InfiniteFuture();
  last_is_bad_ = false;
  last_checkpoint_.clear();
  if (!event.ok) {
    Say(event.words, effects);
    ending_ = event.exit_code;
    TryEnd(effects);
    return;
  }
  chosen_ = event;
  Decide(effects);
}

// With `checkpoint`'s state; none: memory's, or the run begins.
void Coordinator::Start(Resume resume, std::optional<StepIndex> checkpoint, Effects& effects) {
  resume_ = std::move(resume);
  chosen_.reset();
  good_at_.reset();
  if (checkpoint.has_value()) good_at_ = *checkpoint + kGoodSteps;
  phase_ = Phase::kStarting;
  phase_due_ = absl::InfiniteFuture();
  PlacedLayout layout{
      .generation = view_.generation + 1, .shape = decision_.shape, .seats = decision_.seats};
  std::vector<uint32_t>& domains = layout.domains;
  for (NodeId node : NodesOf(layout)) domains.push_back(peers_[node].report.domain);
  if (std::equal(domains.begin() + 1, domains.end(), domains.begin())) domains.clear();
  LogEntry start{.kind = EntryKind::kStart,
                 .generation = view_.generation + 1,
                 .step = resume_.step,
                 .from_checkpoint = checkpoint.has_value(),
                 .layout = std::move(layout),
                 .failure = Ended(),
                 .gaps = NextGaps()};
  Post(std::move(start), 0, effects);
}

// The set of usable nodes may have changed, or something that was too early is not any more.
void Coordinator::ConsiderChange(Effects& effects) {
  if (phase_ == Phase::kWaiting) {
    Decide(effects);
    return;
  }
  if (phase_ != Phase::kRunning || ending_.has_value()) return;
  if (LeavesSlow(effects)) return;
  const Decision decision = DecideLayout(rule_, Survey());
  look_again_ = decision.look_again;
  if (decision.action == LayoutAction::kKeep || decision.action == LayoutAction::kWait ||
      decision.action == LayoutAction::kEnd) {
    pausing_ = false;
    return;
  }
  if (!SavesFirst(decision.words, effects)) BeginStop(true, decision.words, effects);
}

// Whether the state must be saved before ranks are stopped for a change that nothing forces: where
// they keep no snapshots, the steps since the newest checkpoint would be taken again. They wait
// with that state until it is saved, and then this is considered once more. When it could not be
// saved they go on, and so again with the next checkpoint.
bool Coordinator::SavesFirst(const std::string& why, Effects& effects) {
  const bool kept = std::none_of(members_.begin(), members_.end(), [this](NodeId node) {
    const msg::Report& r = peers_[node].report;
    return r.no_snapshots && r.generation == layout_.generation;
  });
  if (kept || paused_) return false;
  if (std::exchange(pausing_, true)) return true;
  Say(fmt::format("a checkpoint first, because memory keeps no snapshots; then: {}", why), effects);
  save_due_ = now_;
  return true;
}

}  // namespace perdure
