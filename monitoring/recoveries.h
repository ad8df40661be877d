// What a journal says about failures and recoveries: when each was noticed, how long each part of
// the recovery took, which steps were taken again and whether they gave the same loss.
//
// Lines go in, in order, and are only read: they may be torn, of other versions, or anything. A
// value; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

// When something was: by the monotonic clock of the coordinator's node, and by the wall.
struct JournalTime {
  int64_t coordinator = -1;
  double clock = 0;  // Seconds.
  absl::Time wall;
};
// By the clock where both are of one coordinator's node, or of one machine; else by the wall.
double SecondsBetween(const JournalTime& from, const JournalTime& to, bool one_machine);

// From the first thing that failed to the first step after it.
struct Recovery {
  uint64_t generation = 0;    // That failed,
  uint64_t next = 0;          // and that which goes on; 0: none yet.
  std::string kind, noticed;  // Empty: nobody knows what.
  int64_t node = -1, rank = -1;
  std::string from;         // Memory, checkpoint, beginning.
  int64_t step = 0;         // Finished when it failed,
  int64_t resumed = 0;      // and where it goes on.
  int64_t redone = 0;       // Steps that were finished and are taken again.
  int64_t generations = 0;  // That were begun until one stepped.
  JournalTime detected;
  std::optional<JournalTime> formed, restored, stepped;  // The last: it is over.
};

// Told before and after with different bits.
struct LossDisagreement {
  int64_t step = 0;
  uint64_t generation = 0, other_generation = 0;
  std::string loss_bits, other_loss_bits;
};

// A rank that was found slow.
struct SlowRank {
  uint64_t generation = 0;
  int64_t node = -1, rank = -1;
  int64_t percent = 0;  // Of others' work, that its own takes.
  JournalTime named;
};

class JournalStory {
 public:
  static constexpr size_t kLineBytesMax = size_t{64} << 10;  // Of a line that counts.
  static constexpr size_t kRecoveriesMax = 10000;            // The first of them,
  static constexpr size_t kSlowMax = 10000;                  // likewise.

  // One line without its end. False: it says nothing that is asked for here.
  bool Read(std::string_view line);
  // What was read so far is known but not told: losses are compared with it.
  void Forget();

  const std::vector<Recovery>& recoveries() const { return recoveries_; }
  const std::vector<LossDisagreement>& disagreements() const { return disagreements_; }
  const std::vector<SlowRank>& slow() const { return slow_; }
  int64_t told_twice() const { return told_twice_; }  // Steps.
  int64_t step() const { return step_; }              // The last that was told.
  // Whether a generation from this one on has told this step or a later one, again or not.
  bool Told(uint64_t generation, int64_t step) const {
    return told_generation_ >= generation && told_step_ >= step;
  }
  uint64_t generation() const { return generation_; }
  bool stepped() const { return stepped_; }        // The newest generation has, and goes on.
  bool taken_over() const { return taken_over_; }  // A generation was, by a new coordinator.
  bool ended() const { return ended_; }            // A job did.

 private:
  struct Loss {
    uint64_t generation = 0;
    std::string loss_bits;
  };

  Recovery* Open();

  std::vector<Recovery> recoveries_;
  std::vector<LossDisagreement> disagreements_;
  std::vector<SlowRank> slow_;
  std::map<int64_t, Loss> losses_;
  // Steps from the one on, of generations before the other, the run has left when it went back.
  int64_t left_from_ = 0;
  uint64_t left_before_ = 0;
  int64_t told_twice_ = 0, step_ = 0, told_step_ = 0;  // The last of told_generation_,
  uint64_t told_generation_ = 0;                       // which told one last.
  uint64_t generation_ = 0;
  bool stepped_ = false, taken_over_ = false, ended_ = false;
};

}  // namespace perdure
