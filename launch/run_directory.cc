#include "launch/run_directory.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "launch/backend.h"
#include "launch/config.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

// Before what another job of this host may be reading is changed.
absl::StatusOr<LocalLock> Lock(const std::string& run_directory) {
  RETURN_IF_ERROR(MakeDirectories(run_directory + "/control"));
  return LocalLock::Take(run_directory);
}

// Where the run goes on; from the beginning where it has no checkpoint.
absl::Status FindStart(const std::string& run_directory, bool retry, OpenedRun& run) {
  ASSIGN_OR_RETURN(
      std::optional<StartCheckpoint> start,
      ChooseStart(run.log, run_directory, {.retry = retry}, [](const std::string& line) {
        std::fprintf(stderr, "perdure: %s\n", line.c_str());
      }));
  if (!start.has_value()) return absl::OkStatus();
  run.start.step = start->manifest.step;
  run.start.trail = start->manifest.trail;
  run.start.checkpoint = start->path;
  run.start.manifest = std::move(start->manifest);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RunConfig> LoadRun(const std::string& config_path, std::vector<std::string> settings,
                                  const std::string& exec, const std::string& run_directory) {
  namespace fs = std::filesystem;
  if (config_path.empty() && exec.empty())
    return InvalidArgument("what is to be run is not said: name a run.toml, or --exec COMMAND...");
  if (!exec.empty()) settings.push_back("exec.command=" + exec);
  const bool named = std::any_of(settings.begin(), settings.end(), [](const std::string& setting) {
    return setting.starts_with("run.name");
  });
  if (config_path.empty() && !named) {
    if (run_directory.empty())
      return InvalidArgument(
          "the run has no name: say --run-dir DIRECTORY, or --set run.name=NAME");
    const fs::path path = fs::absolute(run_directory).lexically_normal();
    const fs::path last = path.has_filename() ? path.filename() : path.parent_path().filename();
    settings.push_back("run.name=" + last.string());
  }
  ASSIGN_OR_RETURN(RunConfig config, LoadConfig(config_path, settings));
  if (config.foreign() && config.exec.directory.empty())
    config.exec.directory = fs::current_path().string();
  return config;
}

std::string RunDirectoryOf(const std::string& said, const std::string& run_name) {
  namespace fs = std::filesystem;
  return fs::absolute(said.empty() ? fs::path("runs") / run_name : fs::path(said))
      .lexically_normal();
}

std::string DataDirectoryOf(const std::string& said, const std::string& config_path) {
  namespace fs = std::filesystem;
  if (said.empty() && config_path.empty()) return fs::current_path();
  return said.empty() ? fs::absolute(config_path).parent_path() : fs::absolute(said);
}

absl::StatusOr<OpenedRun> OpenRun(const std::string& run_directory, const RunConfig& asked,
                                  bool retry) {
  const std::string frozen_path = run_directory + "/run.toml";
  RunConfig config = asked;
  const absl::StatusOr<std::string> frozen_text = ReadFile(frozen_path);
  if (!frozen_text.ok()) {
    if (frozen_text.status().code() != absl::StatusCode::kNotFound) return frozen_text.status();
    std::error_code error;
    if (std::filesystem::exists(run_directory + "/log", error) || error)
      return DataLoss("{} has a run log but no run.toml; restore it from a backup", run_directory);
    if (!config.foreign()) RETURN_IF_ERROR(ResolveBackend(config, nullptr));
    ASSIGN_OR_RETURN(LocalLock lock, Lock(run_directory));
    ASSIGN_OR_RETURN(RunLog log, RunLog::Open(run_directory));
    RETURN_IF_ERROR(ReplaceFile(frozen_path, PrintConfig(config)));
    return OpenedRun{.config = config, .lock = std::move(lock), .log = std::move(log), .start = {}};
  }
  ASSIGN_OR_RETURN(LocalLock lock, Lock(run_directory));
  ASSIGN_OR_RETURN(RunConfig frozen, ParseConfig(*frozen_text, frozen_path, {}));
  // A run that began before there was another.
  if (frozen.numerics.backend == "auto") frozen.numerics.backend = "cpu";
  if (!config.foreign() && !frozen.foreign()) RETURN_IF_ERROR(ResolveBackend(config, &frozen));
  ASSIGN_OR_RETURN(RunLog log, RunLog::Open(run_directory));
  OpenedRun run{.config = config, .lock = std::move(lock), .log = std::move(log), .start = {}};
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
