// What ranks say, and the snapshots that they ask for; processes and generations are in
// process_ranks.cc.
#include <algorithm>
#include <utility>

#include "ckpt/part_plan.h"
#include "runtime/agent/node_runs.h"
#include "runtime/agent/process.h"
#include "runtime/agent/process_ranks.h"
#include "runtime/base/status.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

constexpr char kFreezing[] = "copying its state";
constexpr int kCorruptionsMax = 2;  // Of a slot, in a job: then it is not used any more.
constexpr absl::Duration kLookAtSaves = absl::Seconds(1);
// Who never waits in a second of a standing generation hangs.
constexpr int kHungLooks = 11;
constexpr absl::Duration kLookForHung = absl::Milliseconds(100);

}  // namespace

void ProcessRanks::OnFrame(int32_t local_rank, from_rank::Frame frame) {
  const auto at = slots_.find(local_rank);
  if (at == slots_.end()) return;
  std::visit([&](const auto& f) { On(*at, f); }, frame);
}

// Whether it is about what the slot's rank does now: it may have been said before it was stopped.
bool ProcessRanks::Current(const Slot& slot, Generation generation) const {
  return slot.rank >= 0 && slot.prepared && !slot.gone && generation == generation_;
}

// ---- for people

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Health& frame) {
  if (hooks_.health) hooks_.health(slot.first, slot.second.rank, frame.report);
}
void ProcessRanks::On(Slots::value_type& slot, const from_rank::Evidence& frame) {
  if (hooks_.evidence) hooks_.evidence(slot.first, slot.second.rank, frame.evidence);
}
void ProcessRanks::On(Slots::value_type&, const from_rank::Remark& frame) {
  if (hooks_.remark) hooks_.remark(frame.line);
}
void ProcessRanks::On(Slots::value_type& slot, const from_rank::Connected& frame) {
  if (!Current(slot.second, frame.generation) || std::exchange(slot.second.connected, true)) return;
  if (All(&Slot::connected) && hooks_.connected) hooks_.connected(frame.generation);
}
void ProcessRanks::On(Slots::value_type& slot, const from_rank::Certificate& frame) {
  if (Current(slot.second, frame.generation) && slot.second.rank == 0 && hooks_.certificate)
    hooks_.certificate(frame.generation, prepare_.resume.step, frame.certificate);
}
void ProcessRanks::On(Slots::value_type& slot, const from_rank::Step& frame) {
  if (Current(slot.second, frame.generation) && slot.second.rank == 0 && hooks_.step)
    hooks_.step(frame.generation, frame.report);
}

// ---- the life of a generation

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Present& frame) {
  if (!Current(slot.second, frame.generation) || made_) return;
  slot.second.present = true;
  slot.second.address = frame.address;
  if (!All(&Slot::present)) return;
  std::vector<std::string> addresses;
  for (const msg::Prepare::Assignment& seat : prepare_.ranks)
    addresses.push_back(slots_[seat.local_rank].address);
  made_ = true;
  Tell(Member::RanksMade{.generation = generation_, .addresses = std::move(addresses)});
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Loaded& frame) {
  if (!Current(slot.second, frame.generation) || loaded_) return;
  slot.second.loaded = true;
  if (!All(&Slot::loaded)) return;
  loaded_ = true;
  if (shelf_ != nullptr) shelf_->DropFetched();
  Tell(Member::RanksLoaded{generation_});
}

void ProcessRanks::TellProgress() {
  std::vector<WorkDone> works;
  for (const msg::Prepare::Assignment& seat : prepare_.ranks)
    works.push_back(slots_[seat.local_rank].work);
  const bool no_snapshots = std::any_of(slots_.begin(), slots_.end(), [](const auto& slot) {
    return slot.second.rank >= 0 && slot.second.no_snapshots;
  });
  Tell(Member::Progress{.generation = generation_,
                        .finished = finished_,
                        .complete = All(&Slot::done),
                        .waits = waits_,
                        .works = std::move(works),
                        .no_snapshots = no_snapshots});
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Progress& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.finished = std::max(slot.second.finished, frame.step);
  slot.second.work = frame.work;
  int64_t least = slot.second.finished;
  for (const auto& [_, other] : slots_)
    if (other.rank >= 0) least = std::min(least, other.finished);
  if (least <= finished_) return;
  finished_ = least;
  waits_ = false;
  TellProgress();
}

