// Who is gone and who is stuck, decided from what others saw: silence of nodes, exits of ranks,
// steps that do not end. Pure; it belongs to the coordinator, whose thread alone calls it, and it
// orders nothing: what to do about a loss is the coordinator's.
//
// A node is lost by its silence alone. What a library or a connection says is a hint: it shortens
// the silence that is needed, or chooses whom to suspect where a step has stalled; it kills nobody.
//
// An observer that slept cannot tell its own pause from the silence of others. Where Step was not
// called for more than half of `silence_max`, all waits begin anew; NextDeadline() asks to be
// called at least twice as often as that.
//
// Every event takes O(log n) of the nodes; a stall that is reported looks at all of them once.
// Memory follows the highest NodeId and the ranks of the current generation, never the number of
// events.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/control/accusations.h"
#include "runtime/control/ids.h"
#include "runtime/control/node_queue.h"
#include "runtime/control/step_times.h"

namespace perdure {

class FailureDetector {
 public:
  struct Options {
    absl::Duration heartbeat_interval = absl::Milliseconds(250);  // How often an agent speaks.
    absl::Duration silence_max = absl::Seconds(2);                // So silent, a node is lost;
    // or so long after its connection closed, where it did not speak since: time to connect anew.
    absl::Duration silence_after_close_max = absl::Seconds(1);

    // A step may take max(stall_min, stall_factor x the 99th percentile of the last
    // `step_times_max` of this generation); the first one, which loads, first_step_max.
    absl::Duration stall_min = absl::Seconds(10);
    int stall_factor = 3;
    absl::Duration first_step_max = absl::Minutes(10);
    int step_times_max = 128;

    // A rank is suspected where so many nodes reported broken connections to it within the window.
    int reporters_min = 3;
    absl::Duration report_window = absl::Seconds(30);
    int accused_max = 1024;  // Ranks; see Accusations.
    int suspects_max = 16;   // Of a stall that is reported.

    NodeId nodes_max = 1 << 16;  // Node numbers are below.
    friend bool operator==(const Options&, const Options&) = default;
  };
  // InvalidArgument names the option, its value and its range.
  static absl::Status Validate(const Options& options);

  enum class ExitKind {
    kCode,         // number: the exit code. 0 too: a generation needs all its ranks.
    kSignal,       // number: the signal.
    kOutOfMemory,  // The kernel's doing, by its counters.
    kKilledByUs,   // Somebody asked for it: nothing is lost.
  };

  struct NodeWatched {  // Counts as heard. Again: its wait begins anew.
    NodeId node = 0;
  };
  struct NodeForgotten {
    NodeId node = 0;
  };
  struct Heard {  // Any authenticated message of it.
    NodeId node = 0;
  };
  struct ConnectionClosed {
    NodeId node = 0;
  };
  // The generation is what the process was last told to run. An agent that is told of a generation
  // for which its process is already gone says so again, under that generation.
  struct RankExited {
    Generation generation = 0;
    Seat seat;
    int32_t rank = 0;
    ExitKind kind = ExitKind::kCode;
    int32_t number = 0;
  };
  struct EndpointError {
    Generation generation = 0;
    int32_t reporter = 0;  // Ranks.
    int32_t against = 0;
  };
  // REQUIRES: nodes is not empty. The generation before, if there is one, has ended.
  struct GenerationFormed {
    Generation generation = 0;
    std::vector<NodeId> nodes;  // By rank.
    StepIndex step = 0;         // Finished steps that it starts from.
  };
  // What the ranks of a node have all finished. Only a rise counts.
  struct StepProgress {
    Generation generation = 0;
    NodeId node = 0;
    StepIndex finished = 0;
    StepIndex begun = 0;  // Steps begun, where it is known; up to `finished`: not known.
  };
  // Steps after `step` finished ones take another time (a new phase): the first of them has
  // first_step_max, and times before it are not compared with. One at a time.
  struct PaceChanges {
    Generation generation = 0;
    StepIndex step = 0;
  };
  // Until now ranks waited for something else than a step: the wait for the step that is under way
  // begins anew, and its time is not compared with.
  struct StoodStill {
    Generation generation = 0;
  };
  struct GenerationEnded {
    Generation generation = 0;
  };
  struct Tick {};
  using Event =
      std::variant<NodeWatched, NodeForgotten, Heard, ConnectionClosed, RankExited, EndpointError,
                   GenerationFormed, StepProgress, PaceChanges, StoodStill, GenerationEnded, Tick>;

