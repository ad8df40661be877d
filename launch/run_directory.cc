#include "launch/run_directory.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/config.h"
#include "launch/instruction_set.h"
#include "launch/local_checkpoint.h"
#include "runtime/agent/process.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

// Loads of a checkpoint without a good step behind them, after which it is passed over.
constexpr int64_t kAttemptsMax = 2;

// A live supervisor on this directory: its status says so and its process is there.
absl::Status CheckNotRunning(const std::string& run_directory) {
  const absl::StatusOr<std::string> text = ReadFile(run_directory + "/status.json");
  if (!text.ok()) return absl::OkStatus();
  const nlohmann::json status = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!status.is_object()) return absl::OkStatus();
  const std::string state = status.value("state", "");
  const int pid = status.value("supervisor_pid", 0);
  if ((state == "starting" || state == "running" || state == "stopping") && pid != ::getpid() &&
      ProcessLives(pid, status.value("supervisor_start", uint64_t{0})))
    return FailedPrecondition(
        "run directory {} has a live job (process {}, state {}); stop it with: perdure stop {}",
        run_directory, pid, state, run_directory);
  return absl::OkStatus();
}

// The manifest, and whether its files are there in full length: what can be known without reading
// the state.
absl::StatusOr<Manifest> Inspect(const CheckpointEntry& entry) {
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(entry.path, &entry.commit.manifest));
  for (const PartReport& part : manifest.parts) {
    const std::string path = entry.path + "/" + part.file;
    std::error_code error;
    const uint64_t bytes = std::filesystem::file_size(path, error);
    if (error == std::errc::no_such_file_or_directory)
      return DataLoss("{} is gone (a purge of files that nobody touched?)", path);
    if (error) return ErrnoStatus(error.value(), "stat " + path);
    if (bytes != part.bytes)
      return DataLoss("{} has {} bytes; the manifest says {}", path, bytes, part.bytes);
  }
  return manifest;
}

// The newest checkpoint that may be loaded. A file system that does not answer is no reason to take
// an older one.
absl::Status FindStart(const std::string& run_directory, bool retry, OpenedRun& run) {
  int bad = 0, tried = 0;
  for (const CheckpointEntry& entry : ListCheckpoints(run.log, run_directory)) {
    if (entry.retired || entry.quarantined) {
      bad += entry.quarantined ? 1 : 0;
      continue;
    }
    if (entry.failed_attempts >= kAttemptsMax && !retry) {
      std::fprintf(
          stderr,
          "perdure: checkpoint %s was loaded %ld times without a good step behind it; trying "
          "the one before (--retry loads it again)\n",
          entry.path.c_str(), entry.failed_attempts);
      ++tried;
      continue;
    }
    absl::StatusOr<Manifest> manifest = Inspect(entry);
    if (!manifest.ok()) {
      const absl::Status& status = manifest.status();
      if (!absl::IsDataLoss(status) && !absl::IsNotFound(status)) return status;
      std::fprintf(stderr, "perdure: checkpoint %s is bad (%s) and goes to quarantine/\n",
                   entry.path.c_str(), Message(status).c_str());
      RETURN_IF_ERROR(
          QuarantineCheckpoint(run_directory, entry.commit.checkpoint, Message(status)));
      ++bad;
      continue;
    }
    run.start.step = manifest->step;
    run.start.sample_chain = manifest->sample_chain;
    run.start.checkpoint = entry.path;
    run.manifest_digest = entry.commit.manifest;
    run.start.manifest = *std::move(manifest);
    return absl::OkStatus();
  }
  if (bad + tried > 0)
    return DataLoss(
        "of the checkpoints of {}, {} are bad and {} were loaded {} times without a good step: "
        "restore "
        "one from a copy, load the latter once more with --retry, or begin anew in another run "
        "directory",
        run_directory, bad, tried, kAttemptsMax);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenedRun> OpenRun(const std::string& run_directory, const RunConfig& asked,
                                  bool retry) {
  const std::string frozen_path = run_directory + "/run.toml";
  RunConfig config = asked;
  const absl::StatusOr<std::string> frozen_text = ReadFile(frozen_path);
  if (!frozen_text.ok()) {
    if (frozen_text.status().code() != absl::StatusCode::kNotFound) return frozen_text.status();
    if (std::filesystem::exists(run_directory + "/log"))
      return DataLoss("{} has a run log but no run.toml; restore it from a backup", run_directory);
    RETURN_IF_ERROR(ResolveIsa(config, nullptr));
    RETURN_IF_ERROR(MakeDirectories(run_directory));
    ASSIGN_OR_RETURN(RunLog log, RunLog::Open(run_directory));
    RETURN_IF_ERROR(ReplaceFile(frozen_path, PrintConfig(config)));
    return OpenedRun{.config = config, .log = std::move(log), .start = {}, .manifest_digest = {}};
  }
  RETURN_IF_ERROR(CheckNotRunning(run_directory));
  ASSIGN_OR_RETURN(const RunConfig frozen, ParseConfig(*frozen_text, frozen_path, {}));
  RETURN_IF_ERROR(ResolveIsa(config, &frozen));
  ASSIGN_OR_RETURN(RunLog log, RunLog::Open(run_directory));
  OpenedRun run{.config = config, .log = std::move(log), .start = {}, .manifest_digest = {}};
  // Phases begun by any checkpoint that was ever committed are fixed, whichever of them is loaded
  // below.
  int phases_begun = 0;
  const StepSchedule schedule(frozen);
  for (const CheckpointEntry& entry : ListCheckpoints(run.log, run_directory))
    for (size_t p = 0; p < schedule.phases().size(); ++p)
      if (entry.commit.step > schedule.phases()[p].first_step)
        phases_begun = std::max(phases_begun, static_cast<int>(p) + 1);
  RETURN_IF_ERROR(CheckFrozen(frozen, config, phases_begun));
  RETURN_IF_ERROR(FindStart(run_directory, retry, run));
  if (PrintConfig(config) != *frozen_text)
    RETURN_IF_ERROR(ReplaceFile(frozen_path, PrintConfig(config)));
  return run;
}

}  // namespace perdure
