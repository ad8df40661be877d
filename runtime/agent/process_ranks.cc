// Processes and generations; what ranks say is in process_ranks_frames.cc.
#include "runtime/agent/process_ranks.h"

#include <signal.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "ckpt/packed_report.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/base/status.h"
#include "runtime/control/snapshot_placement.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

// Of Resume::checkpoint.
absl::StatusOr<to_rank::Prepare::Checkpoint> CheckpointOf(const std::string& run_directory,
                                                          const std::string& packed) {
  ASSIGN_OR_RETURN(const ChosenName chosen, ParseChosen(packed));
  return to_rank::Prepare::Checkpoint{.path = fmt::format("{}/ckpt/{}", run_directory, chosen.name),
                                      .manifest = chosen.manifest};
}

}  // namespace

ProcessRanks::ProcessRanks(EventLoop* loop, OomKills* oom, SnapshotShelf* shelf,
                           const ProcessRanksOptions& options, ProcessRanksHooks hooks)
    : loop_(loop),
      oom_(oom),
      shelf_(shelf),
      options_(options),
      hooks_(std::move(hooks)),
      watch_(options.save_patience) {
  if (shelf_ == nullptr || !hooks_.send_snapshot) return;
  server_ = std::make_unique<SnapshotServer>(
      loop_,
      [this](const Fetch& f) {
        return shelf_->PathOf({.generation = f.generation, .step = f.step, .rank = f.rank});
      },
      hooks_.send_snapshot);
  fetch_ = std::make_unique<SnapshotFetch>(loop_, options_.fetch, hooks_.send_snapshot);
}

ProcessRanks::~ProcessRanks() {
  *alive_ = false;
  loop_->CancelTimer(broken_timer_);
  loop_->CancelTimer(watch_timer_);
  loop_->CancelTimer(hung_timer_);
}

// Never from inside an order.
void ProcessRanks::Tell(Member::Event event) {
  loop_->AddTimer(MonotonicNow(), [this, alive = alive_, event = std::move(event)] {
    if (*alive && hooks_.tell) hooks_.tell(event);
  });
}

bool ProcessRanks::All(bool Slot::*flag) const {
  return std::all_of(slots_.begin(), slots_.end(), [flag](const auto& entry) {
    return entry.second.rank < 0 || entry.second.*flag;
  });
}

void ProcessRanks::SendAll(const to_rank::Frame& frame) {
  for (auto& [_, slot] : slots_)
    if (slot.rank >= 0 && slot.prepared && !slot.gone && slot.link != nullptr)
      slot.link->Send(frame);
}

// ---- processes

// Processes of the agent before this one died with it; what they held did not.
Member::Adopted ProcessRanks::Adopted() {
  Member::Adopted adopted;
  if (shelf_ == nullptr) return adopted;
  adopted.holdings = shelf_->Holdings();
  for (const Holding& holding : adopted.holdings) {
    adopted.generation = std::max(adopted.generation, holding.generation);
    adopted.finished = std::max(adopted.finished, holding.step);
  }
  return adopted;
}

absl::Status ProcessRanks::StartProcess(int32_t local_rank, Slot& slot) {
  RankLink::Options link{.argv = options_.argv,
                         .environment = options_.environment,
                         .log_path = SlotLogPath(options_.log_directory, options_.node, local_rank),
                         .group = 0,
                         .queue_bytes_max = options_.queue_bytes_max};
  // All ranks of a node are one process group: the first that lives leads it.
  for (const auto& [_, other] : slots_)
    if (other.link != nullptr && other.link->running()) {
      const pid_t group = ::getpgid(other.link->pid());
      if (group > 0) link.group = group;
      break;
    }
  auto box = std::make_shared<const RankLink*>(nullptr);
  absl::StatusOr<std::unique_ptr<RankLink>> started = RankLink::Start(
      loop_, oom_, link,
      {.frame = [this, local_rank](from_rank::Frame f) { OnFrame(local_rank, std::move(f)); },
       .ended = [this, local_rank, box](
                    const ProcessEnd& end,
                    const std::string& wrong) { OnEnd(local_rank, *box, end, wrong); },
       .unkillable =
           [this, local_rank] {
             Fail(local_rank, EvidenceKind::kUnkillable, 0, true,
                  "was killed, but the kernel does not let it die");
           }});
  RETURN_IF_ERROR(started.status());
  slot.link = *std::move(started);
  slot.leaves = slot.doomed = false;
  *box = slot.link.get();
  return absl::OkStatus();
}

