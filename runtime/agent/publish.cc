#include "runtime/agent/publish.h"

#include <filesystem>
#include <set>

#include "runtime/agent/records.h"
#include "runtime/agent/retention.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Appended {
  absl::Status status;
  bool lost = false;
};

// A record that was linked although the file system said otherwise is found by reading again. What
// cannot be found out ends the job: a record that may or may not stand must not be followed by one
// that contradicts it.
Appended AppendRecord(RunLog& log, RecordType type, uint64_t generation, const std::string& body,
                      const std::string& run_directory) {
  absl::Status status = log.Append(type, generation, body);
  if (status.ok()) return {};
  if (absl::IsAborted(status) || absl::IsFailedPrecondition(status)) return {status, true};
  const uint64_t slot = log.next_slot();
  if (const absl::Status read = log.Refresh(); !read.ok()) return {read, true};
  if (log.next_slot() == slot) return {status, false};
  const Record& last = log.records().back();
  if (log.next_slot() > slot + 1 || last.type != type || last.generation != generation ||
      last.body != body)
    return {Aborted("slot {} of {} is taken by another writer", slot, run_directory), true};
  status = SyncDirectory((std::filesystem::path(run_directory) / "log").string());
  return {status, !status.ok()};
}

absl::StatusOr<std::set<std::string>> NamesIn(const std::filesystem::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error))
    names.insert(it->path().filename().string());
  if (error) return ErrnoStatus(error.value(), "list " + folder.string());
  return names;
}

}  // namespace

Publication PublishCheckpoint(const std::string& run_directory, const std::string& name,
                              const AtomTable& table, Manifest manifest, RunLog& log) {
  Publication result;
  CommitRecord commit{.checkpoint = name, .step = manifest.step, .samples = manifest.samples};
  const std::filesystem::path folder = std::filesystem::path(run_directory) / "ckpt" / name;
  const absl::StatusOr<Digest> digest = WriteManifest(folder.string(), table, manifest);
  result.status = digest.status();
  // The manifest's writer makes names up to that of the checkpoint durable; RUN/ckpt may be new.
  if (result.status.ok()) result.status = SyncDirectory(run_directory);
  if (!result.status.ok()) return result;
  commit.manifest = *digest;
  commit.certificate = result.certificate = manifest.certificate;
  for (const PartReport& part : manifest.parts) commit.bytes += part.bytes;
  commit.files = static_cast<int64_t>(manifest.parts.size());
  result.bytes = commit.bytes;
  const Appended committed = AppendRecord(log, RecordType::kCommit, manifest.generation,
                                          SerializeCommit(commit), run_directory);
  result.status = committed.status;
  result.lost = committed.lost;
  if (!result.status.ok()) return result;
  // Every byte was read back by another rank before.
  const Appended verified =
      AppendRecord(log, RecordType::kVerified, manifest.generation,
                   SerializeVerified({.name = name, .kind = "read"}), run_directory);
  result.lost = verified.lost;
  (verified.lost ? result.status : result.warning) = verified.status;
  return result;
}

Retirement RetireCheckpoints(const std::string& run_directory, uint64_t generation,
                             const KeepRule& rule, RunLog& log) {
  Retirement result;
  const auto there = NamesIn(std::filesystem::path(run_directory) / "ckpt");
  result.status = there.status();
  if (!there.ok()) return result;
  // What is gone, whoever took it away, must not count as kept.
  std::vector<CheckpointEntry> entries = ListCheckpoints(log, run_directory);
  std::erase_if(entries, [&](const CheckpointEntry& entry) {
    return !there->contains(entry.commit.checkpoint);
  });
  absl::StatusOr<std::vector<std::string>> pinned = PinnedCheckpoints(run_directory);
  result.status = pinned.status();
  if (!pinned.ok()) return result;  // What may be pinned stays.
  pinned->insert(pinned->end(), rule.in_use.begin(), rule.in_use.end());
  std::vector<std::string> names =
      ChooseRetired(entries, rule.keep_last, rule.keep_every_steps, rule.phase_end_steps, *pinned);
  if (!names.empty()) {
    const Appended logged = AppendRecord(log, RecordType::kRetire, generation,
                                         SerializeRetire({.names = names}), run_directory);
    result.status = logged.status;
    result.lost = logged.lost;
    if (!result.status.ok()) return result;
  }
  for (const CheckpointEntry& entry : entries)
    if (entry.retired) names.push_back(entry.commit.checkpoint);
  for (const std::string& name : names)
    result.deleted.emplace_back(name, DeleteCheckpoint(run_directory, name));
  return result;
}

}  // namespace perdure
