// Who has been writing or reading a checkpoint for so long that people should hear of it. Pure; it
// decides nothing: whoever waits goes on waiting.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

class SaveWatch {
 public:
  // Waits longer than this are told, then each time that they have doubled.
  explicit SaveWatch(absl::Duration patience) : patience_(patience) {}

  struct Stall {
    int rank = 0;
    std::string what;  // "writing part-00000.h5".
    absl::Duration waited;
  };

  // `rank` (-1: no rank) begins `what`; ends it; nobody does anything any more.
  void Begin(absl::Time now, int rank, const std::string& what);
  void End(int rank, const std::string& what) { under_way_.erase({rank, what}); }
  void Clear() { under_way_.clear(); }

  // What is to be told now, by rank.
  std::vector<Stall> Due(absl::Time now);
  // All that is under way, by rank.
  std::vector<Stall> UnderWay(absl::Time now) const;

 private:
  struct Work {
    absl::Time since;
    absl::Duration told_next;
  };
  const absl::Duration patience_;
  std::map<std::pair<int, std::string>, Work> under_way_;
};

}  // namespace perdure
