#include "runtime/agent/publish.h"

#include <filesystem>
#include <set>

#include "runtime/agent/retention.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

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
  plan.names = ChooseRetired(entries, rule.keep_last, rule.keep_every_steps, rule.phase_end_steps,
                             pinned, rule.rollback_steps);
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

}  // namespace perdure
