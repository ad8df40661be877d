#include "launch/local_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "ckpt/room.h"
#include "ckpt/view.h"
#include "launch/run_export.h"
#include "runtime/agent/checkpoint_room.h"
#include "runtime/agent/kept_files.h"
#include "runtime/agent/publish.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// How often kept files are looked at: purges count in days.
constexpr auto kTendEvery = std::chrono::hours(24);
// From when on it is said that a file system does not answer, once per doubling.
constexpr absl::Duration kPatience = absl::Minutes(2);
constexpr int kSupervisor = -1;
constexpr const char *kFreezing = "copying its state", *kMeasuring = "looking for room",
                     *kPublishing = "publishing it";

}  // namespace

LocalCheckpoint::LocalCheckpoint(const Options& options, const RunConfig* config,
                                 const AtomTable* table, RunLog* log, Worker* worker,
                                 Worker* exporter, Hooks hooks)
    : options_(options),
      config_(config),
      table_(table),
      log_(log),
      worker_(worker),
      exporter_(exporter),
      hooks_(std::move(hooks)),
      directory_(options.run_directory + "/ckpt"),
      need_(CheckpointNeed(
          *table,
          PlanWriters(*config, *table, RanksPerFile(config->checkpoint, options.ranks_per_node))
              .files)),
      commit_({.ranks = static_cast<int>(config->layout.ranks())}),
      watch_(kPatience) {}

// Monotonic; counted from nowhere.
absl::Time LocalCheckpoint::Now() {
  return absl::UnixEpoch() + absl::FromChrono(Clock::now().time_since_epoch());
}

std::string LocalCheckpoint::Reading(const std::string& file) const {
  return fmt::format("reading {}/{}", Name(), file);
}

uint32_t LocalCheckpoint::Nonce() const {
  return options_.nonce + static_cast<uint32_t>(std::max(commit_.attempt(), 1) - 1);
}

std::string LocalCheckpoint::Name() const {
  return CheckpointName(now_.step, options_.generation, Nonce());
}

// The first thing that goes wrong is told at once, the last one when it is given up.
void LocalCheckpoint::Note(const absl::Status& status) {
  if (status.ok()) return;
  now_.status = status;
  hooks_.warn(fmt::format("warning: checkpoint of step {}, attempt {}: {}", now_.step,
                          commit_.attempt(), Message(status)));
}

absl::Status LocalCheckpoint::OnFrozen(int rank, const Json& frame) {
  const auto step = frame.at("step").get<int64_t>();
  if (commit_.idle()) {
    now_ = {.step = step};
    for (int other = 0; other < config_->layout.ranks(); ++other)
      watch_.Begin(Now(), other, kFreezing);
  }
  if (step != now_.step)
    return DataLoss("rank {} froze step {} while step {} is under way", rank, step, now_.step);
  watch_.End(rank, kFreezing);
  writing_[rank] = frame.at("file").get<std::string>();
  Step(CheckpointCommit::Frozen{.rank = rank});
  return absl::OkStatus();
}

// Training waits: until now what took long cost nothing.
absl::Status LocalCheckpoint::OnWaiting(const Json& frame) {
  const auto step = frame.at("step").get<int64_t>();
  // At the end the ranks wait for the last one.
  if (commit_.idle() || step == now_.step) return absl::OkStatus();
  hooks_.event("back_pressure", {{"step", step},
                                 {"generation", options_.generation},
                                 {"unsettled", now_.step},
                                 {"under_way", Describe(watch_.UnderWay(Now()))}});
  return absl::OkStatus();
}

Json LocalCheckpoint::Describe(const std::vector<SaveWatch::Stall>& stalls) const {
  Json list = Json::array();
  for (const SaveWatch::Stall& stall : stalls) {
    list.push_back({{"what", stall.what}, {"seconds", absl::ToDoubleSeconds(stall.waited)}});
    if (stall.rank == kSupervisor) continue;
    list.back()["rank"] = stall.rank;
    list.back()["node"] = stall.rank / options_.ranks_per_node;
  }
  return list;
}

