#include "runtime/control/save_watch.h"

namespace perdure {

void SaveWatch::Begin(absl::Time now, int rank, const std::string& what) {
  under_way_[{rank, what}] = {.since = now, .told_next = patience_};
}

std::vector<SaveWatch::Stall> SaveWatch::Due(absl::Time now) {
  std::vector<Stall> due;
  for (auto& [who, work] : under_way_) {
    const absl::Duration waited = now - work.since;
    if (waited < work.told_next) continue;
    // Once, also where nobody asked for long.
    while (work.told_next <= waited) work.told_next *= 2;
    due.push_back({who.first, who.second, waited});
  }
  return due;
}

std::vector<SaveWatch::Stall> SaveWatch::UnderWay(absl::Time now) const {
  std::vector<Stall> all;
  for (const auto& [who, work] : under_way_)
    all.push_back({who.first, who.second, now - work.since});
  return all;
}

}  // namespace perdure