// Not at once: this may be one of its callbacks.
void ProcessRanks::DropLink(Slot& slot) {
  loop_->Defer([old = std::shared_ptr<RankLink>(std::move(slot.link))] {});
  slot.link = nullptr;
}

void ProcessRanks::End(std::function<void()> then) {
  ended_ = std::move(then);
  ++preparing_;
  if (fetch_ != nullptr) fetch_->CancelAll();
  for (auto& [_, slot] : slots_)
    if (slot.link != nullptr && !std::exchange(slot.leaves, true))
      slot.link->Leave(options_.leave_grace);
  CheckEnded();
}

void ProcessRanks::CheckEnded() {
  if (!ended_.has_value() || std::any_of(slots_.begin(), slots_.end(), [](const auto& entry) {
        return entry.second.link != nullptr;
      }))
    return;
  loop_->AddTimer(MonotonicNow(), [then = *std::exchange(ended_, std::nullopt)] { then(); });
}

absl::Status ProcessRanks::Corrupt(int32_t local_rank, StepIndex step, const Flip& flip) {
  const auto at = slots_.find(local_rank);
  if (at == slots_.end() || at->second.rank < 0 || !at->second.prepared || at->second.gone ||
      at->second.link == nullptr)
    return NotFound("no rank runs in slot {} of node {}", local_rank, options_.node);
  ++at->second.planted;
  at->second.link->Send(to_rank::Corrupt{.generation = generation_, .step = step, .flip = flip});
  return absl::OkStatus();
}

std::vector<ProcessRanks::Running> ProcessRanks::running() const {
  std::vector<Running> running;
  for (const auto& [local_rank, slot] : slots_)
    if (slot.link != nullptr && slot.link->running())
      running.push_back({.local_rank = local_rank,
                         .rank = slot.rank,
                         .pid = slot.link->pid(),
                         .activities = slot.link->page().Activities()});
  return running;
}

std::vector<RankProcess> ProcessRanks::processes() const {
  std::vector<RankProcess> processes;
  for (const auto& [local_rank, slot] : slots_)
    if (slot.link != nullptr && slot.link->running())
      processes.push_back({.local_rank = local_rank, .rank = slot.rank, .pid = slot.link->pid()});
  return processes;
}

void ProcessRanks::OnEnd(int32_t local_rank, const RankLink* link, const ProcessEnd& end,
                         const std::string& wrong) {
  Slot& slot = slots_[local_rank];
  if (slot.link.get() != link) return;  // One before it.
  const bool expected = slot.leaves || slot.doomed || (slot.rank < 0 && end.Good());
  const bool idle = slot.rank < 0 || slot.gone || slot.done;
  if (!expected) {
    const std::string how = wrong.empty() ? end.Text() : "was killed because it " + wrong;
    const std::string words = fmt::format("{}{}", how, LastWords(slot));
    if (idle && hooks_.failed)
      hooks_.failed({.generation = generation_,
                     .rank = slot.rank,
                     .local_rank = local_rank,
                     .pid = link->pid(),
                     .kind = end.kind,
                     .number = end.number,
                     .words = words});
    if (!idle) {
      // What we kill for what it says is as if it had crashed.
      const bool ours = !wrong.empty();
      Fail(local_rank, ours ? EvidenceKind::kRankCrashed : end.kind, ours ? 0 : end.number, false,
           words);
    }
  }
  DropLink(slot);
  slot.gone = true;
  CheckStopped();
  CheckEnded();
}

