// What a job of the simulated chain holds and what befalls it, whoever runs in it: the same for
// Perdure and for the script that it is compared with.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/sim/chain_draws.h"

namespace perdure::sim {

// GPU-hours of jobs, by what became of them.
struct GpuHours {
  double productive = 0;  // Steps that count, at the pace of the phase's whole layout.
  double idle = 0;        // Beside such steps: spare nodes, and layouts that had shrunk.
  double redone = 0;      // Steps that were taken again.
  double recovering = 0, starting = 0;
  double saving = 0;   // Training stood for it.
  double leaving = 0;  // The last save and the end of all processes.

  double held() const { return productive + lost(); }
  double lost() const { return idle + redone + recovering + starting + saving + leaving; }
  GpuHours& operator+=(const GpuHours& other);
};

// The machine's nodes, and which of them are bad. A bad node that the scheduler knows of is given
// to nobody until it is repaired.
class Partition {
 public:
  Partition(const ChainAssumptions& assumed, const ChainDraws& draws);

  void Breaks(const std::string& node, absl::Time now, bool unseen);
  // `count` nodes, not among `without`, in order of their names. REQUIRES: there are enough.
  std::vector<std::string> Allocate(int64_t count, absl::Time now,
                                    const std::set<std::string>& without);
  bool Bad(const std::string& node, absl::Time now) const;
  std::set<std::string> names() const { return {names_.begin(), names_.end()}; }

 private:
  struct Trouble {
    absl::Time repaired;
    bool unseen = false;
  };
  const absl::Duration repair_;
  const ChainDraws draws_;
  std::vector<std::string> names_;
  std::map<std::string, Trouble> troubles_;
  int64_t allocations_ = 0;
};

// The failures that jobs meet one after the other, by GPU-hours held: one such for a whole chain.
class Hazards {
 public:
  explicit Hazards(const ChainDraws& draws) : draws_(draws), next_(draws.Failure(0)) {}
  double hours_left() const { return next_.gpu_hours; }
  void Pass(double gpu_hours) { next_.gpu_hours -= gpu_hours; }
  DrawnFailure Take();
  absl::Duration Strike() { return draws_.Strike(strikes_++); }

 private:
  const ChainDraws draws_;
  DrawnFailure next_;
  int64_t failures_ = 0, strikes_ = 0;
};

struct Happened {
  enum class What {
    kFailed,
    kCrashed,  // The job as a whole.
    kOver,     // Its time, or its notice, is over: killed.
  } what = What::kFailed;
  ChainFailure kind = ChainFailure::kProgram;
  std::string node;
  bool unseen = false;
};

class HeldJob {
 public:
  struct Options {
    std::vector<std::string> nodes;
    int64_t gpus_per_node = 4;
    absl::Time began;
    absl::Duration limit;
    int64_t start = 0;  // Number of this start among all of the chain.
  };
  // All pointers outlive it.
  HeldJob(const ChainAssumptions& assumed, const ChainDraws& draws, Hazards* hazards,
          const Partition& partition, Options options);

  // Time passes, up to `most`; less if something happens. `held` are the GPU-hours of it.
  struct Spent {
    double held = 0;
    std::optional<Happened> happened;
  };
  Spent Spend(absl::Duration most);
  // Nothing runs on it any more, but its time is over when it is over.
  void Idle(absl::Duration time) { now_ += time; }

  absl::Time now() const { return now_; }
  absl::Time time_over() const { return options_.began + options_.limit; }
  bool preempted() const { return notice_.has_value(); }
  bool out_of_time() const { return now_ > end(); }
  const std::vector<std::string>& nodes() const { return nodes_; }  // Left to it.
  double gpus() const { return static_cast<double>(nodes_.size() * options_.gpus_per_node); }
  // Not the job's any more.
  void Loses(const std::string& node);
  // Nobody uses it any more.
  void Avoids(const std::string& node) { strikes_.erase(node); }

 private:
  absl::Time end() const;

  const ChainAssumptions assumed_;
  const Options options_;
  Hazards* const hazards_;
  std::vector<std::string> nodes_;
  std::map<std::string, absl::Time> strikes_;  // Of nodes that were bad before.
  absl::Time now_, preempted_at_, crashed_at_;
  std::optional<absl::Time> notice_;  // When it was told that it is to be taken away.
};

}  // namespace perdure::sim
