#include "runtime/agent/start_checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "ckpt/json_object.h"
#include "runtime/agent/records.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<Manifest> InspectCheckpoint(const CheckpointEntry& entry) {
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

namespace {

// A directory that is not there cannot be moved away, and may come back (from a copy, or from the
// file system's cache).
absl::Status SetAside(const std::string& run_directory, const CheckpointEntry& entry,
                      const std::string& why,
                      const std::function<void(const std::string& line)>& tell) {
  std::error_code error;
  if (!std::filesystem::exists(entry.path, error)) {
    if (error) return ErrnoStatus(error.value(), "stat " + entry.path);
    tell(fmt::format("checkpoint {} is gone; trying the one before", entry.path));
    return absl::OkStatus();
  }
  tell(fmt::format("checkpoint {} is bad ({}) and goes to quarantine/", entry.path, why));
  return QuarantineCheckpoint(run_directory, entry.commit.checkpoint, why);
}

int64_t FailedBy(const CheckpointEntry& entry, const LoadRule& rule) {
  if (!rule.retry) return entry.failed_attempts;
  if (rule.job == 0) return 0;
  return std::count(entry.failed_jobs.begin(), entry.failed_jobs.end(), rule.job);
}

constexpr size_t kChosenBytesMax = 1024;

}  // namespace

absl::StatusOr<std::optional<StartCheckpoint>> ChooseStart(
    const RunLog& log, const std::string& run_directory, const LoadRule& rule,
    const std::function<void(const std::string& line)>& tell) {
  int bad = 0, tried = 0, retired = 0;
  const Gaps gaps = rule.gaps.value_or(GapsOfRun(log));
  for (const CheckpointEntry& entry : ListCheckpoints(log, run_directory)) {
    if (entry.gaps != GapsBehind(gaps, entry.commit.step)) continue;
    if (entry.retired || entry.quarantined) {
      bad += entry.quarantined ? 1 : 0;
      retired += entry.retired ? 1 : 0;
      continue;
    }
    if (const int64_t failed = FailedBy(entry, rule); failed >= kLoadAttemptsMax) {
      tell(
          fmt::format("checkpoint {} was loaded {} times without a good step behind it; trying "
                      "the one before (--retry loads it again)",
                      entry.path, failed));
      ++tried;
      continue;
    }
    absl::StatusOr<Manifest> manifest = InspectCheckpoint(entry);
    if (manifest.ok() && manifest->gaps != entry.gaps)
      manifest = DataLoss("{} has {} gaps behind it, the run log says {}", entry.path,
                          manifest->gaps.size(), entry.gaps.size());
    if (manifest.ok())
      return StartCheckpoint{
          .path = entry.path, .manifest = *std::move(manifest), .digest = entry.commit.manifest};
    const absl::Status& status = manifest.status();
    if (!absl::IsDataLoss(status) && !absl::IsNotFound(status)) return status;
    RETURN_IF_ERROR(SetAside(run_directory, entry, Message(status), tell));
    ++bad;
  }
  if (bad + tried > 0)
    return DataLoss(
        "of the checkpoints of {}, {} are bad and {} were loaded {} times without a good step: "
        "restore one from a copy, load the latter once more with --retry, or begin anew in another "
        "run directory",
        run_directory, bad, tried, kLoadAttemptsMax);
  // To begin again after months must be somebody's wish.
  if (retired > 0)
    return DataLoss(
        "the {} checkpoints of {} that the run could go back to were retired: restore one from a "
        "copy, or leave the bad step out with integrity.bad_step = \"skip\"",
        retired, run_directory);
  return std::nullopt;
}

std::string PackChosen(const StartCheckpoint& start) {
  const OrderedJson json = {{"name", std::filesystem::path(start.path).filename().string()},
                            {"manifest", start.digest.Hex()}};
  return json.dump();
}

absl::StatusOr<ChosenName> ParseChosen(std::string_view packed) {
  if (packed.size() > kChosenBytesMax)
    return DataLoss("the checkpoint to load is named by {} bytes; {} are the most", packed.size(),
                    kChosenBytesMax);
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(packed, "the name of the checkpoint to load"));
  JsonObject object(json, "");
  ChosenName chosen;
  object.String("name", &chosen.name);
  if (!IsCheckpointName(chosen.name))
    object.Fail("name", "is not the name of a checkpoint (s000000120.g3.9f3c21aa)");
  object.Hex("manifest", &chosen.manifest);
  RETURN_IF_ERROR(object.Done());
  return chosen;
}

absl::StatusOr<StartCheckpoint> OpenChosen(const std::string& run_directory,
                                           std::string_view packed) {
  ASSIGN_OR_RETURN(const ChosenName chosen, ParseChosen(packed));
  StartCheckpoint start{
      .path = (std::filesystem::path(run_directory) / "ckpt" / chosen.name).string(),
      .manifest = {},
      .digest = chosen.manifest};
  ASSIGN_OR_RETURN(start.manifest, ReadManifest(start.path, &start.digest));
  return start;
}

absl::Status QuarantineCheckpoint(const std::string& run_directory, const std::string& name,
                                  const std::string& why) {
  const std::filesystem::path run(run_directory), quarantine = run / "quarantine";
  RETURN_IF_ERROR(MakeDirectories(quarantine.string()));
  if (std::rename((run / "ckpt" / name).c_str(), (quarantine / name).c_str()) != 0)
    return ErrnoStatus(
        errno, fmt::format("move {} to {}", (run / "ckpt" / name).string(), quarantine.string()));
  RETURN_IF_ERROR(ReplaceFile((quarantine / (name + ".why")).string(), why + "\n"));
  RETURN_IF_ERROR(SyncDirectory((run / "ckpt").string()));
  return SyncDirectory(quarantine.string());
}

}  // namespace perdure