// All ranks say the same.
void ProcessRanks::On(Slots::value_type& slot, const from_rank::FoundBad& frame) {
  if (!Current(slot.second, frame.generation) || std::exchange(found_bad_, true)) return;
  Tell(Member::RanksFoundBad{
      .generation = generation_,
      .bad = {.gap = frame.gap, .why = frame.why.substr(0, kBadStepWordsMax)}});
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Waiting& frame) {
  if (!Current(slot.second, frame.generation) || std::exchange(waits_, true)) return;
  TellProgress();
  // All ranks wait for the same reason; at the end, for the save itself.
  if (hooks_.waiting && watched_ >= 0 && frame.step > watched_ &&
      std::exchange(told_waiting_, frame.step) != frame.step)
    hooks_.waiting(frame.step, watched_, watch_.UnderWay(MonotonicNow()));
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Done& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.done = true;
  if (All(&Slot::done)) TellProgress();
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Stopped& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.gone = true;
  CheckStopped();
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::OlderMayGo& frame) {
  if (Current(slot.second, frame.generation) && shelf_ != nullptr) shelf_->DropOlder(generation_);
}

// Said again with each step's progress.
void ProcessRanks::On(Slots::value_type& slot, const from_rank::NoSnapshots& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.no_snapshots = true;
  TellProgress();
}

// ---- failures

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Error& frame) {
  Slot& s = slot.second;
  if (std::exchange(s.doomed, true)) return;
  bool slot_lost = frame.slot_lost;
  // Once may be chance.
  if (frame.kind == EvidenceKind::kSilentCorruption && s.planted-- <= 0)
    slot_lost |= ++s.corruptions >= kCorruptionsMax;
  if (s.rank >= 0 && !s.gone)
    Fail(slot.first, frame.kind, frame.number, slot_lost,
         fmt::format("{}{}", frame.message, LastWords(s)));
  // It exits by itself, unless something in it hangs.
  s.link->Leave(options_.leave_grace);
}

// A lost peer is what a failure looks like to the others. When nobody else tells of one, the
// network between them is it.
void ProcessRanks::On(Slots::value_type& slot, const from_rank::BrokenOff& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.broken = true;
  slot.second.broken_reason = frame.reason;
  if (stopping_ || broken_timer_.number != 0) return;
  broken_timer_ = loop_->AddTimer(
      MonotonicNow() + options_.broken_max,
      [this, local_rank = slot.first, generation = generation_, reason = frame.reason] {
        broken_timer_ = {};
        if (generation == generation_ && !stopping_)
          Fail(local_rank, EvidenceKind::kNetworkError, 0, false, "lost a peer: " + reason);
      });
}

// A step has not ended for much longer than they take. Who waits for another sleeps; who was
// stopped, computes, or waits for a disk or a device all the time is whom the others wait for.
void ProcessRanks::LookForHung() {
  ++hung_looks_;
  bool again = false;
  for (auto& [local_rank, slot] : slots_) {
    if (slot.rank < 0 || slot.gone || slot.link == nullptr || slot.doomed) continue;
    const char state = ProcessState(slot.link->pid());
    if (state == 'T' || state == 't') {
      KillHung(local_rank, slot, "was stopped while all others waited for it");
      continue;
    }
    slot.restless &= state == 'R' || state == 'D';
    if (!slot.restless) continue;
    again = true;
    if (hung_looks_ == kHungLooks)
      KillHung(local_rank, slot,
               state == 'R' ? "computed while its generation stood still"
                            : "waited for a disk or a device while its generation stood still");
  }
  if (again && hung_looks_ < kHungLooks)
    hung_timer_ = loop_->AddTimer(MonotonicNow() + kLookForHung, [this] { LookForHung(); });
}

