// Breaks a running job on purpose, one injury after the other, waits for it to recover, and says
// from its journal how it did. Lives in one thread; reads the run directory and signals the job's
// processes on this machine, nothing else but two lines of the journal and one of the
// book of nodes for each injury.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/drill_target.h"
#include "monitoring/journal.h"
#include "monitoring/recoveries.h"
#include "runtime/train/flip.h"

namespace perdure {

struct DrillOptions {
  std::string run_directory;
  uint64_t seed = 0;                        // Of which ranks and nodes.
  absl::Duration wait = absl::Seconds(60);  // For the job to be whole before an injury, and for
                                            // its recovery after it.
  bool hold_against = false;  // What the job finds of a node counts as if nobody had done it.
  std::function<bool()> interrupted = {};  // Somebody wants it to end now; may be empty.
};

// Steps a second.
struct Pace {
  double before = 0, during = 0, after = 0;
};

// What was done, and what became of it.
struct Injury {
  const DrillKind* kind = nullptr;
  int64_t node = -1, rank = -1;
  pid_t process = 0;
  std::optional<Flip> flip;  // Of kCorruptRank.
  uint64_t generation = 0;   // That ran then; 0: not known.
  double clock = 0;          // When, in seconds of this machine's monotonic clock.
  std::optional<Recovery> recovery;
  bool tolerated = false;         // It went on without one.
  std::optional<SlowRank> named;  // A slow rank was, by the job.
  std::optional<Pace> pace;       // Of a slow rank's job.
  int64_t told_twice = 0;         // Steps,
  std::vector<LossDisagreement> disagreements;
  bool recovered = false;  // In time, and no step gave another loss.
  std::string words;       // How, or why not.
};

// Seconds; of a recovery that is over.
struct InjuryTimes {
  double detect = 0, re_form = 0, restore = 0, first_step = 0, total = 0;
};
std::optional<InjuryTimes> TimesOf(const Injury& injury);
nlohmann::ordered_json ToJson(const Injury& injury);

// The lines of a file that grows. The file may not be there yet, and may be replaced by a shorter
// one.
class GrowingFile {
 public:
  // Of what is there now only about the last `tail` bytes are given.
  GrowingFile(std::string path, uint64_t tail) : path_(std::move(path)), tail_(tail) {}
  // The lines that are whole and have come since the last call.
  absl::StatusOr<std::vector<std::string>> Lines();

 private:
  const std::string path_;
  std::optional<uint64_t> tail_;  // Until the first call.
  uint64_t offset_ = 0;
};

class Drill {
 public:
  // NotFound, DataLoss, FailedPrecondition: there is no job that could be drilled.
  static absl::StatusOr<std::unique_ptr<Drill>> Open(const DrillOptions& options);

  // Waits until the job is whole, hurts it, waits again. An error: nothing was hurt.
  // FailedPrecondition: it cannot be. DeadlineExceeded: it was not whole in time. Cancelled:
  // interrupted.
  absl::StatusOr<Injury> Injure(const DrillKind& kind);

  // Whether the job never ran on enough nodes since this was opened.
  bool TooSmallFor(const DrillKind& kind) const { return nodes_most_ < kind.nodes_min; }

 private:
  explicit Drill(const DrillOptions& options);
  absl::Status Read();
  absl::StatusOr<nlohmann::ordered_json> AwaitWhole(const DrillKind& kind);
  absl::StatusOr<DrillTarget> AwaitTarget(const DrillKind& kind);
  Flip RandomFlip() const;
  absl::Status Mark(const DrillTarget& target) const;
  absl::Status Strike(const DrillTarget& target, Injury& injury);
  double Watch(absl::Duration most, const HeldProcess* slow, const std::function<bool()>& seen);
  void Slow(const HeldProcess& process, Injury& injury);
  void Follow(const DrillTarget& target, Injury& injury);
  bool Grows(int64_t nodes);
  bool Over(const Injury& injury, int64_t step_then) const;
  std::string JobIsOver() const;
  bool Interrupted() const { return options_.interrupted && options_.interrupted(); }

  const DrillOptions options_;
  GrowingFile lines_;
  JournalStory story_;
  std::unique_ptr<Journal> journal_;
  uint64_t injuries_ = 0;
  uint64_t runs_ = 0;    // The generation that does.
  int64_t settled_ = 0;  // The step from which on the next injury may come.
  absl::Time grows_until_ = absl::InfiniteFuture();
  int64_t nodes_most_ = 0;  // That the job was seen to run on.
};

}  // namespace perdure