std::string ProcessRanks::LastWords(const Slot& slot) const {
  if (slot.link == nullptr) return "";
  std::string words;
  const std::vector<Activity> activities = slot.link->page().Activities();
  if (!activities.empty()) {
    const Activity& last = activities.back();
    const absl::Duration since = MonotonicNow() - absl::FromUnixNanos(last.nanoseconds);
    words += fmt::format("; last it did: {}, {} before", Describe(last),
                         absl::FormatDuration(absl::Trunc(since, absl::Milliseconds(1))));
  }
  if (const std::string tail = slot.link->LogTail(); !tail.empty())
    words += fmt::format("\n  its last output ({}):\n  {}", slot.link->log_path(), tail);
  return words;
}

void ProcessRanks::Fail(int32_t local_rank, EvidenceKind kind, int64_t number, bool slot_lost,
                        std::string words) {
  const Slot& slot = slots_[local_rank];
  if (hooks_.failed)
    hooks_.failed({.generation = generation_,
                   .rank = slot.rank,
                   .local_rank = local_rank,
                   .pid = slot.link == nullptr ? 0 : slot.link->pid(),
                   .kind = kind,
                   .number = number,
                   .words = std::move(words)});
  Tell(Member::RankFailed{.generation = generation_,
                          .local_rank = local_rank,
                          .kind = kind,
                          .number = number,
                          .slot_lost = slot_lost});
}

// ---- a generation begins

void ProcessRanks::Do(const Member::MakeRanks& order) {
  prepare_ = order.prepare;
  generation_ = prepare_.generation;
  const uint64_t preparing = ++preparing_;
  stopping_ = waits_ = made_ = loaded_ = found_bad_ = false;
  finished_ = prepare_.resume.step;
  frozen_ = told_waiting_ = -1;
  write_.reset();
  EndWatch();
  peers_.clear();
  held_.reset();
  held_peers_.clear();
  checkpoint_.reset();
  loop_->CancelTimer(broken_timer_);
  broken_timer_ = {};
  loop_->CancelTimer(hung_timer_);
  hung_looks_ = 0;
  if (fetch_ != nullptr) fetch_->CancelAll();
  if (shelf_ != nullptr) shelf_->DropFetched();
  for (auto& [_, slot] : slots_) {
    Slot fresh;
    fresh.link = std::move(slot.link);
    fresh.leaves = slot.leaves;
    fresh.doomed = slot.doomed;
    fresh.corruptions = slot.corruptions;
    slot = std::move(fresh);
  }
  for (const msg::Prepare::Assignment& seat : prepare_.ranks) {
    Slot& slot = slots_[seat.local_rank];
    slot.rank = seat.rank;
    slot.finished = finished_;
    if (slot.leaves || slot.doomed) DropLink(slot);  // Its end is near; this kills it.
    if (slot.link == nullptr)
      if (const absl::Status started = StartProcess(seat.local_rank, slot); !started.ok()) {
        slot.gone = true;
        Fail(seat.local_rank, EvidenceKind::kStartFailed, 0, false, Message(started));
        continue;
      }
    slot.link->page().Join(generation_);
  }
  for (auto& [_, slot] : slots_)
    if (slot.rank < 0 && slot.link != nullptr && !std::exchange(slot.leaves, true))
      slot.link->Leave(options_.leave_grace);
  std::vector<Generation> generations = {generation_};
  if (!prepare_.resume.from_checkpoint) generations.push_back(prepare_.resume.generation);
  hooks_.layouts(
      std::move(generations),
      [this, alive = alive_, preparing](const absl::StatusOr<std::vector<PlacedLayout>>& layouts) {
        if (*alive && preparing == preparing_) Prepare(layouts);
      });
}

// All nodes of the layout come to the same answer.
std::vector<int32_t> ProcessRanks::PeersOf(const PlacedLayout& layout) const {
  if (shelf_ == nullptr || !options_.peers) return {};
  const std::vector<NodeId> nodes = NodesOf(layout);
  std::vector<NodeOffer> offers;
  for (size_t i = 0; i < nodes.size(); ++i)
    offers.push_back({.node = nodes[i],
                      .slots = {},
                      .domain = layout.domains.empty()
                                    ? std::numeric_limits<uint32_t>::max() - nodes[i]
                                    : layout.domains[i]});
  absl::StatusOr<std::vector<int32_t>> peers = PlaceSnapshots(layout.seats, offers);
  return peers.ok() ? *std::move(peers) : std::vector<int32_t>();  // All on one node: nobody.
}

