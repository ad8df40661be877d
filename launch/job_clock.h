// When the job has to begin to leave: the end of its time, asked of whoever knows it (a scheduler
// may move it), and what leaving takes, as LeaveTime has it from what is seen of the coordinator.
//
// The coordinator's agent has one; the loop's thread calls everything, and a thread of its own does
// the asking, which may take long.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/worker.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/leave_time.h"
#include "runtime/train/run_config.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

// How long a save takes as long as none was seen: the bytes of the state that each of `nodes`
// writes, at a rate that any file system has.
absl::Duration SaveGuess(const RunConfig& config, int64_t nodes);

class JobClock {
 public:
  struct Options {
    // The end by the time of day, as far as it is known at the beginning; infinite: it has none.
    absl::Time end = absl::InfiniteFuture();
    // Asks anew, for as long as it takes; empty: the end is what it is.
    std::function<absl::StatusOr<absl::Time>()> ask;
    LeaveTime::Options leave;
    std::function<void(const std::string& line)> warn;  // What could not be asked, once.
  };
  // What was seen of the coordinator.
  struct Sight {
    Generation generation = 0;
    StepIndex finished = 0;
    StepIndex saving = -1;     // Of the state that is being saved; -1: none is.
    StepIndex committed = -1;  // Of the newest checkpoint.
  };

  // `loop` outlives it.
  static absl::StatusOr<std::unique_ptr<JobClock>> New(EventLoop* loop, Options options);
  ~JobClock();

  // While this agent's coordinator leads; several times a second.
  void See(absl::Time now, const Sight& sight);
  // Somebody knows that the end is near, or has moved.
  void AskNow() { asked_ = absl::InfinitePast(); }

  // When the job's time is over, by the wall clock; infinite: never.
  absl::Time EndsAt() const;
  bool Leaves(absl::Time now) const { return now >= leave_.At(end_); }
  // Why, for the journal; times in seconds.
  nlohmann::json Reason(absl::Time now) const;
  const LeaveTime& leave() const { return leave_; }

 private:
  JobClock(EventLoop* loop, Options options);
  void Ask(absl::Time now);

  EventLoop* const loop_;
  const Options options_;
  LeaveTime leave_;
  std::unique_ptr<Worker> worker_;
  absl::Time end_;  // By the monotonic clock.
  absl::Time asked_ = absl::InfinitePast();
  bool asking_ = false, warned_ = false;
  std::optional<Sight> sight_;
  absl::Time stepped_at_, saving_since_;
};

}  // namespace perdure
