#include "launch/slurm/scheduler_text.h"

#include <array>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/slurm_words.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"

namespace perdure {

// ---- squeue and sinfo

namespace {

std::string FormatOf(std::string_view letters, std::string_view separator) {
  std::string format;
  for (const char letter : letters) format += fmt::format("%{}{}", letter, separator);
  return format;
}

// In the order of their letters; see squeue(1). The name is last for people who read along.
constexpr std::string_view kSqueueLetters = "AFKuTrPqaDNBSelVQExj";
enum SqueueField : size_t {
  kId,
  kArray,
  kTask,
  kUser,
  kState,
  kReason,
  kPartition,
  kQos,
  kAccount,
  kNodeCount,
  kNodes,
  kBatchHost,
  kStart,
  kEnd,
  kLimit,
  kSubmit,
  kPriority,
  kDependency,
  kExcluded,
  kName
};

absl::StatusOr<JobView> ReadSqueue(const std::vector<std::string_view>& fields) {
  JobView job;
  ASSIGN_OR_RETURN(job.id, ParseNumber<int64_t>(fields[kId]));
  if (fields[kTask] != "N/A") {
    ASSIGN_OR_RETURN(job.array_job_id, ParseNumber<int64_t>(fields[kArray]));
    job.array_task = fields[kTask];
  }
  job.name = fields[kName];
  job.user = fields[kUser];
  job.state_word = fields[kState];
  job.state = ParseJobState(fields[kState]);
  job.reason = TextOrNothing(fields[kReason]);
  job.partition = fields[kPartition];
  job.qos = TextOrNothing(fields[kQos]);
  job.account = TextOrNothing(fields[kAccount]);
  ASSIGN_OR_RETURN(const NodeRange count, ParseNodeRange(fields[kNodeCount]));
  job.nodes_min = count.least;
  job.nodes_max = job.state == JobState::kPending ? count.most : count.least;
  ASSIGN_OR_RETURN(job.nodes, ParseNodeNames(fields[kNodes]));
  job.batch_host = TextOrNothing(fields[kBatchHost]);
  ASSIGN_OR_RETURN(job.start, ParseSlurmTime(fields[kStart]));
  ASSIGN_OR_RETURN(job.end, ParseSlurmTime(fields[kEnd]));
  ASSIGN_OR_RETURN(job.time_limit, ParseSlurmDuration(fields[kLimit]));
  ASSIGN_OR_RETURN(job.submitted, ParseSlurmTime(fields[kSubmit]));
  ASSIGN_OR_RETURN(job.priority, ParseNumber<int64_t>(fields[kPriority]));
  job.dependency = TextOrNothing(fields[kDependency]);
  ASSIGN_OR_RETURN(job.excluded, ParseNodeNames(fields[kExcluded]));
  return job;
}

}  // namespace

std::string SqueueFormat(std::string_view separator) { return FormatOf(kSqueueLetters, separator); }

absl::StatusOr<std::vector<JobView>> ParseSqueue(std::string_view text,
                                                 std::string_view separator) {
  ASSIGN_OR_RETURN(const auto records, SeparatedRecords(text, separator, kSqueueLetters.size()));
  std::vector<JobView> jobs;
  for (const std::vector<std::string_view>& fields : records) {
    absl::StatusOr<JobView> job = ReadSqueue(fields);
    if (!job.ok()) return Internal("squeue, job {}: {}", fields[kId], Message(job.status()));
    jobs.push_back(*std::move(job));
  }
  return jobs;
}

std::string SinfoFormat(std::string_view separator) { return FormatOf("NTE", separator); }

absl::StatusOr<std::vector<NodeView>> ParseSinfo(std::string_view text,
                                                 std::string_view separator) {
  ASSIGN_OR_RETURN(const auto records, SeparatedRecords(text, separator, 3));
  std::vector<NodeView> nodes;
  std::set<std::string_view> seen;
  for (const std::vector<std::string_view>& fields : records) {
    if (!seen.insert(fields[0]).second) continue;
    if (!IsNodeName(fields[0])) return Unreadable("the name of a node", fields[0]);
    NodeView node;
    node.name = fields[0];
    const size_t marks = fields[1].find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
    node.state = fields[1].substr(0, marks);
    if (node.state.empty()) return Unreadable("the state of node " + node.name, fields[1]);
    if (marks != std::string_view::npos) node.marks = fields[1].substr(marks);
    if (fields[2] != "none") node.reason = fields[2];
    nodes.push_back(std::move(node));
  }
  return nodes;
}

// ---- sbatch, and errors

absl::StatusOr<int64_t> ParseSubmitted(std::string_view text) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, Lines("sbatch --parsable", text));
  const std::string_view last = lines.empty() ? std::string_view() : lines.back();
  const absl::StatusOr<int64_t> id = ParseNumber<int64_t>(last.substr(0, last.find(';')));
  if (!id.ok() || *id <= 0)
    return Internal("sbatch --parsable ended well and printed no job id: '{}'", Printable(text));
  return *id;
}

absl::Status CommandFailure(const std::vector<std::string>& argv, const InvocationResult& result) {
  struct Words {
    absl::StatusCode code;
    std::string_view advice;
    std::vector<std::string_view> any;
  };
  // In this order: a message may hold words of several.
  static const std::array<Words, 6> kWords = {{
      {absl::StatusCode::kUnimplemented,
       "this site keeps no accounting database",
       {"accounting storage is disabled", "not running a supported accounting_storage"}},
      {absl::StatusCode::kFailedPrecondition,
       "this machine belongs to no Slurm cluster, or its slurm.conf cannot be read",
       {"could not establish a configuration source", "unable to process configuration file"}},
      {absl::StatusCode::kUnavailable,
       "Slurm does not answer now: try again later",
       {"unable to contact slurm controller", "unable to contact the controller",
        "socket timed out", "rate limit exceeded", "in standby mode", "connection timed out",
        "connection refused", "connection failure", "zero bytes were transmitted",
        "message send failure", "message receive failure", "try again later",
        "temporarily unable to accept", "resource temporarily unavailable",
        "problem talking to the database", "unexpected message received",
        "process is shutting down"}},
      {absl::StatusCode::kNotFound,
       "it never existed, or ended so long ago that Slurm has forgotten it",
       {"invalid job id specified", "no jobs in the system"}},
      {absl::StatusCode::kPermissionDenied,
       "ask its owner, or an administrator",
       {"access/permission denied", "access denied", "invalid user id"}},
      {absl::StatusCode::kFailedPrecondition,
       "look at the job's state",
       {"no longer pending", "job is pending execution", "already completing or completed",
        "already started", "already finished", "not pending nor running", "presently disabled",
        "only batch jobs", "in held state"}},
  }};
  const std::string said = result.errors.empty() ? result.output : result.errors;
  const std::string lower = absl::AsciiStrToLower(said);
  const auto message = [&](std::string_view advice) {
    return fmt::format("'{}' ended with code {} and said '{}': {}", CommandLine(argv),
                       result.exit_code, Printable(said), advice);
  };
  // "Job 4_99 not found", on its standard output.
  if (lower.starts_with("job ") && lower.ends_with(" not found\n"))
    return NotFound("{}", message("no such job"));
  for (const Words& words : kWords)
    for (const std::string_view word : words.any)
      if (lower.find(word) != std::string::npos)
        return absl::Status(words.code, message(words.advice));
  return absl::Status(absl::StatusCode::kInvalidArgument, message("change what it asks for"));
}

}  // namespace perdure
