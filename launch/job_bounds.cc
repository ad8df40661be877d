#include "launch/job_bounds.h"

#include <cstdio>
#include <filesystem>
#include <memory>

#include "launch/agent_record.h"
#include "launch/exit_codes.h"
#include "launch/run_data.h"
#include "launch/run_exporter.h"
#include "monitoring/journal.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

void Say(const JobBounds& job, const std::string& line) {
  std::fprintf(stderr, "%s: %s\n", job.speaker.c_str(), line.c_str());
}

// Whether a job of it has ended with nothing left to do.
bool IsComplete(const RunLog& log) {
  return std::any_of(log.records().begin(), log.records().end(), [](const Record& record) {
    if (record.type != RecordType::kEnd) return false;
    const absl::StatusOr<EndRecord> end = ParseEnd(record.body);
    return end.ok() && end->exit_code == kExitComplete;
  });
}

// The exit code of a run that has nothing to do, which is said.
std::optional<int> NothingToDo(const JobBounds& job, const OpenedRun& run) {
  const std::string& name = run.config.name;
  if (run.config.foreign()) {
    if (!IsComplete(run.log)) return std::nullopt;
    Say(job, fmt::format("run {} is complete: its trainer has ended with 0", name));
    return kExitComplete;
  }
  if (run.start.step >= StepSchedule(run.config).steps()) {
    Say(job, fmt::format("run {} is complete at step {}", name, run.start.step));
    return kExitComplete;
  }
  if (job.until_step < 0 || !run.start.manifest.has_value() || run.start.step < job.until_step)
    return std::nullopt;
  Say(job, fmt::format("run {} is at step {} already; --until-step {} asks for nothing more", name,
                       run.start.step, job.until_step));
  return kExitStopped;
}

}  // namespace

std::optional<uint64_t> OpenJob(const RunLog& log) {
  std::optional<uint64_t> open;
  for (const Record& record : log.records()) {
    if (record.type == RecordType::kLead) open = record.author.at.job;
    if (record.type == RecordType::kEnd && open == record.author.at.job) open.reset();
  }
  return open;
}

int RefuseJob(const JobBounds& job, const absl::Status& status) {
  Say(job, Message(status));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kDataLoss:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

// Whether its layout and its data are such that it could train.
absl::Status Fits(const JobBounds& job) {
  if (job.config.foreign()) return absl::OkStatus();
  RETURN_IF_ERROR(ResolveLayout(job.config, job.ranks).status());
  return CheckData(job.config, job.data_directory);
}

BegunJob BeginJob(const JobBounds& job) {
  // Whether anything fits, said before anything is written.
  if (const absl::Status fits = Fits(job); !fits.ok())
    return {.run = {}, .exit_code = RefuseJob(job, fits)};
  absl::StatusOr<OpenedRun> run = OpenRun(job.run_directory, job.config, job.retry);
  if (!run.ok()) {
    const int refused = RefuseJob(job, run.status());
    return {.run = {}, .exit_code = absl::IsDataLoss(run.status()) ? kExitNoRestart : refused};
  }
  if (const std::optional<int> exit_code = NothingToDo(job, *run))
    return {.run = {}, .exit_code = *exit_code};
  return {.run = *std::move(run)};
}

int TellEnd(const JobBounds& job, const RunLog& log, const EndRecord& end) {
  const auto exit_code = static_cast<int>(end.exit_code);
  const std::string state = exit_code == kExitComplete  ? "complete"
                            : exit_code == kExitStopped ? "stopped"
                                                        : "failed";
  std::string certificate = "none";
  for (const Record& record : log.records())
    if (record.type == RecordType::kCommit)
      if (const absl::StatusOr<CommitRecord> commit = ParseCommit(record.body); commit.ok())
        certificate = commit->certificate.Hex();
  if (state != "failed" && job.config.foreign())
    std::fprintf(stderr, "%s\n", state.c_str());
  else if (state != "failed")
    std::fprintf(stderr, "%s\n",
                 fmt::format("{} at step {}/{}, certificate {}", state, end.step,
                             StepSchedule(job.config).steps(), certificate)
                     .c_str());
  // Whoever served there is gone.
  std::error_code none;
  std::filesystem::remove(TargetsPath(job.run_directory), none);
  absl::Status told = RecordState(job.run_directory, job.config, state, job.slurm_job);
  const absl::StatusOr<std::unique_ptr<Journal>> journal =
      Journal::Open(job.run_directory + "/journal.jsonl");
  told.Update(journal.status());
  if (journal.ok())
    told.Update((*journal)->Append("end", {{"generation", log.generation()},
                                           {"state", state},
                                           {"step", end.step},
                                           {"exit_code", exit_code},
                                           {"why", end.reason}}));
  if (!told.ok()) Say(job, "warning: " + Message(told));
  return exit_code;
}

}  // namespace perdure
