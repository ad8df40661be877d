#include "tests/sim/chain_draws.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "tests/prng.h"

namespace perdure::sim {

enum class ChainDraws::What : uint64_t {
  kPace = 1,
  kJitter,
  kHours,
  kKind,
  kNode,
  kUnseen,
  kWait,
  kLaunch,
  kSlowLaunch,
  kPreempted,
  kPreemptedAt,
  kCrashed,
  kCrashedAt,
  kSave,
  kSlowSave,
  kStop,
  kStrike,
  kPlace,
  kShare,
};

namespace {

// Steps of Lucie's log are told in windows; their medians, by share of windows, in seconds. The
// least is not published.
constexpr int64_t kWindow = 1'953;
constexpr std::pair<double, double> kPace[] = {
    {0, 3.95}, {0.05, 4.03}, {0.5, 4.51}, {0.95, 4.92}, {1, 5.09}};
constexpr double kPaceMedian = 4.51;

absl::Duration Milliseconds(double seconds) {
  return absl::Milliseconds(std::llround(seconds * 1000));
}

}  // namespace

ChainDraws::ChainDraws(const ChainAssumptions& assumed, uint64_t seed)
    : assumed_(assumed), key_(Mix(Mix(seed, 31), seed)) {}

double ChainDraws::Uniform(What what, int64_t index) const {
  const uint64_t bits =
      Mix(key_ ^ (static_cast<uint64_t>(what) << 56), static_cast<uint64_t>(index));
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

absl::Duration ChainDraws::Exponential(What what, int64_t index, double mean_hours) const {
  return Milliseconds(-mean_hours * 3600 * std::log(Uniform(what, index)));
}

absl::Duration ChainDraws::Step(int64_t step, bool extension) const {
  const double share = Uniform(What::kPace, step / kWindow);
  const auto* above = std::upper_bound(std::begin(kPace) + 1, std::end(kPace) - 1, share,
                                       [](double s, const auto& at) { return s < at.first; });
  const auto* below = above - 1;
  const double pace = below->second + (share - below->first) / (above->first - below->first) *
                                          (above->second - below->second);
  const double jitter = 1 + assumed_.jitter * (2 * Uniform(What::kJitter, step) - 1);
  return Milliseconds((extension ? assumed_.extension_step : assumed_.step) * pace / kPaceMedian *
                      jitter);
}

DrawnFailure ChainDraws::Failure(int64_t index) const {
  DrawnFailure failure{
      .gpu_hours = -assumed_.gpu_hours_between * std::log(Uniform(What::kHours, index)),
      .node = Uniform(What::kNode, index)};
  double kind = Uniform(What::kKind, index);
  if (kind < assumed_.device_share)
    failure.kind = ChainFailure::kDevice;
  else if ((kind -= assumed_.device_share) < assumed_.node_share)
    failure.kind = ChainFailure::kNode;
  else if (kind - assumed_.node_share < assumed_.corruption_share)
    failure.kind = ChainFailure::kCorruption;
  failure.unseen = failure.kind == ChainFailure::kCorruption ||
                   (failure.kind == ChainFailure::kDevice &&
                    Uniform(What::kUnseen, index) < assumed_.unseen_share);
  return failure;
}

absl::Duration ChainDraws::Wait(int64_t index) const {
  const double ratio = assumed_.wait_hours_max / assumed_.wait_hours_min;
  return Milliseconds(3600 * assumed_.wait_hours_min *
                      std::pow(ratio, Uniform(What::kWait, index)));
}

absl::Duration ChainDraws::Launch(int64_t index) const {
  const double share = Uniform(What::kLaunch, index);
  const bool slow = Uniform(What::kSlowLaunch, index) < assumed_.slow_launch_share;
  const double least = slow ? assumed_.slow_launch_min : assumed_.launch_min;
  const double most = slow ? assumed_.slow_launch_max : assumed_.launch_max;
  return Milliseconds(least + share * (most - least));
}

absl::Duration ChainDraws::Preempted(int64_t index, absl::Duration limit) const {
  if (Uniform(What::kPreempted, index) >= assumed_.preempted_share) return absl::InfiniteDuration();
  return Uniform(What::kPreemptedAt, index) * limit;
}

absl::Duration ChainDraws::Crashed(int64_t index, absl::Duration limit) const {
  if (Uniform(What::kCrashed, index) >= assumed_.crashed_share) return absl::InfiniteDuration();
  return Uniform(What::kCrashedAt, index) * limit;
}

absl::Duration ChainDraws::Save(int64_t index, bool read_back) const {
  const double written = assumed_.state_gb / assumed_.write_gb_per_second;
  double seconds = assumed_.commit + written * (read_back ? 2 : 1);
  seconds *= 1 + assumed_.save_spread * Uniform(What::kSave, index);
  if (Uniform(What::kSlowSave, index) < assumed_.slow_save_share)
    seconds *= assumed_.slow_save_factor;
  return Milliseconds(seconds);
}

absl::Duration ChainDraws::Stop(int64_t index) const {
  return Milliseconds(assumed_.stop * (0.3 + 0.7 * Uniform(What::kStop, index)));
}

absl::Duration ChainDraws::Strike(int64_t index) const {
  return Exponential(What::kStrike, index, assumed_.strike_hours);
}

uint64_t ChainDraws::Bits(int64_t index) const {
  return Mix(key_ ^ (static_cast<uint64_t>(What::kPlace) << 56), static_cast<uint64_t>(index));
}

double ChainDraws::Share(int64_t index) const { return Uniform(What::kShare, index); }

}  // namespace perdure::sim
