#include "tests/agent/checkpoint_desk.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <utility>

#include "ckpt/packed_report.h"
#include "ckpt/run_writer.h"
#include "ckpt/verify.h"
#include "model/parameters.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kJob = 7;
constexpr Author kMe{{.job = kJob, .node = 0}, 0x1234};

// The state that the run has at `step`.
TestState StateOf(const AtomTable& table, StepIndex step) {
  return TestState(table, static_cast<uint64_t>(step) + 17);
}

}  // namespace

RunConfig DeskConfig() {
  RunConfig config;
  config.name = "desk";
  config.model.layers = 2;
  config.model.hidden = 16;
  config.model.heads = 4;
  config.model.kv_heads = 4;
  config.model.head_dim = 4;
  config.model.ffn = 24;
  config.model.vocab = 29;
  config.numerics.tensor_shards = 4;
  config.numerics.atom_elements = 200;
  config.checkpoint.keep_last = 2;
  config.phases.resize(2);
  config.phases[0] = {
      .name = "first", .samples = 40, .context = 8, .batch = {.final = 4}, .rate = {}};
  config.phases[1] = {
      .name = "second", .samples = 10, .context = 16, .batch = {.final = 2}, .rate = {}};
  return config;
}

CheckpointDesk::CheckpointDesk(const std::string& run_directory, const RunConfig& of, bool retry)
    : config(of),
      run_(run_directory),
      retry_(retry),
      table_(ModelTensors(of.model, of.numerics.tensor_shards), of.numerics.atom_elements),
      loop_(*EventLoop::New()),
      log_(*ControlLog::New(loop_.get(), *RunLog::Open(run_directory))) {
  hooks.event = [this](const std::string& what, const nlohmann::json& fields) {
    events_.emplace_back(what, fields);
  };
  hooks.warn = [this](const std::string& line) { warnings.push_back(line); };
  hooks.note = [this](uint64_t tag) {
    if (takes_notes) tags.push_back(tag);
    return takes_notes;
  };
  hooks.print = [](const RunConfig& c) {
    return fmt::format("[run]\nname = \"{}\"\ndata = {}\n", c.name, c.layout.data);
  };
}

CheckpointDesk::~CheckpointDesk() {
  log_.reset();
  store_.reset();
}

void CheckpointDesk::Open() {
  EXPECT_OK(MakeDirectories(run_ + "/ckpt"));
  auto store = RunCheckpoints::New(loop_.get(),
                                   {.run_directory = run_,
                                    .job = kJob,
                                    .config = config,
                                    .ranks_per_node = 1,
                                    .retry = retry_,
                                    .data_files = {},
                                    .patience = patience},
                                   hooks);
  ASSERT_OK(store.status());
  store_ = *std::move(store);
}

bool CheckpointDesk::Until(const std::function<bool()>& done) {
  const absl::Time end = MonotonicNow() + absl::Seconds(60);
  while (!done() && MonotonicNow() < end) loop_->RunOnce(MonotonicNow() + absl::Milliseconds(20));
  return done();
}

void CheckpointDesk::Settle() {
  do {
    MakeNotes();
    store_->Finish();
  } while (!tags.empty());
}

void CheckpointDesk::Lead() {
  if (store_ == nullptr) Open();
  const LogEntry lead = Entry(EntryKind::kLead);
  term = lead.slot;
  std::optional<ControlLog::Filled> filled;
  log_->Append(
      lead, [] { return SerializeLead({.address = "10.0.0.5:4711"}); },
      [&](const ControlLog::Filled& f) { filled = f; });
  ASSERT_TRUE(Until([&] { return filled.has_value(); }));
  ASSERT_OK(filled->status);
  tags.clear();  // With the coordinator before.
  store_->Leads();
}

void CheckpointDesk::LoseLead() {
  tags.clear();
  store_->LeadEnds();
}

LogEntry CheckpointDesk::Entry(EntryKind kind, StepIndex step) {
  LogEntry entry;
  entry.slot = Log().next_slot();
  entry.kind = kind;
  entry.author = kMe;
  entry.id = ++ids_;
  entry.generation = generation;
  entry.step = step;
  return entry;
}

void CheckpointDesk::Start(const std::string& checkpoint, int32_t data) {
  StepIndex step = 0;
  if (!checkpoint.empty()) {
    const auto opened = OpenChosen(run_, checkpoint);
    ASSERT_OK(opened.status());
    step = opened->manifest.step;
  }
  ++generation;
  data_ = data;
  StartRecord start{.shape = {.tensor = 1, .pipeline = 1, .data = data},
                    .seats = {},
                    .layout = "test",
                    .step = step};
  for (int32_t rank = 0; rank < data; ++rank)
    start.seats.push_back({.node = static_cast<NodeId>(rank), .local_rank = 0});
  std::optional<ControlLog::Filled> filled;
  log_->Append(
      Entry(EntryKind::kStart), [&] { return SerializeStart(start); },
      [&](const ControlLog::Filled& f) { filled = f; });
  ASSERT_TRUE(Until([&] { return filled.has_value(); }));
  ASSERT_OK(filled->status);
}