void ProcessRanks::Prepare(const absl::StatusOr<std::vector<PlacedLayout>>& layouts) {
  const int32_t first = prepare_.ranks.empty() ? 0 : prepare_.ranks.front().local_rank;
  if (!layouts.ok()) {
    Fail(first, EvidenceKind::kStorageError, 0, false, "the run log: " + Message(layouts.status()));
    return;
  }
  peers_ = PeersOf(layouts->front());
  if (!prepare_.resume.from_checkpoint) {
    held_ = layouts->back();
    held_peers_ = PeersOf(*held_);
  } else if (!prepare_.resume.checkpoint.empty()) {
    const absl::StatusOr<to_rank::Prepare::Checkpoint> checkpoint =
        CheckpointOf(options_.run_directory, prepare_.resume.checkpoint);
    if (!checkpoint.ok()) {
      Fail(first, EvidenceKind::kBadCheckpoint, 0, false, Message(checkpoint.status()));
      return;
    }
    checkpoint_ = *checkpoint;
  }
  for (auto& [local_rank, slot] : slots_) {
    if (slot.rank < 0 || slot.gone || slot.link == nullptr) continue;
    slot.prepared = true;
    slot.link->Send(PrepareOf(local_rank, slot));
  }
}

to_rank::Prepare ProcessRanks::PrepareOf(int32_t local_rank, const Slot& slot) const {
  const auto ranks = static_cast<int64_t>(prepare_.ranks.size());
  const int64_t share = std::max<int64_t>(1, options_.cores / ranks);
  to_rank::Prepare frame{.generation = generation_,
                         .rank = slot.rank,
                         .local_rank = local_rank,
                         .tensor = prepare_.shape.tensor,
                         .pipeline = prepare_.shape.pipeline,
                         .data = prepare_.shape.data,
                         .config = options_.config,
                         .data_directory = options_.data_directory,
                         .run_directory = options_.run_directory,
                         .run_id = options_.run_id,
                         .ranks_per_file = options_.ranks_per_file,
                         .host_threads = share,
                         .spin = ranks * options_.threads_per_rank <= options_.cores,
                         .until_step = options_.until_step,
                         .snapshot_directory = shelf_ == nullptr ? "" : shelf_->path(),
                         .snapshot_peers = {peers_.begin(), peers_.end()},
                         .checkpoint = checkpoint_,
                         .held = {},
                         .gaps = prepare_.gaps,
                         .begins = prepare_.begins};
  if (held_.has_value())
    frame.held = to_rank::Prepare::Held{.generation = held_->generation,
                                        .step = prepare_.resume.step,
                                        .tensor = held_->shape.tensor,
                                        .pipeline = held_->shape.pipeline,
                                        .data = held_->shape.data};
  return frame;
}

void ProcessRanks::Do(const Member::Connect& order) {
  const absl::StatusOr<std::vector<std::string>> addresses =
      UnpackAddresses(order.table.packed, order.table.count);
  // What the coordinator has packed; a part that is missing is noticed when the rank loads.
  if (addresses.ok())
    SendAll(to_rank::Table{
        .generation = order.table.generation, .first = order.table.first, .addresses = *addresses});
}

void ProcessRanks::Do(const Member::Load& order) { SendAll(to_rank::Load{order.generation}); }
void ProcessRanks::Do(const Member::Run& order) { SendAll(to_rank::Go{order.generation}); }

void ProcessRanks::Do(const Member::Renew& order) {
  for (auto& [_, slot] : slots_)
    if (slot.rank >= 0 && slot.link != nullptr)
      slot.link->page().Renew(order.generation, order.until);
}

// ---- and ends