void LocalCheckpoint::TellStalls() {
  const std::vector<SaveWatch::Stall> due = watch_.Due(Now());
  if (due.empty()) return;
  hooks_.event(
      "save_stalls",
      {{"step", now_.step}, {"generation", options_.generation}, {"under_way", Describe(due)}});
  const SaveWatch::Stall& first = due.front();
  const std::string who =
      first.rank == kSupervisor
          ? "the supervisor"
          : fmt::format("rank {} (node {})", first.rank, first.rank / options_.ranks_per_node);
  hooks_.warn(fmt::format(
      "warning: checkpoint of step {}: {} has been {} for {:.0f} s{}; training goes on until the "
      "next one is due: does the file system of {} answer?",
      now_.step, who, first.what, absl::ToDoubleSeconds(first.waited),
      due.size() > 1 ? fmt::format(" ({} more are named in the journal)", due.size() - 1) : "",
      directory_));
}

absl::Status LocalCheckpoint::OnSaved(int rank, const Json& frame) {
  const auto step = frame.at("step").get<int64_t>();
  if (step != now_.step)
    return DataLoss("rank {} saved step {} while step {} is under way", rank, step, now_.step);
  watch_.End(rank, writing_[rank]);
  const auto longest = [&frame](double& seconds, const char* key) {
    seconds = std::max(seconds, frame.at(key).get<double>());
  };
  longest(now_.freeze_seconds, "freeze_seconds");
  longest(now_.copy_seconds, "copy_seconds");
  longest(now_.wait_seconds, "wait_seconds");
  longest(now_.write_seconds, "write_seconds");
  absl::Status status;
  if (frame.contains("error")) {
    status = Unavailable("rank {}: {}", rank, frame.at("error").get<std::string>());
  } else if (frame.contains("run")) {
    ASSIGN_OR_RETURN(RunReport run, ParseRun(frame.at("run").get<std::string>()));
    const auto [first, _] = first_rank_.emplace(run.file, rank);
    first->second = std::min(first->second, rank);
    runs_[run.file].push_back(std::move(run));
  }
  Note(status);
  Step(CheckpointCommit::Written{.rank = rank, .ok = status.ok()});
  return absl::OkStatus();
}

absl::Status LocalCheckpoint::OnVoted(const Json& frame) {
  const auto file = frame.at("file").get<std::string>();
  const auto part = std::find_if(parts_.begin(), parts_.end(),
                                 [&](const PartReport& p) { return p.file == file; });
  if (part == parts_.end()) return DataLoss("a vote about {}, which nobody wrote", file);
  watch_.End(frame.at("rank").get<int>(), Reading(file));
  absl::Status status;
  if (frame.contains("error")) status = DataLoss("{}", frame.at("error").get<std::string>());
  Note(status);
  Step(CheckpointCommit::Voted{.file = static_cast<int>(part - parts_.begin()), .ok = status.ok()});
  return absl::OkStatus();
}

void LocalCheckpoint::Step(const CheckpointCommit::Event& event) {
  CheckpointCommit::Effects effects;
  commit_.Step(event, effects);
  for (const CheckpointCommit::Effect& effect : effects)
    std::visit([this](const auto& e) { On(e); }, effect);
}

// A rank of the next node, so that no file vouches for its own machine.
int LocalCheckpoint::ReaderOf(size_t file) const {
  const int64_t writer = first_rank_.at(parts_[file].file);
  const int64_t node = (writer / options_.ranks_per_node + 1) % options_.nodes;
  const int64_t within = (writer + (options_.nodes == 1 ? 1 : 0)) % options_.ranks_per_node;
  return static_cast<int>(
      std::min(node * options_.ranks_per_node + within, config_->layout.ranks() - 1));
}

