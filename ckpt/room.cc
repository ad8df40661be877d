#include "ckpt/room.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "ckpt/file_io.h"
#include "ckpt/store_hdf5.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kBytesPerAtom = 512;  // In manifest and view.
// Directory, manifest, view, and what is written on the way: temporaries, records of the run log.
constexpr uint64_t kOtherFiles = 8;

}  // namespace

SpaceNeed CheckpointNeed(const AtomTable& table, std::span<const PartPlan> plans) {
  SpaceNeed need{.bytes = kBlockBytes + kBytesPerAtom * table.atoms().size(),
                 .files = plans.size() + kOtherFiles};
  for (const PartPlan& plan : plans) {
    uint64_t bytes =
        static_cast<uint64_t>(PlaceElements(table, plan.atoms, plan.runs).length) * sizeof(float);
    if (bytes >= kAlignedDatasetBytes)
      bytes = (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
    need.bytes += kBlockBytes + kStatePartCount * bytes;
  }
  return need;
}

absl::Status CheckRoomFor(const std::string& target, const std::string& what, SpaceNeed need) {
  std::error_code ignored;
  for (fs::recursive_directory_iterator it(target + ".partial", ignored), end; it != end;
       it.increment(ignored)) {
    struct stat info {};
    if (::lstat(it->path().c_str(), &info) != 0) continue;
    need.bytes -= std::min(need.bytes, static_cast<uint64_t>(info.st_blocks) * 512);
    need.files -= std::min(need.files, uint64_t{1});
  }
  const std::string parent = fs::absolute(target, ignored).parent_path().string();
  return CheckSpace(parent, what, need, ReadSpace(parent),
                    "delete something there, or name a target elsewhere");
}

}  // namespace perdure