void CheckpointDesk::Present(const std::string& checkpoint) {
  store_->Do(Coordinator::AllPresent{.generation = generation, .checkpoint = checkpoint});
}

std::optional<Coordinator::CheckpointChosen> CheckpointDesk::Choose(const std::string& bad) {
  std::optional<Coordinator::CheckpointChosen> chosen;
  store_->Do(
      Coordinator::ChooseCheckpoint{
          .term = term, .question = ++questions_, .last_is_bad = !bad.empty(), .last = bad},
      [&](const Coordinator::CheckpointChosen& c) { chosen = c; });
  store_->Finish();
  if (chosen.has_value()) {
    EXPECT_EQ(chosen->question, questions_);
  }
  return chosen;
}

StepIndex CheckpointDesk::Load() {
  const auto chosen = Choose();
  if (!chosen.has_value() || !chosen->ok) return -2;
  Start(chosen->packed);
  Present(chosen->packed);
  Settle();
  return chosen->step.value_or(-1);
}

CheckpointDesk::Layout CheckpointDesk::LayoutNow() const {
  Layout layout{.config = config, .writers = {}};
  layout.config.layout.data = data_;
  layout.writers = PlanWriters(layout.config, table_, 1);
  return layout;
}

std::string CheckpointDesk::Name(StepIndex step, int32_t attempt) const {
  return CheckpointName(step, generation, AttemptNonce(term, attempt));
}

bool CheckpointDesk::Measure(StepIndex step) {
  std::optional<Coordinator::Measured> measured;
  store_->Do(Coordinator::MeasureRoom{.generation = generation, .step = step},
             [&](const Coordinator::Measured& m) { measured = m; });
  EXPECT_TRUE(Until([&] { return measured.has_value(); }));
  return measured.has_value() && measured->ok && measured->generation == generation &&
         measured->step == step;
}

std::vector<NodeRuns> CheckpointDesk::Write(StepIndex step, int32_t attempt) {
  const Layout layout = LayoutNow();
  const std::string directory = run_ + "/ckpt/" + Name(step, attempt);
  EXPECT_OK(MakeDirectories(directory));
  TestState state = StateOf(table_, step);
  std::vector<NodeRuns> members;
  for (size_t rank = 0; rank < layout.writers.ranks.size(); ++rank) {
    NodeRuns& member = members.emplace_back();
    member.generation = generation;
    member.step = step;
    member.nonce = AttemptNonce(term, attempt);
    if (rank == 0)
      member.trail = Trail{.sample_chain = DigestOf(fmt::format("samples of {}", step)),
                           .recent = {{2.5, 0.75}}};
    member.seconds.write = 0.5 + static_cast<double>(rank);
    const Writers::Place place = layout.writers.ranks[rank];
    if (place.file < 0) continue;
    const PartPlan& plan = layout.writers.files[static_cast<size_t>(place.file)];
    const auto writer = RunWriter::Create(
        directory, table_, plan, static_cast<size_t>(place.run),
        {.step = step, .generation = generation, .run_id = log_->run_id()}, {.buffers = 8});
    EXPECT_OK(writer.status());
    if (!writer.ok()) return members;
    size_t first = 0;
    for (int64_t run = 0; run < place.run; ++run)
      first += static_cast<size_t>(plan.runs[static_cast<size_t>(run)]);
    for (int64_t i = 0; i < plan.runs[static_cast<size_t>(place.run)]; ++i)
      EXPECT_OK((*writer)->Append(
          state.states()[static_cast<size_t>(plan.atoms[first + static_cast<size_t>(i)])]));
    auto report = (*writer)->Finish();
    EXPECT_OK(report.status());
    if (report.ok()) member.runs.push_back(*std::move(report));
  }
  return members;
}

std::optional<Coordinator::PartsJoined> CheckpointDesk::Join(StepIndex step,
                                                             std::vector<std::string> packed,
                                                             int32_t attempt) {
  std::optional<Coordinator::PartsJoined> joined;
  store_->Do(
      Coordinator::JoinParts{
          .generation = generation, .step = step, .attempt = attempt, .packed = std::move(packed)},
      [&](const Coordinator::PartsJoined& j) { joined = j; });
  store_->Finish();
  return joined;
}

