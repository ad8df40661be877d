// What must hold whatever happens, checked by books of its own. A check returns what is wrong; the
// world stops there.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/control/log_view.h"
#include "runtime/control/message.h"
#include "tests/sim/scenario.h"

namespace perdure::sim {

class Checker {
 public:
  explicit Checker(const Scenario& scenario);

  using Problem = std::optional<std::string>;

  // The state after `step` steps of an undisturbed run, on the line of steps that `generation`
  // takes.
  uint64_t Expected(Generation generation, StepIndex step);
  // What the leaves of a rank's replica come to there, in a step that sees samples from `first` on.
  uint64_t Leaves(const LayoutShape& shape, int32_t rank, int64_t first) const;
  // The first sample of step `step`, counted from 1, where there are `gaps`.
  int64_t FirstSample(const Gaps& gaps, StepIndex step) const;
  // Whether a step that begins with this sample is bad, as long as nobody tolerates that.
  bool IsBad(int64_t first) const;
  // The gaps behind which a run with `gaps` goes on for the bad step `bad`.
  Gaps Behind(const Gaps& gaps, StepIndex bad) const;

  // A record got its slot.
  Problem OnAppend(const LogEntry& entry);
  // A node's ranks took step `step` of `generation` and hold `value`.
  Problem OnApply(Generation generation, NodeId node, StepIndex step, uint64_t value);
  // They loaded the state of resume.step.
  Problem OnLoad(Generation generation, const Resume& resume, uint64_t value);
  // A rank of the generation failed.
  void OnFailed(Generation generation, NodeId node, EvidenceKind kind) {
    failed_.insert({generation, node, kind});
  }
  bool InOffice(Slot term) const { return lead_ && !ended_ && lead_->slot == term; }
  // Ranks have found step `step` bad. Nobody does any more: a person has decided so.
  void OnFoundBad(Generation generation, StepIndex step) { found_bad_.insert({generation, step}); }
  void OnTolerates() { tolerates_ = true; }
  bool tolerates() const { return tolerates_; }
  // The store, which alone may say so, finds the n-th COMMIT bad, or good after all.
  void OnStoreSays(size_t commit, bool bad) { commits_[commit].bad = bad; }
  void OnStoreHasNone() { none_can_be_loaded_ = true; }
  void OnNoSlots() { no_slots_ = true; }
  void OnWritten(Generation generation, StepIndex step, int32_t attempt, NodeId node, bool good,
                 uint64_t value);
  // What the ranks of a member say that they wrote.
  std::string Written(Generation generation, StepIndex step, int32_t attempt, NodeId node) const;
  void OnVerified(Generation generation, StepIndex step, int32_t attempt, NodeId node);
  bool PartIsGood(Generation generation, StepIndex step, int32_t attempt, NodeId node) const;
  // The address that rank `rank` of `generation` must have.
  const PlacedLayout* LayoutOf(Generation generation) const;

  // Of the state that `generation` froze; another one may have made a checkpoint of the step since.
  bool HasCommit(Generation generation, StepIndex step) const {
    return by_generation_.count({generation, step}) != 0;
  }

  int64_t commits() const { return static_cast<int64_t>(commits_.size()); }
  int64_t generations() const { return static_cast<int64_t>(starts_.size()); }
  int64_t leads() const { return leads_; }
  // Steps that somebody took in `generation`, beginning with its START's.
  StepIndex StepsOf(Generation generation) const;
  StepIndex StartOf(Generation generation) const { return starts_.at(generation).step; }
  // How often a job has failed at one step, by what START said.
  int64_t failures_max() const { return failures_max_; }
  int64_t saved_first() const { return saved_first_; }
  // How often the run went back.
  int64_t rollbacks() const { return static_cast<int64_t>(lines_.size()) - 1; }
  const Gaps& gaps() const { return lines_.back().gaps; }  // Of the newest START.
  // Whether states after `step` steps with these gaps are one.
  static bool OneState(const Gaps& a, const Gaps& b, StepIndex step);

 private:
  struct Part {
    bool good = false, verified = false;
    uint64_t value = 0;
    std::string packed;
  };
  struct Failed {  // At one step of the job.
    int times = 0;
    Generation second = 0;  // In which it failed the second time.
  };
  struct Line {  // Of steps that the run takes, until it goes back.
    Gaps gaps;
    std::vector<uint64_t> expected;  // By step.
  };
  struct Committed {  // Checkpoints in the order of the log,
    StepIndex step = 0;
    size_t line = 0;
    bool bad = false;  // as the store found.
  };
  using PartKey = std::tuple<Generation, StepIndex, int32_t, NodeId>;

  // Of the newest checkpoint of the run's line that nobody found bad; -1: there is none.
  StepIndex GoodStep() const;
  Problem OnGaps(const LogEntry& start);
  Problem OnStart(const LogEntry& start);
  Problem OnStartAfter(const LogEntry& start);
  Problem OnChange(const LogEntry& start);
  Problem OnEnd(const LogEntry& end);

  Scenario scenario_;
  std::vector<Line> lines_;  // The last is the run's.
  std::map<Generation, size_t> line_of_;
  std::set<std::pair<Generation, StepIndex>> found_bad_;
  bool tolerates_ = false;
  std::optional<LogEntry> lead_;
  bool ended_ = true;
  std::map<Generation, LogEntry> starts_;
  std::map<Generation, StepIndex> applied_;  // Newest step that somebody took.
  Generation stepping_ = 0;                  // The newest that anybody stepped in.
  std::map<std::pair<Generation, NodeId>, StepIndex> steps_;
  std::map<PartKey, Part> parts_;
  std::set<StepIndex> committed_;
  std::set<std::pair<Generation, StepIndex>> by_generation_;
  std::vector<Committed> commits_;
  std::optional<uint64_t> job_;          // Of the newest START, unless END came since.
  bool none_can_be_loaded_ = false, no_slots_ = false;
  std::set<std::tuple<Generation, NodeId, EvidenceKind>> failed_;
  bool goes_back_ = false;                         // By the newest START.
  std::map<StepIndex, Failed> failures_;           // Of the job that leads, that count.
  std::map<Generation, Generation> older_memory_;  // By generation: what it may not load.
  int64_t failures_max_ = 0, saved_first_ = 0;
  int64_t leads_ = 0;
};

}  // namespace perdure::sim