void LocalCheckpoint::On(const CheckpointCommit::Measure&) {
  watch_.Begin(Now(), kSupervisor, kMeasuring);
  worker_->Post([this] {
    return [this, status = CheckRoomForOne(options_.run_directory, need_)] {
      watch_.End(kSupervisor, kMeasuring);
      now_.status = status;
      Step(CheckpointCommit::Measured{.ok = status.ok()});
    };
  });
}

void LocalCheckpoint::Begin() {
  CheckRoom();
  TendFiles();
  ExportMissing();  // What the job before was not given the time for.
}

void LocalCheckpoint::Tick() {
  TellStalls();
  if (tended_.has_value() && Clock::now() - *tended_ > kTendEvery) TendFiles();
}

void LocalCheckpoint::TendFiles() {
  tended_ = Clock::now();
  worker_->Post([this]() -> Worker::Then {
    const std::vector<std::string> lines =
        TendKeptFiles(*log_, {.run_directory = options_.run_directory,
                              .refresh = config_->checkpoint.refresh == "access",
                              .data_files = options_.data_files});
    if (lines.empty()) return nullptr;
    return [this, lines] {
      for (const std::string& line : lines) {
        hooks_.event("kept_files", {{"generation", options_.generation}, {"why", line}});
        hooks_.warn("warning: " + line);
      }
    };
  });
}

void LocalCheckpoint::CheckRoom() {
  worker_->Post([this]() -> Worker::Then {
    const absl::Status status =
        CheckRoomToKeep(*log_, options_.run_directory, need_, config_->checkpoint.keep_last);
    if (status.ok()) return nullptr;
    return [this, status] {
      hooks_.event("little_room", {{"generation", options_.generation}, {"why", Message(status)}});
      hooks_.warn("warning: " + Message(status));
    };
  });
}

void LocalCheckpoint::On(const CheckpointCommit::Join&) {
  parts_.clear();
  absl::Status status;
  for (const auto& [_, runs] : runs_) {
    absl::StatusOr<PartReport> part = JoinRuns(runs);
    status.Update(part.status());
    if (part.ok()) parts_.push_back(*std::move(part));
  }
  Note(status);
  CheckpointCommit::Joined joined{.readers = {}, .ok = status.ok()};
  for (size_t file = 0; file < parts_.size(); ++file) joined.readers.push_back(ReaderOf(file));
  Step(joined);
}

void LocalCheckpoint::SendOrder(int rank, int kind, const std::string& part) {
  Json order = {{"type", "order"}, {"step", now_.step}, {"kind", kind}, {"nonce", Nonce()}};
  if (!part.empty()) order["part"] = part;
  hooks_.send(rank, order);
}

void LocalCheckpoint::On(const CheckpointCommit::Verify& effect) {
  const PartReport& part = parts_[static_cast<size_t>(effect.file)];
  watch_.Begin(Now(), effect.rank, Reading(part.file));
  SendOrder(effect.rank, static_cast<int>(SaveOrder::Kind::kVerify), SerializePart(part));
}

void LocalCheckpoint::On(const CheckpointCommit::Publish&) {
  Manifest manifest = hooks_.head(now_.step);
  manifest.parts = std::move(parts_);
  now_.name = Name();
  watch_.Begin(Now(), kSupervisor, kPublishing);
  worker_->Post([this, name = now_.name, manifest = std::move(manifest)] {
    const Publication done =
        PublishCheckpoint(options_.run_directory, name, *table_, manifest, *log_);
    // For people, and no part of the checkpoint.
    absl::Status view;
    if (done.status.ok()) {
      const std::string directory = options_.run_directory + "/ckpt/" + name;
      const absl::StatusOr<Manifest> written = ReadManifest(directory, nullptr);
      view = written.ok() ? WriteView(directory, *written, *table_) : written.status();
    }
    return [this, done, view] {
      watch_.End(kSupervisor, kPublishing);
      if (done.lost) return hooks_.lost(done.status);
      if (!done.warning.ok()) hooks_.warn("warning: " + Message(done.warning));
      if (!view.ok()) hooks_.warn("warning: " + Message(view));
      now_.certificate = done.certificate;
      now_.bytes = done.bytes;
      Note(done.status);
      Step(CheckpointCommit::Published{.ok = done.status.ok()});
    };
  });
}

