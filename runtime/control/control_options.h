// The times of the control plane, and the arithmetic of its leases.
//
// Three leases. A coordinator's authority is the shorter of two: the **log lease**, renewed by a
// poll of the run log that finds no foreign record, and the **support lease**, renewed while more
// than half of the generation's nodes answer. The first survives a network, the second lets others
// go on within seconds when the coordinator is cut off although file systems may stall for longer.
// The **agent lease** is what lets a node's ranks step; a coordinator grants it with each answer,
// never beyond its own authority.
//
// Each runs from the sending of the request that renewed it, on the holder's monotonic clock.
// Clocks may run `drift_percent` too fast or too slow: holders count less, those who wait for the
// end of somebody else's lease count more. tests/formal/leases.pml proves the bounds.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/control/failure_detector.h"
#include "runtime/control/slow_ranks.h"

namespace perdure {

struct ControlOptions {
  absl::Duration heartbeat = absl::Milliseconds(250);  // Of members.
  absl::Duration lease_agent = absl::Seconds(2);
  absl::Duration lease_support = absl::Seconds(2);
  absl::Duration lease_log = absl::Seconds(30);      // How long a file system may stall.
  absl::Duration visibility = absl::ZeroDuration();  // How old a listing of log/ may be.
  int64_t drift_percent = 1;
  absl::Duration poll = absl::Seconds(3);         // Of the run log, by the coordinator.
  absl::Duration seek = absl::Milliseconds(500);  // Of the run log, by who has no coordinator.
  // A coordinator that did not answer for so long may be replaced: by the first node; by the next
  // one `stagger` later; by any after `stagger_max` places.
  absl::Duration leader_silence = absl::Seconds(1);
  absl::Duration stagger = absl::Milliseconds(200);
  int64_t stagger_max = 16;
  absl::Duration node_silence = absl::Seconds(2);  // A node that was not heard for so long is lost.
  absl::Duration close_silence = absl::Seconds(1);  // After its connection ended.
  // A step that takes longer than stall_min and stall_factor times the 99th percentile has stalled;
  // the first one of a generation after first_step_max.
  absl::Duration stall_min = absl::Seconds(10);
  int64_t stall_factor = 3;
  absl::Duration first_step_max = absl::Minutes(10);
  absl::Duration gather = absl::Seconds(30);               // For the nodes of a new job;
  absl::Duration gather_again = absl::Milliseconds(1500);  // for those of a running generation.
  absl::Duration stop_max = absl::Seconds(10);  // A node whose ranks do not stop is done without.
  absl::Duration form_max = absl::Minutes(10);  // From START to the first step.
  absl::Duration resend = absl::Milliseconds(500);  // Of a command that has no effect yet.
  absl::Duration append_retry = absl::Milliseconds(500);
  absl::Duration save_every = absl::Minutes(20);
  absl::Duration save_max = absl::Minutes(30);  // A save that takes longer is given up.
  // A rank whose work takes slow_percent of that of the others of its kind in a whole slow_window
  // (zero: nobody is looked at) is slow, until it takes less than slow_clear_percent. Where that
  // pays, the job does without its node for slow_retry, twice as long each time.
  absl::Duration slow_window = absl::Seconds(20);
  int64_t slow_percent = 150;
  int64_t slow_clear_percent = 125;
  absl::Duration slow_retry = absl::Hours(1);
  int64_t table_fan_out = 16;  // Of the tree that hands on rank addresses.
  // False: what is trained keeps its state itself, so that there is nothing here to save or to be
  // without; ranks that are to leave are stopped at a boundary, for which they have half of
  // stop_max.
  bool keeps_state = true;
  int32_t done_code = 0;  // A job whose run is complete ends with it.
};

// What of it is the failure detector's.
FailureDetector::Options DetectorOptions(const ControlOptions& options);

// And SlowRanks'.
SlowRanks::Options SlowRanksOptions(const ControlOptions& options);

// InvalidArgument names the field.
absl::Status Validate(const ControlOptions& options);

// What the holder of a lease of `d` may count on its own clock.
inline absl::Duration HolderCounts(const ControlOptions& o, absl::Duration d) {
  return d - d * o.drift_percent / 100;
}
// While there are nodes that a coordinator is not in touch with, it leaves a sign of life so often
// where the run log is: who is cut off shall not take its place.
inline absl::Duration PulseEvery(const ControlOptions& o) { return o.leader_silence / 5; }
// What somebody else must wait on its own clock until a lease of `d` has surely ended.
inline absl::Duration OthersWait(const ControlOptions& o, absl::Duration d) {
  return d + d * o.drift_percent / 100;
}

}  // namespace perdure
