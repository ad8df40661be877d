#include "runtime/agent/publish.h"

#include <filesystem>
#include <set>

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

absl::StatusOr<CommitRecord> WriteCheckpointManifest(const std::string& run_directory,
                                                     const std::string& name,
                                                     const AtomTable& table, Manifest manifest) {
  const std::filesystem::path folder = std::filesystem::path(run_directory) / "ckpt" / name;
  CommitRecord commit{.checkpoint = name, .step = manifest.step, .samples = manifest.samples};
  ASSIGN_OR_RETURN(commit.manifest, WriteManifest(folder.string(), table, manifest));
  // The manifest's writer makes names up to that of the checkpoint durable; RUN/ckpt may be new.
  RETURN_IF_ERROR(SyncDirectory(run_directory));
  commit.certificate = manifest.certificate;
  for (const PartReport& part : manifest.parts) commit.bytes += part.bytes;
  commit.files = std::ssize(manifest.parts);
  return commit;
}

Publication PublishCheckpoint(const std::string& run_directory, const std::string& name,
                              const AtomTable& table, Manifest manifest, RunLog& log) {
  Publication result;
  const uint64_t generation = manifest.generation;
  const absl::StatusOr<CommitRecord> commit =
      WriteCheckpointManifest(run_directory, name, table, std::move(manifest));
  result.status = commit.status();
  if (!commit.ok()) return result;
  result.certificate = commit->certificate;
  result.bytes = commit->bytes;
  const Appended committed =
      AppendRecord(log, RecordType::kCommit, generation, SerializeCommit(*commit), run_directory);
  result.status = committed.status;
  result.lost = committed.lost;
  if (!result.status.ok()) return result;
  // Every byte was read back by another rank before.
  const Appended verified =
      AppendRecord(log, RecordType::kVerified, generation,
                   SerializeVerified({.name = name, .kind = "read"}), run_directory);
  result.lost = verified.lost;
  (verified.lost ? result.status : result.warning) = verified.status;
  return result;
}

absl::StatusOr<RetirementPlan> PlanRetirement(const std::string& run_directory,
                                              const KeepRule& rule, const RunLog& log) {
  ASSIGN_OR_RETURN(const std::set<std::string> there,
                   NamesIn(std::filesystem::path(run_directory) / "ckpt"));
  // What is gone, whoever took it away, must not count as kept.
  std::vector<CheckpointEntry> entries = ListCheckpoints(log, run_directory);
  std::erase_if(entries, [&](const CheckpointEntry& entry) {
    return !there.contains(entry.commit.checkpoint);
  });
  // What may be pinned stays.
  ASSIGN_OR_RETURN(std::vector<std::string> pinned, PinnedCheckpoints(run_directory));
  pinned.insert(pinned.end(), rule.in_use.begin(), rule.in_use.end());
  RetirementPlan plan;
  plan.names =
      ChooseRetired(entries, rule.keep_last, rule.keep_every_steps, rule.phase_end_steps, pinned);
  for (const CheckpointEntry& entry : entries)
    if (entry.retired) plan.left.push_back(entry.commit.checkpoint);
  return plan;
}

Deletions DeleteRetired(const std::string& run_directory, const std::vector<std::string>& names) {
  Deletions deleted;
  for (const std::string& name : names)
    deleted.emplace_back(name, DeleteCheckpoint(run_directory, name));
  return deleted;
}

Retirement RetireCheckpoints(const std::string& run_directory, uint64_t generation,
                             const KeepRule& rule, RunLog& log) {
  Retirement result;
  const absl::StatusOr<RetirementPlan> plan = PlanRetirement(run_directory, rule, log);
  result.status = plan.status();
  if (!plan.ok()) return result;
  std::vector<std::string> names = plan->names;
  if (!names.empty()) {
    const Appended logged = AppendRecord(log, RecordType::kRetire, generation,
                                         SerializeRetire({.names = names}), run_directory);
    result.status = logged.status;
    result.lost = logged.lost;
    if (!result.status.ok()) return result;
  }
  names.insert(names.end(), plan->left.begin(), plan->left.end());
  result.deleted = DeleteRetired(run_directory, names);
  return result;
}

}  // namespace perdure