void ProcessRanks::Do(const Member::StopRanks& order) {
  if (order.generation != generation_) return;
  stopping_ = true;
  ++preparing_;
  EndWatch();
  loop_->CancelTimer(broken_timer_);
  broken_timer_ = {};
  if (fetch_ != nullptr) fetch_->CancelAll();
  // Who was not told yet what to be need not be told to stop.
  for (auto& [_, slot] : slots_) slot.gone |= !slot.prepared || slot.link == nullptr;
  // Before they are told: who lets go has work to do.
  if (order.stalled && hung_looks_ == 0) LookForHung();
  SendAll(to_rank::Stop{.generation = generation_, .at_boundary = order.at_boundary});
  CheckStopped();
}

void ProcessRanks::Do(const Member::KillRanks& order) {
  if (order.generation != generation_) return;
  stopping_ = true;
  for (auto& [local_rank, slot] : slots_) {
    if (slot.rank < 0 || slot.gone || slot.link == nullptr || slot.doomed) continue;
    KillHung(local_rank, slot, "did not stop");
  }
  CheckStopped();
}

void ProcessRanks::CheckStopped() {
  if (!stopping_ || !All(&Slot::gone)) return;
  stopping_ = false;
  Tell(Member::RanksStopped{
      .generation = generation_,
      .holdings = shelf_ == nullptr ? std::vector<Holding>() : shelf_->Holdings()});
}

// ---- checkpoints

void ProcessRanks::Do(const Member::FreezeState& order) {
  for (auto& [_, slot] : slots_)
    if (slot.rank == 0 && slot.prepared && !slot.gone && slot.link != nullptr)
      slot.link->Send(to_rank::Freeze{.generation = order.save.generation,
                                      .after = order.save.after,
                                      .last = order.save.last,
                                      .pause = order.save.pause});
}

void ProcessRanks::Do(const Member::WriteState& order) {
  const msg::Write& write = order.write;
  if (!write_.has_value() || write_->step != write.step || write_->attempt != write.attempt) {
    watch_.Clear();
    for (auto& [_, slot] : slots_) {
      slot.written.reset();
      if (slot.rank < 0) continue;
      // A rank without a share answers at once.
      slot.does = fmt::format("writing {}/{}", AttemptName(write.step, write.term, write.attempt),
                              slot.file);
      watch_.Begin(MonotonicNow(), slot.rank, slot.does);
    }
  }
  write_ = write;
  SendAll(to_rank::Write{.generation = write.generation,
                         .step = write.step,
                         .attempt = write.attempt,
                         .term = write.term});
}

// Another rank than the one that wrote most of it, where there are several: it has not the file in
// mind.
void ProcessRanks::Do(const Member::VerifyFile& order) {
  const msg::Verify& verify = order.verify;
  std::vector<const Slot*> readers;
  for (const auto& [_, slot] : slots_)
    if (slot.rank >= 0 && slot.prepared && !slot.gone && slot.link != nullptr)
      readers.push_back(&slot);
  if (readers.empty()) return;
  const Slot& reader = *readers[static_cast<size_t>(verify.file) % readers.size()];
  const absl::StatusOr<PartReport> part = UnpackPart(verify.packed);
  const std::string what =
      fmt::format("reading {}/{}", AttemptName(verify.step, verify.term, verify.attempt),
                  part.ok() ? part->file : fmt::format("file {}", verify.file));
  const std::pair known(reader.rank, what);
  if (std::exchange(reading_[verify.file], known) != known)
    watch_.Begin(MonotonicNow(), reader.rank, what);
  reader.link->Send(to_rank::Verify{.generation = verify.generation,
                                    .step = verify.step,
                                    .attempt = verify.attempt,
                                    .term = verify.term,
                                    .file = verify.file,
                                    .part = verify.packed});
}

std::string ProcessRanks::AttemptName(StepIndex step, perdure::Slot term, int32_t attempt) const {
  return CheckpointName(step, generation_, AttemptNonce(term, attempt));
}

void ProcessRanks::Do(const Member::SettleState& order) {
  EndWatch();
  SendAll(to_rank::Settle{.generation = order.settle.generation,
                          .step = order.settle.step,
                          .committed = order.settle.committed});
  // They are behind it, and may have the room that this generation does not get.
  if (order.settle.committed && shelf_ != nullptr) shelf_->DropOlder(generation_);
}

}  // namespace perdure
