#include "runtime/agent/run_checkpoints.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "ckpt/packed_report.h"
#include "ckpt/room.h"
#include "model/parameters.h"
#include "monitoring/journal.h"
#include "runtime/agent/checkpoint_room.h"
#include "runtime/base/status.h"
#include "runtime/control/layout_planner.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

constexpr const char* kBadReason =
    "ranks that loaded it found another state than was committed: their logs say which atoms";

std::optional<StartRecord> StartOf(const RunLog& log, Generation generation) {
  for (auto record = log.records().rbegin(); record != log.records().rend(); ++record)
    if (record->type == RecordType::kStart && record->generation == generation)
      return *ParseStart(record->body);
  return std::nullopt;
}

// Whether the run log knows nothing that came after this LEAD's coordinator.
bool InOffice(const RunLog& log, Slot term) {
  for (auto record = log.records().rbegin(); record != log.records().rend(); ++record)
    if (record->type == RecordType::kLead || record->type == RecordType::kEnd)
      return record->type == RecordType::kLead && record->slot == term;
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunCheckpoints>> RunCheckpoints::New(EventLoop* loop,
                                                                    const Options& options,
                                                                    Hooks hooks) {
  ASSIGN_OR_RETURN(std::unique_ptr<Worker> worker, Worker::Start());
  ASSIGN_OR_RETURN(std::unique_ptr<Worker> exporter, Worker::Start(Worker::Priority::kLow));
  std::unique_ptr<RunCheckpoints> made(
      new RunCheckpoints(loop, options, std::move(hooks), std::move(worker), std::move(exporter)));
  RETURN_IF_ERROR(made->Watch());
  return made;
}

RunCheckpoints::RunCheckpoints(EventLoop* loop, const Options& options, Hooks hooks,
                               std::unique_ptr<Worker> worker, std::unique_ptr<Worker> exporter)
    : loop_(loop),
      options_(options),
      hooks_(std::move(hooks)),
      table_(ModelTensors(options.config.model, options.config.numerics.tensor_shards),
             options.config.numerics.atom_elements),
      schedule_(options.config),
      reader_(options.run_directory),
      watch_(options.patience),
      worker_(std::move(worker)),
      exporter_(std::move(exporter)) {}

absl::Status RunCheckpoints::Watch() {
  for (Worker* worker : {worker_.get(), exporter_.get()})
    RETURN_IF_ERROR(
        loop_->AddFd(worker->fd(), EventLoop::kReadable, [worker](uint32_t) { worker->Drain(); }));
  return absl::OkStatus();
}

RunCheckpoints::~RunCheckpoints() {
  loop_->CancelTimer(timer_);
  for (Worker* worker : {worker_.get(), exporter_.get()}) loop_->RemoveFd(worker->fd());
}

void RunCheckpoints::Finish() {
  // What one finds the other does.
  for (Worker* worker : {worker_.get(), exporter_.get(), worker_.get()}) worker->Finish();
}

void RunCheckpoints::Leads() {
  Forget();
  leading_ = true;
  leading_since_ = MonotonicNow();
  Tick();
}

void RunCheckpoints::LeadEnds() {
  Forget();
  leading_ = false;
}

// All that belongs to one lead.
void RunCheckpoints::Forget() {
  ++leads_;
  begun_ = false;
  loop_->CancelTimer(timer_);
  timer_ = {};
  saving_ = -1;
  trouble_.clear();
  watch_.Clear();
  choose_ = nullptr;
  wind_up_ = nullptr;
  asked_ = {};
  last_trouble_.clear();
  const std::lock_guard lock(mutex_);
  wanted_.clear();
  save_.reset();
  loaded_.clear();
}

// ---- which checkpoint a generation loads

// It may be asked again because the answer is late.
void RunCheckpoints::Do(const Coordinator::ChooseCheckpoint& order,
                        std::function<void(Coordinator::CheckpointChosen)> then) {
  asked_ = order;
  choose_ = std::move(then);
  Choose();
}

// Not before an attempt that was made is in the log, where it counts.
void RunCheckpoints::Choose() {
  if (choose_ == nullptr || choosing_ || Wants(RecordType::kAttempt)) return;
  choosing_ = true;
  worker_->Post([this, lead = leads_, order = asked_]() -> Worker::Then {
    return [this, lead, question = order.question, choice = ChooseNow(order)] {
      choosing_ = false;
      if (lead == leads_ && question == asked_.question)
        Chosen(choice);
      else
        Choose();
    };
  });
}

// One that is bad is named, so that no other goes to quarantine in its place when the question
// comes twice.
RunCheckpoints::Choice RunCheckpoints::ChooseNow(const Coordinator::ChooseCheckpoint& order) {
  Choice choice;
  const auto tell = [&choice](const std::string& line) { choice.lines.push_back(line); };
  const auto log = reader_.Read();
  choice.status = log.status();
  if (choice.status.ok() && !InOffice(**log, order.term))
    choice.status = Unavailable("this coordinator does not lead any more, says the run log");
  if (!choice.status.ok()) return choice;
  if (const auto bad = ParseChosen(order.last); order.last_is_bad && bad.ok()) {
    const std::filesystem::path run(options_.run_directory);
    std::error_code error;
    const bool aside = std::filesystem::exists(run / "quarantine" / bad->name, error);
    const bool there = !error && !aside && std::filesystem::exists(run / "ckpt" / bad->name, error);
    if (error) choice.status = ErrnoStatus(error.value(), "stat checkpoint " + bad->name);
    if (there) {
      tell(fmt::format("checkpoint {} is bad ({}) and goes to quarantine/", bad->name, kBadReason));
      choice.status = QuarantineCheckpoint(options_.run_directory, bad->name, kBadReason);
    }
    if (!choice.status.ok()) return choice;
  }
  absl::StatusOr<std::optional<StartCheckpoint>> start =
      ChooseStart(**log, options_.run_directory,
                  {.retry = options_.retry, .job = options_.job, .gaps = order.gaps}, tell);
  choice.status = start.status();
  if (start.ok()) choice.start = *std::move(start);
  return choice;
}

void RunCheckpoints::Chosen(const Choice& choice) {
  for (const std::string& line : choice.lines) {
    Event("start_checkpoint", {{"why", line}});
    Warn(line);
  }
  Coordinator::CheckpointChosen answer;
  answer.question = asked_.question;
  if (choice.status.ok()) {
    answer.ok = true;
    if (choice.start.has_value()) {
      answer.step = choice.start->manifest.step;
      answer.packed = PackChosen(*choice.start);
    }
  } else if (absl::IsDataLoss(choice.status)) {
    answer.exit_code = kExitPersonMustLook;
    answer.words = Message(choice.status);
  } else {
    // Not to be told is no reason to take an older one: the coordinator asks again.
    const std::string trouble = Message(choice.status);
    if (std::exchange(last_trouble_, trouble) != trouble)
      Warn("which checkpoint to load cannot be found out: " + trouble + "; trying on");
    return;
  }
  last_trouble_.clear();
  std::exchange(choose_, nullptr)(answer);
}

// Every rank has an address, hence a healthy device: they are about to meet and load. Without good
// steps behind it this counts against the checkpoint; so would not a bad device.
void RunCheckpoints::Do(const Coordinator::AllPresent& order) {
  generation_ = order.generation;
  if (const auto chosen = ParseChosen(order.checkpoint); chosen.ok()) {
    {
      const std::lock_guard lock(mutex_);
      loaded_ = chosen->name;
    }
    Want({.type = RecordType::kAttempt, .body = SerializeAttempt({.name = chosen->name})});
  }
  Begin();
}

void RunCheckpoints::Do(const Coordinator::GoodSteps& order) {
  {
    const std::lock_guard lock(mutex_);
    loaded_.clear();
  }
  Want({.type = RecordType::kVerified, .generation = order.generation});
}

// ---- a save

absl::StatusOr<std::shared_ptr<const RunCheckpoints::Plan>> RunCheckpoints::PlanOf(
    Generation generation) {
  if (plan_ != nullptr && plan_->generation == generation) return plan_;
  ASSIGN_OR_RETURN(const std::shared_ptr<const RunLog> log, reader_.Read());
  const std::optional<StartRecord> start = StartOf(*log, generation);
  if (!start.has_value() || start->shape.data < 1)
    return FailedPrecondition("the run log has no START of generation {} with ranks", generation);
  auto plan = std::make_shared<Plan>();
  plan->generation = generation;
  plan->run_id = log->run_id();
  plan->config = options_.config;
  plan->gaps = start->gaps;
  plan->config.layout.tensor = start->shape.tensor;
  plan->config.layout.pipeline = start->shape.pipeline;
  plan->config.layout.data = start->shape.data;
  plan->writers = PlanWriters(plan->config, table_,
                              RanksPerFile(plan->config.checkpoint, options_.ranks_per_node));
  plan->need = CheckpointNeed(table_, plan->writers.files);
  plan_ = std::move(plan);
  return plan_;
}

void RunCheckpoints::Do(const Coordinator::MeasureRoom& order,
                        std::function<void(Coordinator::Measured)> then) {
  generation_ = order.generation;
  saving_ = order.step;
  Stage("looking for room");
  worker_->Post([this, lead = leads_, order, then = std::move(then)]() -> Worker::Then {
    const auto plan = PlanOf(order.generation);
    const absl::Status status =
        plan.ok() ? CheckRoomForOne(options_.run_directory, (*plan)->need) : plan.status();
    return [this, lead, order, then, status] {
      if (lead != leads_) return;
      watch_.Clear();  // What the ranks do now their own agents say.
      trouble_ = Message(status);
      then({.generation = order.generation, .step = order.step, .ok = status.ok()});
    };
  });
  Begin();  // Behind it.
}

Manifest RunCheckpoints::HeadOf(const Plan& plan, StepIndex step, const Trail& trail) const {
  const Consumed consumed = schedule_.After(step);
  Manifest manifest;
  manifest.step = step;
  manifest.samples = consumed.samples;
  manifest.tokens = consumed.tokens;
  manifest.phase = consumed.phase;
  manifest.phase_name = plan.config.phases[static_cast<size_t>(consumed.phase)].name;
  manifest.generation = plan.generation;
  manifest.run_id = plan.run_id;
  manifest.config = hooks_.print(plan.config);
  manifest.trail = trail;
  manifest.gaps = GapsBehind(plan.gaps, step);
  manifest.layout = LayoutWords(plan.config.layout);
  manifest.created = TimeNow();
  return manifest;
}

absl::StatusOr<RunCheckpoints::Save> RunCheckpoints::Join(const Coordinator::JoinParts& order,
                                                          Coordinator::PartsJoined& answer) {
  if (order.step < 0 || order.step > schedule_.steps())
    return DataLoss("the run has {} steps and no step {}", schedule_.steps(), order.step);
  ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan, PlanOf(order.generation));
  std::vector<NodeRuns> members;
  for (size_t member = 0; member < order.packed.size(); ++member) {
    absl::StatusOr<NodeRuns> runs = ParseNodeRuns(order.packed[member]);
    if (!runs.ok()) return DataLoss("member {}: {}", member, Message(runs.status()));
    members.push_back(*std::move(runs));
  }
  if (members.empty()) return DataLoss("no member wrote anything");
  // Which nonce is right is known when it is published.
  NodeRuns name;
  name.generation = order.generation;
  name.step = order.step;
  name.nonce = members.front().nonce;
  ASSIGN_OR_RETURN(JoinedNodes joined, JoinNodes(name, plan->writers.files, members));
  for (const PartReport& part : joined.parts) answer.parts.push_back(PackPart(part));
  answer.readers = std::move(joined.readers);
  Save save{.generation = order.generation,
            .step = order.step,
            .attempt = order.attempt,
            .name = CheckpointName(name.step, name.generation, name.nonce),
            .manifest = HeadOf(*plan, order.step, joined.trail),
            .seconds = joined.seconds,
            .published = {}};
  save.manifest.parts = std::move(joined.parts);
  return save;
}

