#include "runtime/control/accusations.h"

#include <algorithm>

namespace perdure {

void Accusations::Report(absl::Time now, int32_t accused, NodeId reporter) {
  if (accused_.size() >= static_cast<std::size_t>(options_.accused_max) &&
      !accused_.contains(accused))
    return;
  std::vector<Made>& made = accused_[accused];
  const auto same = std::find_if(made.begin(), made.end(),
                                 [&](const Made& one) { return one.reporter == reporter; });
  if (same != made.end())
    made.erase(same);
  else if (made.size() >= static_cast<std::size_t>(options_.reporters_min))
    made.erase(made.begin());
  made.push_back({reporter, now});
}

void Accusations::ForgetBefore(absl::Time time) {
  for (auto it = accused_.begin(); it != accused_.end();) {
    std::erase_if(it->second, [&](const Made& one) { return one.at < time; });
    it = it->second.empty() ? accused_.erase(it) : std::next(it);
  }
}

std::vector<Accusations::Suspicion> Accusations::Supported(int reporters_possible) const {
  const int needed = std::max(1, std::min(options_.reporters_min, reporters_possible));
  std::vector<Suspicion> supported;
  for (const auto& [rank, made] : accused_) {
    const absl::Time since = made.back().at - options_.window;
    const auto reporters =
        std::count_if(made.begin(), made.end(), [&](const Made& one) { return one.at >= since; });
    if (reporters >= needed) supported.push_back({rank, static_cast<int>(reporters)});
  }
  return supported;
}

}  // namespace perdure
