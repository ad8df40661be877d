#include "launch/ckpt_target.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"

namespace perdure {

namespace fs = std::filesystem;

int FailCkpt(const absl::Status& status) {
  fmt::print(stderr, "perdure ckpt: {}\n", Message(status));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
      return kCkptUsage;
    default:
      return kCkptBad;
  }
}

ProgressLine::ProgressLine(std::string what)
    : what_(std::move(what)), terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (terminal_ && shown_) fmt::print(stderr, "\r\033[K");
}

void ProgressLine::Show(uint64_t done, uint64_t total) {
  const auto now = std::chrono::steady_clock::now();
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(30);
  if (now - last_ < pause || total == 0) return;
  last_ = now;
  shown_ = true;
  const double percent = 100.0 * static_cast<double>(done) / static_cast<double>(total);
  fmt::print(stderr, "{}{}: {:.0f} %{}", terminal_ ? "\r\033[K" : "", what_, percent,
             terminal_ ? "" : "\n");
}

std::string AbsolutePath(const std::string& path) {
  std::string normal = fs::absolute(path).lexically_normal().string();
  while (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

static bool IsRun(const fs::path& path) { return fs::is_directory(path / "log"); }

absl::StatusOr<std::vector<CheckpointEntry>> CheckpointsOfRun(const std::string& run) {
  if (!IsRun(run))
    return InvalidArgument("{} is not a run directory: it has no log/ (perdure run makes one)",
                           run);
  ASSIGN_OR_RETURN(const RunLog log, RunLog::Open(run));
  return ListCheckpoints(log, run);
}

static absl::StatusOr<CheckpointTarget> TargetAt(const std::string& path) {
  CheckpointTarget target{.path = path};
  const fs::path folder(path);
  const fs::path run = folder.parent_path().parent_path();
  if (folder.parent_path().filename() != "ckpt" || !IsRun(run)) return target;
  target.in_run = true;
  ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries, CheckpointsOfRun(run.string()));
  for (const CheckpointEntry& entry : entries)
    if (entry.commit.checkpoint == folder.filename()) target.entry = entry;
  return target;
}

absl::StatusOr<std::vector<CheckpointTarget>> ResolveCheckpoints(const std::string& argument) {
  const std::string path = AbsolutePath(argument);
  if (!fs::is_directory(path))
    return InvalidArgument("{} is not a directory: name a checkpoint or a run", argument);
  std::vector<CheckpointTarget> targets;
  if (IsRun(path)) {
    ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries, CheckpointsOfRun(path));
    for (const CheckpointEntry& entry : entries)
      if (!entry.retired && !entry.quarantined) targets.push_back({entry.path, true, entry});
    return targets;
  }
  std::error_code ignored;
  if (!fs::exists(fs::path(path) / "manifest.json", ignored) &&
      !IsCheckpointName(fs::path(path).filename().string()))
    return InvalidArgument("{} is neither a checkpoint (no manifest.json) nor a run (no log/)",
                           argument);
  ASSIGN_OR_RETURN(CheckpointTarget target, TargetAt(path));
  targets.push_back(std::move(target));
  return targets;
}

absl::StatusOr<CheckpointTarget> ResolveNewestCheckpoint(const std::string& argument) {
  ASSIGN_OR_RETURN(const std::vector<CheckpointTarget> targets, ResolveCheckpoints(argument));
  if (targets.empty()) return InvalidArgument("{} has no checkpoint yet", argument);
  return targets.front();
}

absl::StatusOr<Manifest> ManifestOf(const CheckpointTarget& target) {
  return ReadManifest(target.path, target.entry ? &target.entry->commit.manifest : nullptr);
}

absl::Status CheckCommitted(const CheckpointTarget& target) {
  if (!target.in_run || target.entry) return absl::OkStatus();
  return FailedPrecondition("{} has no COMMIT record: it was never finished", target.path);
}

}  // namespace perdure
