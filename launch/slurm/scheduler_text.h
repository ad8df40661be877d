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

// ---- squeue and sinfo: every field is followed by `separator`, every record by a new line

std::string SqueueFormat(std::string_view separator);
absl::StatusOr<std::vector<JobView>> ParseSqueue(std::string_view text, std::string_view separator);

std::string SinfoFormat(std::string_view separator);
// A node that is listed for several partitions appears once.
absl::StatusOr<std::vector<NodeView>> ParseSinfo(std::string_view text, std::string_view separator);

// ---- scontrol -o

// `scontrol -o show job`: one record, or several of an array, which share a name. Where a name
// could have forged a part of the text, it is FailedPrecondition without `name`, to be asked of
// squeue.
absl::StatusOr<std::vector<JobView>> ParseScontrolJobs(std::string_view text,
                                                       const std::optional<std::string>& name);
absl::StatusOr<std::vector<PartitionView>> ParsePartitions(std::string_view text);
absl::StatusOr<SchedulerConfig> ParseConfig(std::string_view text);

// ---- sacctmgr -nP and sacct -nP

inline constexpr std::string_view kQosFields =
    "Name,Priority,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,GrpTRES,Flags,PreemptMode";
absl::StatusOr<std::vector<QosView>> ParseQos(std::string_view text);

inline constexpr std::string_view kAssociationFields =
    "User,DefaultAccount,Cluster,Account,Partition,DefaultQOS,QOS,MaxWall,MaxTRES,MaxJobs,"
    "MaxSubmit,GrpTRES";
absl::StatusOr<std::vector<AssociationView>> ParseAssociations(std::string_view text);

inline constexpr std::string_view kHistoryFields =
    "JobIDRaw,NNodes,State,ExitCode,Submit,Eligible,Start,End,TimelimitRaw";
absl::StatusOr<std::vector<PastJob>> ParseHistory(std::string_view text);

// ---- sbatch --parsable, and what went wrong

// "123" or "123;cluster", on the last line: some sites print a greeting first.
absl::StatusOr<int64_t> ParseSubmitted(std::string_view text);
// The error of a command that ended with a code other than 0. See scheduler.h for the codes.
absl::Status CommandFailure(const std::vector<std::string>& argv, const InvocationResult& result);

}  // namespace perdure
