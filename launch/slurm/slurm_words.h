// The words that Slurm's commands write in their fields: times, lengths of time, numbers of nodes,
// nothing at all. Errors are Internal and name what was expected.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/slurm/scheduler_view.h"

namespace perdure {

// Digits are seconds since 1970; "Unknown", "N/A", "NONE", "None" and "(null)" are no time.
absl::StatusOr<std::optional<absl::Time>> ParseSlurmTime(std::string_view text);
// "20:00:00", "1-02:03:04", "2:00" (minutes, seconds), "UNLIMITED"; "NONE", "NOT_SET", "INVALID",
// "Partition_Limit" and "" are none.
absl::StatusOr<std::optional<absl::Duration>> ParseSlurmDuration(std::string_view text);
// For Slurm's own options: "D-HH:MM:SS", rounded up to whole minutes, or "UNLIMITED".
std::string SlurmDuration(absl::Duration duration);
// "4", "1K" (1,024), "4-8", "1,4-8:2": the fewest and the most; the most is 0 if there is one
// number only.
struct NodeRange {
  int least = 0, most = 0;
};
absl::StatusOr<NodeRange> ParseNodeRange(std::string_view text);
// A number of nodes with Slurm's units.
absl::StatusOr<int> ParseNodeCount(std::string_view text);
// The names of a list that Slurm has printed.
absl::StatusOr<std::vector<std::string>> ParseNodeNames(std::string_view list);
// "3:0": code and signal.
absl::StatusOr<JobExit> ParseExit(std::string_view text);
// "None", "(null)", "N/A" and "n/a" are nothing.
std::string TextOrNothing(std::string_view text);

}  // namespace perdure