void RunCheckpoints::Do(const Coordinator::JoinParts& order,
                        std::function<void(Coordinator::PartsJoined)> then) {
  saving_ = order.step;
  Stage("putting together what the ranks wrote");
  worker_->Post([this, lead = leads_, order, then = std::move(then)]() -> Worker::Then {
    Coordinator::PartsJoined answer;
    auto save = std::make_shared<absl::StatusOr<Save>>(Join(order, answer));
    answer.generation = order.generation;
    answer.step = order.step;
    answer.attempt = order.attempt;
    answer.ok = save->ok();
    return [this, lead, order, then, save, answer = std::move(answer)]() mutable {
      if (lead != leads_) return;
      watch_.Clear();
      if (save->ok()) {
        const std::lock_guard lock(mutex_);
        save_ = *std::move(*save);
      } else {
        trouble_ = Message(save->status());
        Warn(fmt::format("warning: checkpoint of step {}, attempt {}: {}", order.step,
                         order.attempt, Message(save->status())));
      }
      then(std::move(answer));
    };
  });
}

// A record that could not be written is tried again: then the manifest stands already, and is what
// the record of the first try says, which may still get there.
absl::StatusOr<CommitRecord> RunCheckpoints::Publish(const LogEntry& commit, Slot term,
                                                     int32_t attempt) {
  const std::string name =
      CheckpointName(commit.step, commit.generation, AttemptNonce(term, attempt));
  Manifest manifest;
  {
    const std::lock_guard lock(mutex_);
    if (!save_.has_value() || save_->name != name || save_->attempt != attempt)
      return FailedPrecondition("the parts of checkpoint {} were not joined here", name);
    if (save_->published.has_value()) return *save_->published;
    manifest = std::move(save_->manifest);
  }
  (void)loop_->Post([this, step = commit.step] {
    if (leading_ && saving_ == step) Stage("publishing it");
  });
  const absl::StatusOr<CommitRecord> made =
      WriteCheckpointManifest(options_.run_directory, name, table_, std::move(manifest));
  const std::lock_guard lock(mutex_);
  if (save_.has_value() && save_->name == name) save_->published = made;
  return made;
}

