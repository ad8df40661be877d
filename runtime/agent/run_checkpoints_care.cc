// What happens beside saving: records, retirement, exports, kept files, what takes long.
#include <algorithm>
#include <utility>

#include "ckpt/view.h"
#include "runtime/agent/checkpoint_room.h"
#include "runtime/agent/kept_files.h"
#include "runtime/agent/run_checkpoints.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kTick = absl::Seconds(1);
// How often kept files are looked at: purges count in days.
constexpr absl::Duration kTendEvery = absl::Hours(24);
// Who takes over ranks that train looks after the rest so much later.
constexpr absl::Duration kBeginAfter = absl::Minutes(1);
constexpr int kHere = -1;  // In SaveWatch: not a rank.

// What `generation` loaded, by its ATTEMPT, unless it is known already that it ran.
absl::StatusOr<std::string> LoadedBy(const RunLog& log, Generation generation) {
  for (auto record = log.records().rbegin(); record != log.records().rend(); ++record) {
    if (record->generation != generation) continue;
    if (record->type == RecordType::kAttempt) return ParseAttempt(record->body)->name;
    if (record->type == RecordType::kVerified && ParseVerified(record->body)->kind == "ran") break;
  }
  return NotFound("no checkpoint is known that generation {} has yet to prove good", generation);
}

}  // namespace

void RunCheckpoints::Warn(const std::string& line) const {
  if (hooks_.warn) hooks_.warn(line);
}

void RunCheckpoints::Event(const std::string& what, Json fields) const {
  if (!hooks_.event) return;
  if (!fields.contains("generation")) fields["generation"] = generation_;
  hooks_.event(what, fields);
}

// ---- records

void RunCheckpoints::Want(Wanted wanted) {
  uint64_t tag = 0;
  {
    const std::lock_guard lock(mutex_);
    tag = ++tags_;
    wanted_.emplace(tag, std::move(wanted));
  }
  if (leading_ && hooks_.note && hooks_.note(tag)) return;
  const std::lock_guard lock(mutex_);
  wanted_.erase(tag);
}

bool RunCheckpoints::Wants(RecordType type) {
  const std::lock_guard lock(mutex_);
  return std::any_of(wanted_.begin(), wanted_.end(),
                     [type](const auto& wanted) { return wanted.second.type == type; });
}

// What is to go is chosen when the record gets its slot: all records before it count.
absl::Status RunCheckpoints::MakeBody(Wanted& wanted) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const RunLog> log, reader_.Read());
  if (wanted.type == RecordType::kVerified) {
    ASSIGN_OR_RETURN(const std::string name, LoadedBy(*log, wanted.generation));
    wanted.body = SerializeVerified({.name = name, .kind = "ran"});
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const KeepRule rule, RuleNow(*log));
  ASSIGN_OR_RETURN(RetirementPlan plan, PlanRetirement(options_.run_directory, rule, *log));
  if (plan.names.empty()) return NotFound("no checkpoint is to be retired");
  wanted.body = SerializeRetire({.names = plan.names});
  wanted.names = std::move(plan.names);
  return absl::OkStatus();
}

absl::StatusOr<ControlLog::NoteBody> RunCheckpoints::NoteBody(uint64_t tag) {
  Wanted wanted;
  {
    const std::lock_guard lock(mutex_);
    const auto found = wanted_.find(tag);
    if (found == wanted_.end()) return NotFound("no record is wanted under {} any more", tag);
    wanted = found->second;
  }
  const absl::Status status = wanted.body.has_value() ? absl::OkStatus() : MakeBody(wanted);
  const std::lock_guard lock(mutex_);
  const auto found = wanted_.find(tag);
  if (!status.ok()) {
    if (found != wanted_.end()) wanted_.erase(found);
    return status;
  }
  // A second try says the same: the first may still get there.
  if (found != wanted_.end()) found->second = wanted;
  return ControlLog::NoteBody{.type = wanted.type, .body = *wanted.body};
}