void ProcessRanks::KillHung(int32_t local_rank, Slot& slot, const std::string& why) {
  if (hooks_.failed)
    hooks_.failed({.generation = generation_,
                   .rank = slot.rank,
                   .local_rank = local_rank,
                   .pid = slot.link->pid(),
                   .kind = EvidenceKind::kHung,
                   .number = 0,
                   .words = why + " and is killed" + LastWords(slot)});
  slot.doomed = true;
  slot.link->Kill();
}

// ---- checkpoints

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Frozen& frame) {
  if (!Current(slot.second, frame.generation)) return;
  slot.second.frozen = frame.step;
  slot.second.file = frame.file;
  slot.second.written.reset();
  if (frame.step != watched_) WatchSave(frame.step);
  watch_.End(slot.second.rank, kFreezing);
  for (const auto& [_, other] : slots_)
    if (other.rank >= 0 && other.frozen != frame.step) return;
  if (frozen_ == frame.step) return;
  frozen_ = frame.step;
  Tell(Member::Frozen{.generation = generation_, .step = frozen_});
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Written& frame) {
  if (!Current(slot.second, frame.generation) || !write_.has_value() ||
      frame.step != write_->step || frame.attempt != write_->attempt)
    return;
  watch_.End(slot.second.rank, slot.second.does);
  const bool again = slot.second.written.has_value();
  slot.second.written = frame;
  if (!again && hooks_.written) hooks_.written(slot.first, frame);
  TellWritten();
}

// What they wrote, once all have; an error is the first that one of them had.
absl::StatusOr<std::string> ProcessRanks::PackWritten() const {
  NodeRuns node{.generation = generation_,
                .step = write_->step,
                .nonce = AttemptNonce(write_->term, write_->attempt),
                .trail = {},
                .runs = {},
                .seconds = {}};
  for (const msg::Prepare::Assignment& seat : prepare_.ranks) {
    const from_rank::Written& written = *slots_.at(seat.local_rank).written;
    if (!written.error.empty()) return Unavailable("rank {}: {}", seat.rank, written.error);
    node.seconds.Include({.freeze = written.freeze_seconds,
                          .copy = written.copy_seconds,
                          .wait = written.wait_seconds,
                          .write = written.write_seconds});
    if (written.run.has_value()) {
      ASSIGN_OR_RETURN(node.runs.emplace_back(), ParseRun(*written.run));
    }
    if (written.trail.has_value()) node.trail = written.trail;
  }
  return PackNodeRuns(node);
}

void ProcessRanks::TellWritten() {
  for (const auto& [_, slot] : slots_)
    if (slot.rank >= 0 && !slot.written.has_value()) return;
  const absl::StatusOr<std::string> packed = PackWritten();
  if (!packed.ok() && hooks_.remark)
    hooks_.remark(fmt::format("node {} has not written its part of step {}: {}", options_.node,
                              write_->step, Message(packed.status())));
  Tell(Member::Written{.generation = generation_,
                       .step = write_->step,
                       .attempt = write_->attempt,
                       .ok = packed.ok(),
                       .packed = packed.value_or("")});
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Voted& frame) {
  if (!Current(slot.second, frame.generation)) return;
  if (const auto reading = reading_.find(frame.file); reading != reading_.end())
    watch_.End(reading->second.first, reading->second.second);
  if (!frame.error.empty() && hooks_.remark)
    hooks_.remark(fmt::format("file {} of the checkpoint of step {}: {}", frame.file, frame.step,
                              frame.error));
  Tell(Member::Verified{.generation = generation_,
                        .step = frame.step,
                        .attempt = static_cast<int32_t>(frame.attempt),
                        .file = static_cast<int32_t>(frame.file),
                        .ok = frame.error.empty()});
}

// The first rank has frozen the state of `step`.
void ProcessRanks::WatchSave(StepIndex step) {
  EndWatch();
  watched_ = step;
  for (const auto& [_, slot] : slots_)
    if (slot.rank >= 0) watch_.Begin(MonotonicNow(), slot.rank, kFreezing);
  TellStalls();
}

