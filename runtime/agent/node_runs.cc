#include "runtime/agent/node_runs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "ckpt/packed_report.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kVersion = 2;
constexpr uint64_t kStepMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
// Microseconds travel: 30 years fit, and anything else is no duration.
constexpr uint64_t kMicrosMost = uint64_t{1} << 50;

void PackSeconds(double seconds, PackWriter& to) {
  const double micros = std::clamp(seconds * 1e6, 0.0, static_cast<double>(kMicrosMost));
  to.Number(std::isfinite(micros) ? static_cast<uint64_t>(micros) : 0);
}

double UnpackSeconds(PackReader& from) {
  return static_cast<double>(from.Number(kMicrosMost)) * 1e-6;
}

void PackTrail(const Trail& trail, PackWriter& to) {
  to.One(trail.sample_chain);
  to.Number(trail.recent.size());
  for (const StepNumbers& step : trail.recent)
    for (const double number : {step.loss, step.grad_norm})
      to.Number(std::bit_cast<uint64_t>(number));
}

Trail UnpackTrail(PackReader& from) {
  Trail trail{.sample_chain = from.One(), .recent = {}};
  trail.recent.resize(from.Number(kRecentStepsMax));
  for (StepNumbers& step : trail.recent)
    for (double* number : {&step.loss, &step.grad_norm})
      *number = std::bit_cast<double>(from.Number());
  if (const absl::Status status = CheckRecent(trail.recent); !status.ok())
    from.Fail(Message(status));
  return trail;
}

// Whether `run` is what `plan` wants of it. Its digests are what they are.
absl::Status CheckRun(const RunReport& run, const PartPlan& plan) {
  if (run.runs != plan.runs || run.run >= static_cast<int64_t>(plan.runs.size()))
    return DataLoss("{}: run {} was written by another plan", run.file, run.run);
  int64_t first = 0;
  for (int64_t before = 0; before < run.run; ++before)
    first += plan.runs[static_cast<size_t>(before)];
  if (std::ssize(run.atoms) != plan.runs[static_cast<size_t>(run.run)] ||
      !std::equal(run.atoms.begin(), run.atoms.end(), plan.atoms.begin() + first))
    return DataLoss("{}: run {} has other atoms than it should", run.file, run.run);
  return absl::OkStatus();
}

// The next member behind the file's last writer that wrote nothing of it, in a circle; where all
// did, the one behind its first. `writers`: sorted, not empty.
int ReaderOf(std::span<const int> writers, int members) {
  for (int i = 1; i < members; ++i) {
    const int reader = (writers.back() + i) % members;
    if (!std::binary_search(writers.begin(), writers.end(), reader)) return reader;
  }
  return (writers.front() + 1) % members;
}

}  // namespace

void SaveSeconds::Include(const SaveSeconds& other) {
  freeze = std::max(freeze, other.freeze);
  copy = std::max(copy, other.copy);
  wait = std::max(wait, other.wait);
  write = std::max(write, other.write);
}

std::string PackNodeRuns(const NodeRuns& runs) {
  std::string packed;
  PackWriter to(&packed);
  to.Number(kVersion);
  to.Number(runs.generation);
  to.Number(static_cast<uint64_t>(runs.step));
  to.Number(runs.nonce);
  to.Number(runs.trail.has_value() ? 1 : 0);
  if (runs.trail.has_value()) PackTrail(*runs.trail, to);
  for (const double seconds :
       {runs.seconds.freeze, runs.seconds.copy, runs.seconds.wait, runs.seconds.write})
    PackSeconds(seconds, to);
  to.Number(runs.runs.size());
  for (const RunReport& run : runs.runs) PackRun(run, to);
  return packed;
}

absl::StatusOr<NodeRuns> ParseNodeRuns(std::string_view packed) {
  PackReader from(packed, "what a node wrote of a checkpoint");
  NodeRuns runs;
  if (from.Number() != kVersion) from.Fail("it is of another version");
  runs.generation = from.Number();
  runs.step = static_cast<int64_t>(from.Number(kStepMost));
  runs.nonce = static_cast<uint32_t>(from.Number(std::numeric_limits<uint32_t>::max()));
  if (from.Number(1) != 0) runs.trail = UnpackTrail(from);
  for (double* seconds :
       {&runs.seconds.freeze, &runs.seconds.copy, &runs.seconds.wait, &runs.seconds.write})
    *seconds = UnpackSeconds(from);
  const uint64_t count = from.Number();
  for (uint64_t i = 0; i < count && from.ok(); ++i) runs.runs.push_back(UnpackRun(from));
  RETURN_IF_ERROR(from.Done());
  return runs;
}

absl::StatusOr<JoinedNodes> JoinNodes(const NodeRuns& name, std::span<const PartPlan> plan,
                                      std::span<const NodeRuns> members) {
  JoinedNodes joined;
  std::vector<std::vector<RunReport>> runs(plan.size());
  std::vector<std::vector<int>> writers(plan.size());
  bool chained = false;
  for (size_t member = 0; member < members.size(); ++member) {
    const NodeRuns& of = members[member];
    if (of.generation != name.generation || of.step != name.step || of.nonce != name.nonce)
      return DataLoss("member {} wrote {}, and not {}", member,
                      CheckpointName(of.step, of.generation, of.nonce),
                      CheckpointName(name.step, name.generation, name.nonce));
    joined.seconds.Include(of.seconds);
    if (of.trail.has_value()) {
      if (std::exchange(chained, true)) return DataLoss("two members have rank 0");
      joined.trail = *of.trail;
    }
    for (const RunReport& run : of.runs) {
      const auto file = std::find_if(plan.begin(), plan.end(),
                                     [&](const PartPlan& part) { return part.file == run.file; });
      if (file == plan.end())
        return DataLoss("member {} wrote {}, which is no part of this checkpoint", member,
                        run.file);
      RETURN_IF_ERROR(CheckRun(run, *file));
      const auto index = static_cast<size_t>(file - plan.begin());
      runs[index].push_back(run);
      if (writers[index].empty() || writers[index].back() != static_cast<int>(member))
        writers[index].push_back(static_cast<int>(member));
    }
  }
  if (!chained) return DataLoss("no member has rank 0: the samples so far are unknown");
  for (size_t file = 0; file < plan.size(); ++file) {
    if (runs[file].empty()) return DataLoss("{}: nobody wrote it", plan[file].file);
    ASSIGN_OR_RETURN(joined.parts.emplace_back(), JoinRuns(runs[file]));
    joined.readers.push_back(ReaderOf(writers[file], static_cast<int>(members.size())));
  }
  return joined;
}

}  // namespace perdure