  enum class Silence { kUnheard, kClosed };  // kClosed: nor after its connection closed.
  // Said once; the node is not watched any more, whatever comes of it, until NodeWatched.
  struct NodeLost {
    NodeId node = 0;
    Silence reason = Silence::kUnheard;
    absl::Duration silent;
    friend bool operator==(const NodeLost&, const NodeLost&) = default;
  };
  // Said once per rank and generation.
  struct RankLost {
    Generation generation = 0;
    int32_t rank = 0;
    Seat seat;
    ExitKind reason = ExitKind::kCode;
    int32_t number = 0;
    friend bool operator==(const RankLost&, const RankLost&) = default;
  };
  enum class Clue { kBehind, kReported, kBoth };
  struct Suspect {
    NodeId node = 0;
    Clue clue = Clue::kBehind;
    friend bool operator==(const Suspect&, const Suspect&) = default;
  };
  enum class Stall { kFirstStep, kStep };  // Which limit was exceeded.
  // No step was finished by all nodes since `since`. Once when `limit` is over, then after each
  // further one. Suspects: the furthest behind first, of those equally far the reported ones
  // first, then the others that were reported. A clue that fits more than half of the nodes is
  // none; empty: nobody knows.
  struct Stalled {
    Generation generation = 0;
    StepIndex step = 0;  // Finished by all.
    absl::Time since;
    absl::Duration limit;
    int times = 1;  // The how-manieth report of this step.
    Stall reason = Stall::kStep;
    std::vector<Suspect> suspects;
    friend bool operator==(const Stalled&, const Stalled&) = default;
  };
  // Step was not called for so long: nobody is judged by it.
  struct Resumed {
    absl::Duration unseen;
    friend bool operator==(const Resumed&, const Resumed&) = default;
  };
  using Effect = std::variant<NodeLost, RankLost, Stalled, Resumed>;
  using Effects = std::vector<Effect>;

  // REQUIRES: Validate(options) is ok.
  explicit FailureDetector(const Options& options);

  // `now` is a monotonic clock's; where it falls it is taken to stand still. Of an event and a
  // deadline at one time the event comes first. Appends to `effects`.
  void Step(absl::Time now, const Event& event, Effects& effects);

  // When Step is to be called at the latest, with Tick if with nothing else.
  absl::Time NextDeadline() const;

  // How long the step under way may take. REQUIRES: generation() != 0.
  absl::Duration limit() const { return limit_; }
  Generation generation() const { return generation_; }  // 0: none.
  uint64_t dropped() const { return dropped_; }  // Events of what is not any more, or not yet.

  // Elements of all its containers: what its memory follows.
  std::size_t held() const;

  friend bool operator==(const FailureDetector&, const FailureDetector&) = default;

 private:
  struct Position {
    StepIndex finished = kAbsent, begun = kAbsent;
    friend auto operator<=>(const Position&, const Position&) = default;
  };
  static constexpr StepIndex kAbsent = -1;

  bool Belongs(const Event& event) const;
  bool IsMember(NodeId node) const;
  bool IsRank(int32_t rank) const;

  void On(const NodeWatched& event, Effects& effects);
  void On(const NodeForgotten& event, Effects& effects);
  void On(const Heard& event, Effects& effects);
  void On(const ConnectionClosed& event, Effects& effects);
  void On(const RankExited& event, Effects& effects);
  void On(const EndpointError& event, Effects& effects);
  void On(const GenerationFormed& event, Effects& effects);
  void On(const StepProgress& event, Effects& effects);
  void On(const PaceChanges& event, Effects& effects);
  void On(const StoodStill& event, Effects& effects);
  void On(const GenerationEnded& event, Effects& effects);
  void On(const Tick& event, Effects& effects);

  void NoticePause(absl::Time now, Effects& effects);
  void Expire(Effects& effects);
  void Lose(NodeId node, Silence reason, Effects& effects);
  absl::Time SilenceDeadline() const;
  absl::Time CloseDeadline() const;

  void Advance(StepIndex step);
  void BeginPace();
  void BeginWait();
  std::vector<Suspect> Suspects() const;

  Options options_;
  absl::Time now_ = absl::InfinitePast();      // Of the latest Step.
  absl::Time resumed_ = absl::InfinitePast();  // No silence counts from before.
  uint64_t dropped_ = 0;

  std::vector<absl::Time> heard_, closed_;  // By NodeId; of those in the queues.
  NodeQueue silent_;                        // All watched nodes, the longest silent first.
  NodeQueue unconnected_;  // Those closed and unheard since, the first closed first.

  Generation generation_ = 0, generation_latest_ = 0;
  std::vector<NodeId> nodes_;             // By rank.
  std::vector<bool> rank_lost_;           // By rank.
  std::vector<Position> positions_;       // By NodeId; kAbsent: not in the generation.
  std::map<StepIndex, int> finished_by_;  // How many nodes have finished so many steps and no more.
  int members_ = 0;                       // Nodes of the generation.
  Accusations accusations_;

  StepIndex step_ = 0;         // Finished by all.
  absl::Time since_;           // When that was.
  absl::Time stall_deadline_;  // When a stall is reported next.
  absl::Duration limit_;       // Of the step under way.
  int stalls_ = 0;             // Reports of it.
  bool first_ = true;          // It is the first of this pace.
  bool seen_whole_ = true;     // No pause fell into it.
  absl::Duration first_took_;  // InfiniteDuration: not known.
  StepIndex pace_changes_ = kAbsent;
  StepTimes times_;
};

// "node 7 is lost: nothing heard for 2s".
std::string InWords(const FailureDetector::Effect& effect);

}  // namespace perdure
