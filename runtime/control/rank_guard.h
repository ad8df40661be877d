// A rank's right to step: it asks at each step boundary, and waits (it does not fail) while the
// answer is no. The agent renews it; nothing of another generation does. Value; the rank's.
#pragma once

#include <algorithm>

#include "absl/time/time.h"
#include "runtime/control/ids.h"

namespace perdure {

class RankGuard {
 public:
  // The rank belongs to `generation` from now on and may not step yet. 0: to none.
  void Join(Generation generation) {
    generation_ = generation;
    until_ = absl::InfinitePast();
  }
  void Renew(Generation generation, absl::Time until) {
    if (generation == generation_ && generation != 0) until_ = std::max(until_, until);
  }
  // Strictly before the end, by the monotonic clock of this node.
  bool MayStep(absl::Time now) const { return now < until_; }
  Generation generation() const { return generation_; }

 private:
  Generation generation_ = 0;
  absl::Time until_ = absl::InfinitePast();
};

}  // namespace perdure
