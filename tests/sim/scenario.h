// What a simulation is: a cluster, its times and rates, and the faults that befall it when. Drawn
// from a seed, or read from text, so that a schedule that once failed is replayed for ever although
// what seeds draw has changed since.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/control/control_options.h"
#include "runtime/control/evidence.h"
#include "runtime/control/layout_planner.h"

namespace perdure::sim {

using Nanos = int64_t;  // Of the world's clock, since the beginning.
inline constexpr Nanos kMs = 1'000'000;
inline constexpr Nanos kSecond = 1'000 * kMs;

enum class FaultKind : uint8_t {
  kAgentCrash,   // `node`'s agent dies and comes back after `lasts`; its ranks live.
  kNodeCrash,    // And its ranks, and their memory; if `lasts` is long, perhaps for good.
  kRankCrash,    // A rank dies.
  kSlotLost,     // A rank dies with its device.
  kNodePause,    // Everything on it stands still for `lasts`.
  kAgentPause,   // Only the agent does.
  kIsolate,      // Nothing reaches or leaves it.
  kCut,          // Nothing gets from `node` to `other`; the other way it does.
  kClose,        // Its connections break and are made again.
  kSlowNetwork,  // All messages take up to 100 times as long.
  kLogStall,     // The file server answers nobody.
  kLogErrors,    // Every second request fails, before or after it was executed.
  kLogBlind,     // `node` alone cannot reach the file server.
  kDrain,        // It is to be given back.
  kWriteErrors,  // Writing parts of checkpoints fails, or seems to work and did not.
  kStubborn,     // Its ranks do not stop unless they are killed, if `lasts` is long at no time,
  kUnkillable,   // or even then only after `lasts`.
  kStall,        // Steps hang for `lasts`; those of `node`, if that is long, for ever.
  kEndJob,       // The scheduler ends the job, with notice,
  kKillJob,      // without,
  kTwoJobs,      // or starts the next while this one goes on.
  kSlowNode,     // Its ranks take 2 to 4 times as long for their work.
};
inline constexpr int kFaultKinds = static_cast<int>(FaultKind::kSlowNode) + 1;
const char* Name(FaultKind kind);

struct Fault {
  Nanos at = 0;
  FaultKind kind = FaultKind::kAgentCrash;
  uint32_t node = 0, other = 0;
  Nanos lasts = 0;
  friend bool operator==(const Fault&, const Fault&) = default;
};

struct Scenario {
  uint64_t seed = 0;
  int32_t nodes = 4;  // Of each job.
  int32_t slots = 1;  // Per node.
  int32_t domains = 2;
  LayoutRule rule;
  ControlOptions control;
  Nanos step = 300 * kMs;                           // What the work of one takes,
  int32_t jitter = 10;                              // and up to so many percent more.
  Nanos delay_min = kMs / 20, delay_max = 2 * kMs;  // Of messages.
  int32_t loss = 0, doubled = 0;                    // Per mille.
  Nanos log_delay_max = 20 * kMs;
  Nanos log_stale_max = 0;     // How old a reading may be.
  int32_t drift_ppm = 0;       // Clocks are off by up to this.
  int32_t manifest_fails = 0;  // Per mille: the manifest of a COMMIT cannot be made.
  int32_t keep_back = 0;       // Nodes of the job that only come at half time.
  int32_t freeze_every = 0;    // Ranks freeze their state by themselves every so many steps.
  int32_t steps_max = 0;       // The run is complete then; 0: never.
  int32_t no_snapshots = 0;    // 1: ranks keep none.
  // Per mille: a checkpoint is bad, as the store or only who loads it finds out; the store does not
  // answer; a state in memory is bad; the shell wants notes in the log; one cannot be made.
  int32_t bad_checkpoints = 0, store_silent = 0, bad_snapshots = 0, notes = 0, note_fails = 0;
  // Rank 0 fails behind this step, whoever it is, in this way, until a person has looked; 0: never.
  int32_t crash_step = 0;
  EvidenceKind crash_kind = EvidenceKind::kRankCrashed;
  // Per mille of all steps, by the samples that they see: bad; the run goes back so far for one,
  // and so often in a row.
  int32_t bad_steps = 0, rollback_steps = 1, rollbacks_max = 1;
  Nanos heal_at = 20 * kSecond;
  std::vector<Fault> faults;  // By time.

  // Nothing happens to it but that messages come twice and that jobs end: each job has one
  // coordinator and one generation.
  bool Calm() const {
    for (const Fault& fault : faults)
      if (fault.kind != FaultKind::kEndJob) return false;
    if (manifest_fails > 0 && steps_max > 0) return false;  // Perhaps the last state's.
    return bad_checkpoints == 0 && bad_snapshots == 0 && crash_step == 0 && bad_steps == 0 &&
           loss == 0 && keep_back == 0 && log_stale_max == 0 && delay_max <= 2 * kMs &&
           log_delay_max <= 20 * kMs;
  }
};

Scenario DrawScenario(uint64_t seed);

std::string Print(const Scenario& scenario);
// InvalidArgument names the line.
absl::StatusOr<Scenario> ParseScenario(std::string_view text);

}  // namespace perdure::sim