void LocalCheckpoint::On(const CheckpointCommit::Write&) {
  runs_.clear();
  first_rank_.clear();
  for (auto& [rank, what] : writing_) {
    // A rank without a share answers at once.
    what = fmt::format("writing {}/{}", Name(), std::filesystem::path(what).filename().string());
    watch_.Begin(Now(), rank, what);
    SendOrder(rank, static_cast<int>(SaveOrder::Kind::kWrite), "");
  }
}

void LocalCheckpoint::On(const CheckpointCommit::Settle& effect) {
  runs_.clear();
  first_rank_.clear();
  parts_.clear();
  writing_.clear();
  watch_.Clear();
  if (effect.committed) now_.status = absl::OkStatus();
  const Settled settled = now_;
  for (int rank = 0; rank < config_->layout.ranks(); ++rank)
    SendOrder(rank, static_cast<int>(SaveOrder::Kind::kSettled), "");
  hooks_.settled(settled);
  if (!effect.committed) return;
  ExportMissing();
  RetireOld();
}

void LocalCheckpoint::ExportMissing() {
  worker_->Post([this]() -> Worker::Then {
    return [this, missing = MissingExports(*log_, options_.run_directory, config_->checkpoint)] {
      for (const CheckpointEntry& entry : missing)
        if (begun_exports_.insert(entry.commit.checkpoint).second) Export(entry);
    };
  });
}

void LocalCheckpoint::Export(const CheckpointEntry& entry) {
  exporter_->Post([this, entry]() -> Worker::Then {
    const absl::Status status = ExportFromRun(options_.run_directory, entry, *config_);
    return [this, entry, status] {
      hooks_.event("export", {{"step", entry.commit.step},
                              {"checkpoint", entry.commit.checkpoint},
                              {"format", config_->checkpoint.export_format},
                              {"written", status.ok()},
                              {"why", Message(status)}});
      if (!status.ok()) {
        failed_exports_.insert(entry.commit.checkpoint);
        hooks_.warn(fmt::format("warning: step {} was not exported: {}; training goes on",
                                entry.commit.step, Message(status)));
      }
      RetireOld();  // It was kept for this.
    };
  });
}

void LocalCheckpoint::RetireOld() {
  worker_->Post([this, failed = failed_exports_]() -> Worker::Then {
    KeepRule rule{.keep_last = config_->checkpoint.keep_last,
                  .keep_every_steps = config_->checkpoint.keep_every_steps,
                  .phase_end_steps = options_.phase_end_steps,
                  .in_use = {}};
    // An export appears when nothing is read for it any more.
    for (const CheckpointEntry& entry :
         MissingExports(*log_, options_.run_directory, config_->checkpoint))
      if (!failed.contains(entry.commit.checkpoint)) rule.in_use.push_back(entry.commit.checkpoint);
    const Retirement done =
        RetireCheckpoints(options_.run_directory, options_.generation, rule, *log_);
    if (done.status.ok() && done.deleted.empty()) return nullptr;
    return [this, done] {
      if (done.lost) return hooks_.lost(done.status);
      // What cannot be deleted costs space, not the run.
      if (!done.status.ok()) hooks_.warn("warning: " + Message(done.status));
      for (const auto& [name, status] : done.deleted) {
        hooks_.event("retire",
                     {{"checkpoint", name}, {"deleted", status.ok()}, {"why", Message(status)}});
        if (!status.ok()) hooks_.warn("warning: " + Message(status));
      }
    };
  });
}

}  // namespace perdure
