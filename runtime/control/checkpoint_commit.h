// When a checkpoint counts: all its writers have frozen their state and there is room for it, all
// say durable, a reader of every file says good, then it
// is published; otherwise it is written once more under another name, then given up. Pure.
//
// A writer keeps its frozen state until it is told that the attempt is settled, so it can always
// write it again, and no second state is frozen meanwhile.
#pragma once

#include <cstddef>
#include <variant>
#include <vector>

namespace perdure {

class CheckpointCommit {
 public:
  struct Options {
    int ranks = 1;
    int attempts_max = 2;
  };

  // A rank has a frozen state and waits; the first one begins a checkpoint.
  struct Frozen {
    int rank = 0;
  };
  // Whether it fits.
  struct Measured {
    bool ok = false;
  };
  // A rank has written its share of the attempt that is under way, or could not.
  struct Written {
    int rank = 0;
    bool ok = false;
  };
  // The files of this attempt are known: readers by file.
  struct Joined {
    std::vector<int> readers;
    bool ok = false;
  };
  // A file was read back.
  struct Voted {
    int file = 0;
    bool ok = false;
  };
  struct Published {
    bool ok = false;
  };
  using Event = std::variant<Frozen, Measured, Written, Joined, Voted, Published>;

  struct Measure {};  // Is there room? Answered by Measured.
  struct Join {};     // Put together what the ranks wrote; answered by Joined.
  struct Verify {     // Let `rank` read `file`; answered by Voted.
    int file = 0;
    int rank = 0;
  };
  struct Publish {};  // Answered by Published.
  struct Write {      // All ranks write, under the name of this attempt.
    int attempt = 0;
  };
  struct Settle {  // All ranks may let go.
    bool committed = false;
  };
  using Effect = std::variant<Measure, Write, Join, Verify, Publish, Settle>;
  using Effects = std::vector<Effect>;

  explicit CheckpointCommit(const Options& options);

  // False: the event does not belong to what is under way; nothing happened.
  bool Step(const Event& event, Effects& effects);

  bool idle() const { return stage_ == Stage::kIdle; }
  int attempt() const { return attempt_; }  // From 1; 0: nothing is written yet.

 private:
  enum class Stage { kIdle, kFreezing, kMeasuring, kWriting, kJoining, kVerifying, kPublishing };

  bool On(const Frozen& event, Effects& effects);
  bool On(const Measured& event, Effects& effects);
  bool On(const Written& event, Effects& effects);
  bool On(const Joined& event, Effects& effects);
  bool On(const Voted& event, Effects& effects);
  bool On(const Published& event, Effects& effects);
  bool Hear(int rank);
  void Expect(Stage stage);
  void Begin(Effects& effects);
  void GiveUp(Effects& effects);

  Options options_;
  Stage stage_ = Stage::kIdle;
  int attempt_ = 0;
  bool failed_ = false;      // Something of this attempt.
  std::vector<bool> heard_;  // By rank, in this stage.
  int heard_count_ = 0;
  std::vector<bool> voted_;  // By file.
  int voted_count_ = 0;
};

}  // namespace perdure