void RunCheckpoints::Do(const Coordinator::SaveOver& order) {
  saving_ = -1;
  watch_.Clear();
  if (!order.committed) {
    const std::string why = trouble_.empty() ? "its nodes say why" : trouble_;
    Event("checkpoint_failed",
          {{"step", order.step}, {"generation", order.generation}, {"why", why}});
    Warn(fmt::format("warning: no checkpoint of step {}: {}; training goes on", order.step, why));
    return;
  }
  std::optional<Save> save;
  {
    const std::lock_guard lock(mutex_);
    if (!save_.has_value() || save_->generation != order.generation || save_->step != order.step ||
        !save_->published.has_value() || !save_->published->ok())
      return;
    save = std::exchange(save_, std::nullopt);
    loaded_.clear();
  }
  const CommitRecord& commit = **save->published;
  Event("checkpoint", {{"step", commit.step},
                       {"generation", save->generation},
                       {"checkpoint", commit.checkpoint},
                       {"certificate", commit.certificate.Hex()},
                       {"bytes", commit.bytes},
                       {"wait_seconds", save->seconds.wait},
                       {"freeze_seconds", save->seconds.freeze},
                       {"copy_seconds", save->seconds.copy},
                       {"write_seconds", save->seconds.write}});
  // Every byte was read back by another rank before.
  Want({.type = RecordType::kVerified,
        .body = SerializeVerified({.name = commit.checkpoint, .kind = "read"})});
  Retire();
  WriteViewOf(commit.checkpoint);
  ExportMissing();
}

}  // namespace perdure
