#include "runtime/agent/checkpoint_room.h"

#include <algorithm>

#include "runtime/agent/records.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr const char* kAdvice =
    "delete what is not needed, unpin checkpoints (perdure ckpt unpin), or lower "
    "checkpoint.keep_last";

absl::Status Check(const std::string& run_directory, const std::string& what,
                   const SpaceNeed& need) {
  const std::string directory = run_directory + "/ckpt";
  return CheckSpace(directory, what, need, ReadSpace(directory), kAdvice);
}

}  // namespace

absl::Status CheckRoomForOne(const std::string& run_directory, const SpaceNeed& need) {
  return Check(run_directory, "a checkpoint", need);
}

absl::Status CheckRoomToKeep(const RunLog& log, const std::string& run_directory,
                             const SpaceNeed& need, int64_t keep_last, bool goes_back) {
  const std::vector<CheckpointEntry> entries = ListCheckpoints(log, run_directory);
  const int64_t there = std::count_if(entries.begin(), entries.end(), [](const auto& entry) {
    return !entry.retired && !entry.quarantined && !entry.gone;
  });
  // One more than are kept: the oldest goes when the newest has come.
  const int64_t keep = std::max<int64_t>(keep_last, 2) + (goes_back ? 1 : 0);
  const auto more = static_cast<uint64_t>(keep + 1 - std::min(there, keep));
  return Check(run_directory,
               fmt::format("keeping {} checkpoints and writing one ({} more)", keep, more),
               {.bytes = more * need.bytes, .files = more * need.files});
}

}  // namespace perdure
