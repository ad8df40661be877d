// What Slurm's commands print, read. Pure: text in, values or an error out. An answer that was cut
// short, or that says something unforeseen where a value is needed, is Internal and says where;
// nothing is guessed. Keys that are not known are passed over, because each release adds some.
//
// Times are asked for as seconds since 1970 (SLURM_TIME_FORMAT=%s), so no time zone matters.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/slurm/command.h"
#include "launch/slurm/scheduler_view.h"

namespace perdure {

// ---- words

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

// ---- squeue and sinfo: every field is followed by `separator`, every record by a new line

std::string SqueueFormat(std::string_view separator);
absl::StatusOr<std::vector<JobView>> ParseSqueue(std::string_view text, std::string_view separator);

std::string SinfoFormat(std::string_view separator);
// A node that is listed for several partitions appears once.
absl::StatusOr<std::vector<NodeView>> ParseSinfo(std::string_view text, std::string_view separator);

// ---- scontrol -o

// `scontrol -o show job`: one record, or several of an array. Where a job's name makes the text
// ambiguous, it is FailedPrecondition without `name`, which must then be asked of squeue.
absl::StatusOr<std::vector<JobView>> ParseScontrolJobs(std::string_view text,
                                                       const std::optional<std::string>& name);
absl::StatusOr<std::vector<PartitionView>> ParsePartitions(std::string_view text);
absl::StatusOr<SchedulerConfig> ParseConfig(std::string_view text);

// ---- sacctmgr -nP and sacct -nP

inline constexpr std::string_view kQosFields =
    "Name,Priority,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,GrpTRES,Flags,PreemptMode";
absl::StatusOr<std::vector<QosView>> ParseQos(std::string_view text);

inline constexpr std::string_view kHistoryFields =
    "JobIDRaw,NNodes,State,ExitCode,Submit,Eligible,Start,End,TimelimitRaw";
absl::StatusOr<std::vector<PastJob>> ParseHistory(std::string_view text);

// ---- sbatch --parsable, and what went wrong

// "123" or "123;cluster", on the last line: some sites print a greeting first.
absl::StatusOr<int64_t> ParseSubmitted(std::string_view text);
// The error of a command that ended with a code other than 0. See scheduler.h for the codes.
absl::Status CommandFailure(const std::vector<std::string>& argv, const CommandResult& result);

}  // namespace perdure
