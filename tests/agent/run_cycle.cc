#include "tests/agent/run_cycle.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "ckpt/run_writer.h"
#include "ckpt/verify.h"
#include "runtime/agent/records.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"

namespace perdure {

namespace fs = std::filesystem;

const AtomTable& CycleTable() {
  static const AtomTable table(OddTensors(), 64);
  return table;
}

TestState CycleState(int64_t step) {
  return TestState(CycleTable(), static_cast<uint64_t>(step) + 17);
}

RunCycle::RunCycle(std::string run_directory, const Options& options)
    : run_(std::move(run_directory)), options_(options) {}

absl::Status RunCycle::Start() {
  for (;;) {
    ASSIGN_OR_RETURN(log_, RunLog::Open(run_));
    ASSIGN_OR_RETURN(const std::optional<StartCheckpoint> start,
                     ChooseStart(*log_, run_, {}, [](const std::string&) {}));
    const absl::Status status = StartFrom(start);
    if (!absl::IsDataLoss(status) || !start.has_value()) return status;
    RETURN_IF_ERROR(End(1));
    RETURN_IF_ERROR(QuarantineCheckpoint(run_, base_, Message(status)));
  }
}

absl::Status RunCycle::StartFrom(const std::optional<StartCheckpoint>& start) {
  generation_ = log_->generation() + 1;
  step_ = start.has_value() ? start->manifest.step : -1;
  RETURN_IF_ERROR(log_->Append(RecordType::kStart, generation_,
                               SerializeStart(OneRankStart(std::max(step_, int64_t{0})))));
  if (!start.has_value()) return MakeDirectories(run_ + "/ckpt");
  base_ = fs::path(start->path).filename();
  RETURN_IF_ERROR(
      log_->Append(RecordType::kAttempt, generation_, SerializeAttempt({.name = base_})));
  return Load(*start);
}

// As ranks do, certificate included; and the test's own knowledge of the state.
absl::Status RunCycle::Load(const StartCheckpoint& start) {
  const AtomTable& table = CycleTable();
  TestState read(table, 1);
  RETURN_IF_ERROR(ReadAtoms(start.path, start.manifest, table, read.states()));
  std::vector<Digest> digests;
  for (const AtomState& state : read.states())
    digests.push_back(AtomDigest(state, table.atoms()[static_cast<size_t>(state.atom)].count));
  if (Certificate(table, digests, start.manifest.step, start.manifest.samples) !=
      start.manifest.certificate)
    return DataLoss("{} has another certificate", start.path);
  EXPECT_TRUE(read == CycleState(start.manifest.step)) << "a bad state was accepted";
  return absl::OkStatus();
}

absl::Status RunCycle::Ran() {
  if (base_.empty()) return absl::OkStatus();
  return log_->Append(RecordType::kVerified, generation_,
                      SerializeVerified({.name = base_, .kind = "ran"}));
}

absl::StatusOr<PartReport> RunCycle::Write(const std::string& directory, int64_t step) {
  const AtomTable& table = CycleTable();
  TestState state = CycleState(step);
  RETURN_IF_ERROR(MakeDirectories(directory));
  PartPlan plan{.file = "part-00000.h5", .atoms = {}, .runs = {}};
  const auto dealt = Deal(state.states(), options_.writers, 0);
  for (const auto& atoms : dealt) {
    plan.runs.push_back(static_cast<int64_t>(atoms.size()));
    for (const AtomState& atom : atoms) plan.atoms.push_back(atom.atom);
  }
  std::vector<RunReport> runs;
  for (size_t run = 0; run < dealt.size(); ++run) {
    ASSIGN_OR_RETURN(
        const auto writer,
        RunWriter::Create(directory, table, plan, run,
                          {.step = step, .generation = generation_, .run_id = log_->run_id()},
                          {.threads = 1, .buffers = 8}));
    for (const AtomState& atom : dealt[run]) RETURN_IF_ERROR(writer->Append(atom));
    ASSIGN_OR_RETURN(const RunReport written, writer->Finish());
    ASSIGN_OR_RETURN(RunReport report, ParseRun(SerializeRun(written)));
    runs.push_back(std::move(report));
  }
  return JoinRuns(runs);
}

// A record that was linked although the file system said otherwise is found by reading again. What
// cannot be found out ends the job: a record that may or may not stand must not be followed by one
// that contradicts it.
absl::Status RunCycle::Append(RecordType type, const std::string& body) {
  const absl::Status status = log_->Append(type, generation_, body);
  if (status.ok()) return status;
  lost_ = absl::IsAborted(status) || absl::IsFailedPrecondition(status);
  if (lost_) return status;
  const uint64_t slot = log_->next_slot();
  const absl::Status read = log_->Refresh();
  lost_ = !read.ok();
  if (lost_) return read;
  if (log_->next_slot() == slot) return status;
  const Record& last = log_->records().back();
  lost_ = log_->next_slot() > slot + 1 || last.type != type || last.generation != generation_ ||
          last.body != body;
  if (lost_) return Aborted("slot {} of {} is taken by another writer", slot, run_);
  const absl::Status synced = SyncDirectory(run_ + "/log");
  lost_ = !synced.ok();
  return synced;
}

absl::Status RunCycle::Attempt(int64_t step) {
  name_ = CheckpointName(step, generation_, nonce_++);
  const std::string directory = run_ + "/ckpt/" + name_;
  ASSIGN_OR_RETURN(PartReport part, Write(directory, step));
  RETURN_IF_ERROR(VerifyPart(directory, part, CycleTable(),
                             {.step = step, .generation = generation_, .run_id = log_->run_id()},
                             nullptr));
  Manifest manifest = TestManifest(CycleTable(), step);
  manifest.generation = generation_;
  manifest.run_id = log_->run_id();
  manifest.parts = {std::move(part)};
  ASSIGN_OR_RETURN(const CommitRecord commit,
                   WriteCheckpointManifest(run_, name_, CycleTable(), std::move(manifest)));
  RETURN_IF_ERROR(Append(RecordType::kCommit, SerializeCommit(commit)));
  // It counts without this record, too.
  const absl::Status verified =
      Append(RecordType::kVerified, SerializeVerified({.name = name_, .kind = "read"}));
  return lost_ ? verified : absl::OkStatus();
}

void RunCycle::Retire() {
  const absl::StatusOr<RetirementPlan> plan = PlanRetirement(run_, options_.keep, *log_);
  if (!plan.ok()) return;
  std::vector<std::string> names = plan->names;
  if (!names.empty() && !Append(RecordType::kRetire, SerializeRetire({.names = names})).ok())
    return;
  names.insert(names.end(), plan->left.begin(), plan->left.end());
  (void)DeleteRetired(run_, names);
}

absl::Status RunCycle::Save(int64_t step) {
  absl::Status status;
  for (int attempt = 0; attempt < 2; ++attempt) {
    status = Attempt(step);
    if (status.ok() || lost_) break;
  }
  if (!status.ok()) return status;
  Retire();
  return absl::OkStatus();
}

absl::Status RunCycle::End(int exit_code) {
  return log_->Append(
      RecordType::kEnd, generation_,
      SerializeEnd(
          {.reason = "test", .exit_code = exit_code, .step = std::max<int64_t>(step_, 0)}));
}

int64_t CheckRun(const std::string& run_directory, bool some_gone) {
  const auto log = RunLog::Open(run_directory);
  EXPECT_OK(log.status());
  if (!log.ok()) return -1;
  int64_t newest = -1, good = 0;
  for (const CheckpointEntry& entry : ListCheckpoints(*log, run_directory)) {
    if (entry.retired || entry.quarantined || (some_gone && !fs::exists(entry.path))) continue;
    const auto manifest = ReadManifest(entry.path, &entry.commit.manifest);
    EXPECT_OK(manifest.status());
    if (!manifest.ok()) return -1;
    TestState read(CycleTable(), 99);
    EXPECT_OK(ReadAtoms(entry.path, *manifest, CycleTable(), read.states()));
    EXPECT_TRUE(read == CycleState(entry.commit.step)) << entry.path;
    newest = std::max(newest, entry.commit.step);
    ++good;
  }
  EXPECT_GE(good, 2);
  return newest;
}

void MakeCycleRun(const std::string& run_directory) {
  RunCycle cycle(run_directory);
  ASSERT_OK(cycle.Start());
  for (int64_t step = 1; step <= 4; ++step) ASSERT_OK(cycle.Save(step));
  ASSERT_OK(cycle.End());
}

}  // namespace perdure
