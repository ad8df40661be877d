#include "runtime/train/activity.h"

#include <array>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// By value; what comes from another process may be beyond.
template <typename Value, size_t kSize>
const char* NameOf(Value value, const std::array<const char*, kSize>& names) {
  const auto index = static_cast<size_t>(static_cast<int32_t>(value));
  return index < kSize ? names[index] : "unknown";
}

constexpr std::array<const char*, 11> kPhases = {"nothing",    "loading",  "waiting for the lease",
                                                 "forward",    "backward", "exchange of gradients",
                                                 "snapshot",   "gather",   "update",
                                                 "checkpoint", "leaving"};
constexpr std::array<const char*, 5> kGroups = {"none", "tensor", "data", "pipeline", "all"};

}  // namespace

std::string Describe(const Activity& activity) {
  std::string text = fmt::format("step {}, {}", activity.step, NameOf(activity.phase, kPhases));
  if (activity.micro_batch >= 0) text += fmt::format(" of micro-batch {}", activity.micro_batch);
  if (activity.peer >= 0) text += fmt::format(", with rank {}", activity.peer);
  if (activity.group == Activity::Group::kAll)
    text += ", with all ranks";
  else if (activity.group != Activity::Group::kNone)
    text += fmt::format(", with its {} group", NameOf(activity.group, kGroups));
  return text;
}

}  // namespace perdure