void RunCheckpoints::Do(const Coordinator::Noted& noted) {
  Wanted wanted;
  {
    const std::lock_guard lock(mutex_);
    const auto found = wanted_.find(noted.tag);
    if (found == wanted_.end()) return;
    wanted = std::move(found->second);
    wanted_.erase(found);
  }
  if (wanted.type == RecordType::kAttempt) Choose();
  if (wanted.type == RecordType::kRetire) Delete(std::move(wanted.names));
}

// An export appears when nothing is read for it any more; what a generation has begun to load may
// be loaded again.
absl::StatusOr<KeepRule> RunCheckpoints::RuleNow(const RunLog& log) {
  KeepRule rule{.keep_last = options_.config.checkpoint.keep_last,
                .keep_every_steps = options_.config.checkpoint.keep_every_steps,
                .phase_end_steps = {},
                .rollback_steps = GoesBack() ? options_.config.integrity.rollback_steps : 0,
                .in_use = {}};
  for (const PhasePlan& phase : schedule_.phases())
    rule.phase_end_steps.push_back(phase.first_step + phase.steps);
  std::vector<CheckpointEntry> missing;
  if (hooks_.missing_exports) missing = hooks_.missing_exports(log);
  const std::lock_guard lock(mutex_);
  if (!loaded_.empty()) rule.in_use.push_back(loaded_);
  for (const CheckpointEntry& entry : missing)
    if (!failed_exports_.contains(entry.commit.checkpoint))
      rule.in_use.push_back(entry.commit.checkpoint);
  return rule;
}