std::optional<Coordinator::PartsJoined> CheckpointDesk::Join(StepIndex step,
                                                             const std::vector<NodeRuns>& members,
                                                             int32_t attempt) {
  std::vector<std::string> packed;
  for (const NodeRuns& member : members) packed.push_back(PackNodeRuns(member));
  return Join(step, std::move(packed), attempt);
}

absl::Status CheckpointDesk::Verify(StepIndex step, const Coordinator::PartsJoined& joined,
                                    int32_t attempt) {
  for (const std::string& packed : joined.parts) {
    ASSIGN_OR_RETURN(const PartReport part, UnpackPart(packed));
    RETURN_IF_ERROR(VerifyPart(run_ + "/ckpt/" + Name(step, attempt), part, table_,
                               {.step = step, .generation = generation, .run_id = log_->run_id()},
                               nullptr));
  }
  return absl::OkStatus();
}

ControlLog::Filled CheckpointDesk::Commit(const LogEntry& entry, int32_t attempt) {
  std::optional<ControlLog::Filled> filled;
  log_->Append(
      entry,
      [this, entry, attempt]() -> absl::StatusOr<std::string> {
        ASSIGN_OR_RETURN(const CommitRecord commit, store_->Publish(entry, term, attempt));
        return SerializeCommit(commit);
      },
      [&](const ControlLog::Filled& f) { filled = f; });
  EXPECT_TRUE(Until([&] { return filled.has_value(); }));
  return *filled;
}

absl::Status CheckpointDesk::Save(StepIndex step, bool settles) {
  if (!Measure(step)) return ResourceExhausted("no room");
  const auto joined = Join(step, Write(step));
  if (!joined.has_value() || !joined->ok) return DataLoss("not joined");
  RETURN_IF_ERROR(Verify(step, *joined));
  const ControlLog::Filled filled = Commit(step);
  RETURN_IF_ERROR(filled.status);
  store_->Do(Coordinator::SaveOver{.generation = generation, .step = step, .committed = true});
  if (settles) Settle();
  return absl::OkStatus();
}

void CheckpointDesk::MakeNotes() {
  while (!tags.empty()) {
    const uint64_t tag = tags.front();
    tags.pop_front();
    std::optional<ControlLog::Filled> filled;
    log_->AppendNote(
        Entry(EntryKind::kNote), [this, tag] { return store_->NoteBody(tag); },
        [&](const ControlLog::Filled& f) { filled = f; });
    ASSERT_TRUE(Until([&] { return filled.has_value(); }));
    if (filled->no_body) continue;
    ASSERT_OK(filled->status);
    store_->Do(Coordinator::Noted{.tag = tag});
  }
}

ControlLog::Filled CheckpointDesk::Append(RecordType type, const std::string& body) {
  std::optional<ControlLog::Filled> filled;
  log_->AppendNote(
      Entry(EntryKind::kNote),
      [&]() -> absl::StatusOr<ControlLog::NoteBody> {
        return ControlLog::NoteBody{.type = type, .body = body};
      },
      [&](const ControlLog::Filled& f) { filled = f; });
  EXPECT_TRUE(Until([&] { return filled.has_value(); }));
  EXPECT_OK(filled->status);
  return *filled;
}

std::vector<std::string> CheckpointDesk::Story() const {
  std::vector<std::string> story;
  const auto step = [](const std::string& name) { return std::stol(name.substr(1)); };
  const RunLog log = Log();
  for (const Record& record : log.records()) {
    if (record.type == RecordType::kCommit)
      story.push_back(fmt::format("commit {}", ParseCommit(record.body)->step));
    if (record.type == RecordType::kAttempt)
      story.push_back(fmt::format("attempt {}", step(ParseAttempt(record.body)->name)));
    if (record.type == RecordType::kVerified) {
      const VerifiedRecord verified = *ParseVerified(record.body);
      story.push_back(fmt::format("{} {}", verified.kind, step(verified.name)));
    }
    if (record.type == RecordType::kRetire) {
      const RetireRecord retire = *ParseRetire(record.body);
      for (const std::string& name : retire.names)
        story.push_back(fmt::format("retire {}", step(name)));
    }
  }
  return story;
}

bool CheckpointDesk::Warned(const std::string& part) const {
  for (const std::string& line : warnings)
    if (line.find(part) != std::string::npos) return true;
  return false;
}

std::vector<nlohmann::json> CheckpointDesk::Events(const std::string& what) const {
  std::vector<nlohmann::json> found;
  for (const auto& [name, fields] : events_)
    if (name == what) found.push_back(fields);
  return found;
}

}  // namespace perdure
