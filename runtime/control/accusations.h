// Which ranks others cannot reach: reports of broken connections, kept until the steps have gone
// on without them. Pure. Libraries report late, twice and about the wrong peer, so one reporter
// proves nothing, and even many only choose among nodes that are suspected anyway.
//
// Bounded: `reporters_min` reports about each of at most `accused_max` ranks. Where more ranks than
// that are accused there is no culprit to be found, and further ones are not noted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/ids.h"

namespace perdure {

class Accusations {
 public:
  struct Options {
    absl::Duration window;  // Reports further apart than this do not support each other.
    int reporters_min = 1;  // So many support each other before they count.
    int accused_max = 1;
    friend bool operator==(const Options&, const Options&) = default;
  };
  explicit Accusations(const Options& options) : options_(options) {}

  // Ranks of one node share its cable: reporters are told apart by node. `now` never falls.
  void Report(absl::Time now, int32_t accused, NodeId reporter);
  void ForgetBefore(absl::Time time);
  void Clear() { accused_.clear(); }

  struct Suspicion {
    int32_t rank = 0;
    int reporters = 0;
  };
  // Those accused by min(reporters_min, reporters_possible), at least one, within the window; by
  // rank.
  std::vector<Suspicion> Supported(int reporters_possible) const;

  std::size_t size() const { return accused_.size(); }  // Accused ranks.

  friend bool operator==(const Accusations&, const Accusations&) = default;

 private:
  struct Made {
    NodeId reporter = 0;
    absl::Time at;  // Its latest.
    friend bool operator==(const Made&, const Made&) = default;
  };
  Options options_;
  std::map<int32_t, std::vector<Made>> accused_;  // Reports, the latest last.
};

}  // namespace perdure
