#include "launch/run_export.h"

#include <algorithm>
#include <filesystem>

#include "ckpt/checkpoint.h"
#include "launch/export.h"
#include "runtime/agent/run_key.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// The folder is the run's alone. A coordinator that was replaced may still be at one of them: then
// it finds that out, and the one that replaced it makes the export.
absl::Status DeleteHalfMade(const fs::path& folder, const std::string& name) {
  std::error_code error;
  std::vector<fs::path> half;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().filename().string().starts_with(name + ".partial"))
      half.push_back(entry.path());
  if (error) return ErrnoStatus(error.value(), "list " + folder.string());
  for (const fs::path& path : half) {
    fs::remove_all(path, error);
    if (error) return ErrnoStatus(error.value(), "delete " + path.string());
  }
  return absl::OkStatus();
}

}  // namespace

// Of the lines of steps that a run has taken no two have left out as many samples by one step.
std::string ExportName(const CheckpointEntry& entry) {
  const int64_t step = entry.commit.step, left_out = SamplesLeftOut(entry.gaps, 1, step);
  return left_out == 0 ? fmt::format("step{:07}", step)
                       : fmt::format("step{:07}-without{}", step, left_out);
}

std::vector<CheckpointEntry> MissingExports(const RunLog& log, const std::string& run_directory,
                                            const CheckpointConfig& config) {
  std::vector<CheckpointEntry> missing;
  std::error_code ignored;  // What cannot be seen is not there; exporting will tell.
  for (const CheckpointEntry& entry : ListCheckpoints(log, run_directory))
    if (!entry.retired && !entry.quarantined && !entry.left && config.exports(entry.commit.step) &&
        !fs::exists(fs::path(run_directory) / "export" / ExportName(entry), ignored))
      missing.push_back(entry);
  std::reverse(missing.begin(), missing.end());
  return missing;
}

absl::Status ExportFromRun(const std::string& run_directory, const CheckpointEntry& entry,
                           const RunConfig& config) {
  const fs::path folder = fs::path(run_directory) / "export";
  const std::string name = ExportName(entry);
  RETURN_IF_ERROR(MakeDirectories(folder.string()));
  RETURN_IF_ERROR(DeleteHalfMade(folder, name));
  // A name of its own, so that no two write into one.
  const std::string partial =
      (folder / fmt::format("{}.partial.{:016x}", name, RandomIncarnation())).string();
  ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(entry.path, &entry.commit.manifest));
  RETURN_IF_ERROR(
      ExportCheckpoint(entry.path, manifest, config,
                       {.format = config.checkpoint.export_format, .directory = partial}));
  std::error_code error;
  fs::rename(partial, folder / name, error);
  if (error == std::errc::directory_not_empty || error == std::errc::file_exists) {
    fs::remove_all(partial, error);  // The other one was quicker, and made the same.
    return absl::OkStatus();
  }
  if (error)
    return ErrnoStatus(error.value(),
                       fmt::format("rename {} to {}", partial, (folder / name).string()));
  return SyncDirectory(folder.string());
}

}  // namespace perdure