Deletions RunCheckpoints::DeleteLeft(std::vector<std::string> names) {
  if (const auto log = reader_.Read(); log.ok()) {
    const auto plan = PlanRetirement(options_.run_directory, {}, **log);
    if (plan.ok())
      for (const std::string& name : plan->left)
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return DeleteRetired(options_.run_directory, names);
}

// And what an earlier coordinator left half deleted.
void RunCheckpoints::Delete(std::vector<std::string> names) {
  worker_->Post([this, names = std::move(names)]() mutable -> Worker::Then {
    return [this, deleted = DeleteLeft(std::move(names))] {
      for (const auto& [name, status] : deleted) {
        Event("retire", {{"checkpoint", name}, {"deleted", status.ok()}, {"why", Message(status)}});
        // What cannot be deleted costs space, not the run.
        if (!status.ok()) Warn("warning: " + Message(status));
      }
    };
  });
}

// ---- once per lead, and once in a while

void RunCheckpoints::Begin() {
  if (!leading_ || std::exchange(begun_, true)) return;
  CheckRoom();
  TendFiles();
  Delete({});
  ExportMissing();  // What the coordinator before was not given the time for.
}

void RunCheckpoints::Tick() {
  timer_ = {};
  if (!leading_) return;
  const absl::Time now = MonotonicNow();
  TellStalls();
  if (!begun_ && now - leading_since_ > kBeginAfter) Begin();
  if (begun_ && now - tended_ > kTendEvery) TendFiles();
  timer_ = loop_->AddTimer(now + kTick, [this] { Tick(); });
}

void RunCheckpoints::CheckRoom() {
  worker_->Post([this, generation = generation_]() -> Worker::Then {
    const auto log = reader_.Read();
    if (!log.ok()) return nullptr;  // Whoever needs it will say so.
    const auto plan = PlanOf(generation != 0 ? generation : (*log)->generation());
    if (!plan.ok()) return nullptr;
    const absl::Status status = CheckRoomToKeep(**log, options_.run_directory, (*plan)->need,
                                                options_.config.checkpoint.keep_last, GoesBack());
    if (status.ok()) return nullptr;
    return [this, status] {
      Event("little_room", {{"why", Message(status)}});
      Warn("warning: " + Message(status));
    };
  });
}

void RunCheckpoints::TendFiles() {
  tended_ = MonotonicNow();
  worker_->Post([this]() -> Worker::Then {
    const auto log = reader_.Read();
    if (!log.ok()) return nullptr;
    const std::vector<std::string> lines =
        TendKeptFiles(**log, {.run_directory = options_.run_directory,
                              .refresh = options_.config.checkpoint.refresh == "access",
                              .data_files = options_.data_files});
    if (lines.empty()) return nullptr;
    return [this, lines] {
      for (const std::string& line : lines) {
        Event("kept_files", {{"why", line}});
        Warn("warning: " + line);
      }
    };
  });
}

// For people, and no part of the checkpoint.
void RunCheckpoints::WriteViewOf(const std::string& name) {
  worker_->Post([this, name]() -> Worker::Then {
    const std::string directory = options_.run_directory + "/ckpt/" + name;
    const absl::StatusOr<Manifest> manifest = ReadManifest(directory, nullptr);
    const absl::Status view =
        manifest.ok() ? WriteView(directory, *manifest, table_) : manifest.status();
    if (view.ok()) return nullptr;
    return [this, view] { Warn("warning: " + Message(view)); };
  });
}

// ---- exports

void RunCheckpoints::ExportMissing() {
  if (!hooks_.missing_exports) return;
  ++exporting_;
  worker_->Post([this, lead = leads_]() -> Worker::Then {
    const auto log = reader_.Read();
    std::vector<CheckpointEntry> missing;
    if (log.ok()) missing = hooks_.missing_exports(**log);
    return [this, lead, missing] {
      for (const CheckpointEntry& entry : missing)
        if (lead == leads_ && begun_exports_.insert(entry.commit.checkpoint).second) Export(entry);
      --exporting_;
      ExportsAreDone();
    };
  });
}

void RunCheckpoints::Export(const CheckpointEntry& entry) {
  ++exporting_;
  exporter_->Post([this, entry]() -> Worker::Then {
    const absl::Status status = hooks_.export_checkpoint(entry);
    return [this, entry, status] {
      Event("export", {{"step", entry.commit.step},
                       {"checkpoint", entry.commit.checkpoint},
                       {"format", options_.config.checkpoint.export_format},
                       {"written", status.ok()},
                       {"why", Message(status)}});
      if (!status.ok()) {
        Warn(fmt::format("warning: step {} was not exported: {}; training goes on",
                         entry.commit.step, Message(status)));
        const std::lock_guard lock(mutex_);
        failed_exports_.insert(entry.commit.checkpoint);
      }
      Retire();  // It was kept for this.
      --exporting_;
      ExportsAreDone();
    };
  });
}

void RunCheckpoints::Do(const Coordinator::WindUp&,
                        std::function<void(Coordinator::WoundUp)> then) {
  wind_up_ = std::move(then);
  ExportsAreDone();
}

void RunCheckpoints::ExportsAreDone() {
  if (exporting_ == 0 && wind_up_ != nullptr) std::exchange(wind_up_, nullptr)({});
}

// ---- what takes long

void RunCheckpoints::Stage(const char* what) {
  watch_.Clear();
  watch_.Begin(MonotonicNow(), kHere, what);
}

std::vector<SaveWatch::Stall> RunCheckpoints::UnderWay() const {
  return watch_.UnderWay(MonotonicNow());
}

void RunCheckpoints::TellStalls() {
  for (const SaveWatch::Stall& stall : watch_.Due(MonotonicNow())) {
    const double seconds = absl::ToDoubleSeconds(stall.waited);
    Event("save_stalls",
          {{"step", saving_},
           {"under_way", Json::array({{{"what", stall.what}, {"seconds", seconds}}})}});
    Warn(fmt::format(
        "warning: checkpoint of step {}: the coordinator has been {} for {:.0f} s; training goes "
        "on until the next one is due: does the file system of {}/ckpt answer?",
        saving_, stall.what, seconds, options_.run_directory));
  }
}

}  // namespace perdure