void ProcessRanks::TellStalls() {
  const std::vector<SaveWatch::Stall> due = watch_.Due(MonotonicNow());
  if (!due.empty() && hooks_.stalls) hooks_.stalls(watched_, due);
  watch_timer_ = loop_->AddTimer(MonotonicNow() + kLookAtSaves, [this] { TellStalls(); });
}

void ProcessRanks::EndWatch() {
  loop_->CancelTimer(watch_timer_);
  watch_.Clear();
  reading_.clear();
  watched_ = -1;
}

// ---- snapshots

void ProcessRanks::Take(NodeId from, SnapshotFrame frame) {
  if (fetch_ == nullptr) return;
  if (const auto* fetch = std::get_if<Fetch>(&frame))
    server_->Answer(from, *fetch);
  else if (const auto* piece = std::get_if<SnapshotPiece>(&frame))
    fetch_->Take(from, *piece);
  else
    fetch_->Take(from, std::get<Refused>(frame));
}

void ProcessRanks::Lost(NodeId node) {
  if (fetch_ != nullptr) fetch_->Lost(node);
}

// The node that the coordinator found it on; where the rank sat; where its peer did.
std::vector<NodeId> ProcessRanks::HoldersOf(int32_t rank) const {
  std::vector<NodeId> holders;
  const auto add = [&](NodeId node) {
    if (node != options_.node && std::find(holders.begin(), holders.end(), node) == holders.end())
      holders.push_back(node);
  };
  for (const Resume::Held& held : prepare_.resume.elsewhere)
    if (held.rank == rank) add(held.node);
  const auto index = static_cast<size_t>(rank);
  if (index < held_->seats.size()) add(held_->seats[index].node);
  if (index < held_peers_.size()) add(held_->seats[static_cast<size_t>(held_peers_[index])].node);
  return holders;
}

void ProcessRanks::On(Slots::value_type& slot, const from_rank::Need& frame) {
  Slot& s = slot.second;
  if (!Current(s, frame.generation) || stopping_) return;
  if (!held_.has_value() || shelf_ == nullptr) {
    s.link->Send(to_rank::Fetched{.generation = generation_,
                                  .paths = {},
                                  .error = "this generation resumes from no snapshots"});
    return;
  }
  s.paths.clear();
  s.missing = 0;
  std::vector<SnapshotFetch::Order> orders;
  for (const HeldNeed& need : frame.needs) {
    const Holding holding{
        .generation = held_->generation, .step = prepare_.resume.step, .rank = need.rank};
    if (absl::StatusOr<std::string> path = shelf_->PathOf(holding); path.ok()) {
      s.paths.push_back(*std::move(path));
      continue;
    }
    s.paths.push_back(shelf_->FetchedPath(holding, slot.first));
    orders.push_back({.generation = holding.generation,
                      .step = holding.step,
                      .rank = holding.rank,
                      .ranges = need.ranges,
                      .holders = HoldersOf(need.rank),
                      .path = s.paths.back()});
  }
  s.missing = orders.size();
  if (orders.empty() || fetch_ == nullptr) {
    Found(slot.first, generation_,
          orders.empty() ? absl::OkStatus() : Unavailable("nobody can be asked for snapshots"));
    return;
  }
  for (SnapshotFetch::Order& order : orders)
    fetch_->Begin(std::move(order), [this, local_rank = slot.first,
                                     generation = generation_](const absl::Status& status) {
      Slot& waiting = slots_[local_rank];
      if (!Current(waiting, generation) || waiting.missing == 0) return;
      waiting.missing = status.ok() ? waiting.missing - 1 : 0;
      if (waiting.missing == 0) Found(local_rank, generation, status);
    });
}

void ProcessRanks::Found(int32_t local_rank, Generation generation, const absl::Status& status) {
  Slot& slot = slots_[local_rank];
  if (slot.link == nullptr) return;
  slot.link->Send(to_rank::Fetched{
      .generation = generation,
      .paths = status.ok() ? std::exchange(slot.paths, {}) : std::vector<std::string>(),
      .error = status.ok() ? "" : Message(status)});
}

}  // namespace perdure
