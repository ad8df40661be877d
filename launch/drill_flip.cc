#include "launch/drill_flip.h"

#include <sys/stat.h>
#include <unistd.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "ckpt/json_object.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kLocalRanksMax = 64;

std::string PathOf(const std::string& run_directory, int64_t node) {
  return fmt::format("{}/control/flip-{:05}.json", run_directory, node);
}

}  // namespace

absl::Status LeaveDrillFlip(const std::string& run_directory, int64_t node, const DrillFlip& flip) {
  const Json json = {{"local_rank", flip.local_rank},
                     {"place", std::string(NameOf(flip.flip.place))},
                     {"element", flip.flip.element},
                     {"bit", flip.flip.bit}};
  return ReplaceFileFast(PathOf(run_directory, node), json.dump());
}

absl::StatusOr<DrillFlip> TakeDrillFlip(const std::string& run_directory, int64_t node) {
  const std::string path = PathOf(run_directory, node);
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "look at " + path);
  if (info.st_uid != ::geteuid() || !S_ISREG(info.st_mode))
    return absl::PermissionDeniedError(fmt::format("{} is no file of user {}", path, ::geteuid()));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ::unlink(path.c_str());
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return DataLoss("{} is no JSON object", path);
  JsonObject object(json, path + ": ");
  DrillFlip flip;
  std::string place;
  int64_t bit = 0;
  object.Int("local_rank", &flip.local_rank, 0, kLocalRanksMax - 1);
  object.String("place", &place);
  object.Int("element", &flip.flip.element, 0, std::numeric_limits<int64_t>::max());
  object.Int("bit", &bit, 0, 31);
  flip.flip.bit = static_cast<int>(bit);
  if (const std::optional<FlipPlace> named = FlipPlaceOf(place); named.has_value())
    flip.flip.place = *named;
  else
    object.Fail("place", "is no place of a flip");
  RETURN_IF_ERROR(object.Done());
  return flip;
}

}  // namespace perdure
