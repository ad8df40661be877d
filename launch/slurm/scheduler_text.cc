#include "launch/slurm/scheduler_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "launch/slurm/hostlist.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

absl::StatusOr<std::vector<std::string>> Nodes(std::string_view list) {
  absl::StatusOr<std::vector<std::string>> nodes = ExpandHostlist(list, HostlistGrammar::k23_11);
  if (!nodes.ok()) return Internal("{}", Message(nodes.status()));
  return nodes;
}

// "None" and "(null)" are Slurm's words for nothing.
std::string TextOrNothing(std::string_view text) {
  return text == "None" || text == "(null)" || text == "N/A" || text == "n/a" ? ""
                                                                              : std::string(text);
}

absl::StatusOr<JobExit> ParseExit(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == text.npos) return Unreadable("an exit code 'code:signal'", text);
  JobExit exit;
  ASSIGN_OR_RETURN(exit.code, ParseNumber<int>(text.substr(0, colon)));
  ASSIGN_OR_RETURN(exit.signal, ParseNumber<int>(text.substr(colon + 1)));
  return exit;
}

constexpr std::pair<std::string_view, JobState> kStates[] = {
    {"BOOT_FAIL", JobState::kBootFail},
    {"CANCELLED", JobState::kCancelled},
    {"COMPLETED", JobState::kCompleted},
    {"COMPLETING", JobState::kCompleting},
    {"CONFIGURING", JobState::kConfiguring},
    {"DEADLINE", JobState::kDeadline},
    {"FAILED", JobState::kFailed},
    {"NODE_FAIL", JobState::kNodeFail},
    {"OUT_OF_MEMORY", JobState::kOutOfMemory},
    {"PENDING", JobState::kPending},
    {"PREEMPTED", JobState::kPreempted},
    {"REQUEUED", JobState::kRequeued},
    {"REQUEUE_HOLD", JobState::kRequeueHeld},
    {"RESIZING", JobState::kResizing},
    {"REVOKED", JobState::kRevoked},
    {"RUNNING", JobState::kRunning},
    {"SIGNALING", JobState::kSignaling},
    {"SPECIAL_EXIT", JobState::kSpecialExit},
    {"STAGE_OUT", JobState::kStageOut},
    {"STOPPED", JobState::kStopped},
    {"SUSPENDED", JobState::kSuspended},
    {"TIMEOUT", JobState::kTimeout},
};

}  // namespace

JobState ParseJobState(std::string_view word) {
  word = word.substr(0, word.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"));
  for (const auto& [name, state] : kStates)
    if (name == word) return state;
  return JobState::kOther;
}

bool IsOver(JobState state) {
  switch (state) {
    case JobState::kBootFail:
    case JobState::kCancelled:
    case JobState::kCompleted:
    case JobState::kDeadline:
    case JobState::kFailed:
    case JobState::kNodeFail:
    case JobState::kOutOfMemory:
    case JobState::kPreempted:
    case JobState::kTimeout:
      return true;
    default:
      return false;
  }
}

bool JobView::batch_host_lost() const {
  return state == JobState::kRunning && !batch_host.empty() &&
         std::find(nodes.begin(), nodes.end(), batch_host) == nodes.end();
}

bool NodeView::down() const {
  return state.starts_with("down") || state.starts_with("fail") || state.starts_with("unknown") ||
         state.starts_with("inval") || marks.find('*') != std::string::npos;
}
bool NodeView::drained() const { return state.starts_with("drain"); }

std::optional<absl::Duration> PastJob::waited() const {
  if (!eligible || !start || *start < *eligible) return std::nullopt;
  return *start - *eligible;
}

// ---- words

absl::StatusOr<std::optional<absl::Time>> ParseSlurmTime(std::string_view text) {
  for (const std::string_view none : {"Unknown", "N/A", "NONE", "None", "(null)", ""})
    if (text == none) return std::nullopt;
  const absl::StatusOr<int64_t> seconds = ParseNumber<int64_t>(text);
  if (!seconds.ok()) return Unreadable("a time in seconds", text);
  return std::optional(absl::FromUnixSeconds(*seconds));
}

absl::StatusOr<std::optional<absl::Duration>> ParseSlurmDuration(std::string_view text) {
  for (const std::string_view none :
       {"NONE", "NOT_SET", "INVALID", "Partition_Limit", "(null)", ""})
    if (text == none) return std::nullopt;
  if (text == "UNLIMITED" || text == "INFINITE") return std::optional(absl::InfiniteDuration());
  const absl::Status bad = Unreadable("a time D-HH:MM:SS", text);
  int64_t days = 0;
  std::string_view clock = text;
  if (const size_t dash = text.find('-'); dash != text.npos) {
    const absl::StatusOr<int64_t> number = ParseNumber<int64_t>(text.substr(0, dash));
    if (!number.ok() || *number > 1'000'000) return bad;
    days = *number;
    clock = text.substr(dash + 1);
  }
  const std::vector<std::string_view> parts = Split(clock, ":");
  if (parts.size() < 2 || parts.size() > 3) return bad;
  int64_t seconds = 0;
  for (const std::string_view part : parts) {
    const absl::StatusOr<int64_t> number = ParseNumber<int64_t>(part);
    if (!number.ok() || *number > 1'000'000) return bad;
    seconds = seconds * 60 + *number;
  }
  return std::optional(absl::Hours(24 * days) + absl::Seconds(seconds));
}

std::string SlurmDuration(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "UNLIMITED";
  const int64_t minutes = absl::ToInt64Minutes(absl::Ceil(duration, absl::Minutes(1)));
  return fmt::format("{}-{:02}:{:02}:00", minutes / (24 * 60), minutes / 60 % 24, minutes % 60);
}

absl::StatusOr<NodeRange> ParseNodeRange(std::string_view text) {
  NodeRange range;
  bool first = true, several = false;
  for (std::string_view part : Split(text, ",")) {
    part = part.substr(0, part.find(':'));  // A step, as in 1-15:4.
    for (const std::string_view word : Split(part, "-")) {
      ASSIGN_OR_RETURN(const int64_t count, ParseCount(word));
      if (count > std::numeric_limits<int>::max()) return Unreadable("a number of nodes", text);
      const int nodes = static_cast<int>(count);
      several = several || !first;
      range.least = first ? nodes : std::min(range.least, nodes);
      range.most = std::max(range.most, nodes);
      first = false;
    }
  }
  if (!several) range.most = 0;
  return range;
}

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
  ASSIGN_OR_RETURN(job.nodes, Nodes(fields[kNodes]));
  job.batch_host = TextOrNothing(fields[kBatchHost]);
  ASSIGN_OR_RETURN(job.start, ParseSlurmTime(fields[kStart]));
  ASSIGN_OR_RETURN(job.end, ParseSlurmTime(fields[kEnd]));
  ASSIGN_OR_RETURN(job.time_limit, ParseSlurmDuration(fields[kLimit]));
  ASSIGN_OR_RETURN(job.submitted, ParseSlurmTime(fields[kSubmit]));
  ASSIGN_OR_RETURN(job.priority, ParseNumber<int64_t>(fields[kPriority]));
  job.dependency = TextOrNothing(fields[kDependency]);
  ASSIGN_OR_RETURN(job.excluded, Nodes(fields[kExcluded]));
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

// ---- scontrol

namespace {

constexpr std::string_view kUserId = " UserId=", kHetSet = " HetJobIdSet=", kCommand = " Command=";

// What stands between "JobName=" and the fields behind it.
absl::StatusOr<std::string_view> NameOf(std::string_view text, std::string_view record,
                                        const std::optional<std::string>& known) {
  if (known) {
    const std::string_view behind =
        text.starts_with(*known) ? text.substr(known->size()) : std::string_view();
    if (!behind.starts_with(kUserId) && !behind.starts_with(kHetSet))
      return Internal("scontrol, a job whose name is not '{}': it was changed meanwhile", *known);
    return text.substr(0, known->size());
  }
  const size_t user = record.find(kUserId);
  if (user == record.npos) return Unreadable("scontrol's UserId=", record);
  const size_t end = std::min(user, record.find(kHetSet));
  if (record.find(kUserId, user + 1) != record.npos ||
      record.substr(0, end).find('\n') != record.npos)
    return FailedPrecondition("a job's name or directory looks like a part of scontrol's answer");
  return record.substr(0, end);
}

absl::Status ReadScontrol(const KeyValues& values, JobView& job) {
  ASSIGN_OR_RETURN(const std::string_view user, values.Needed("UserId"));
  job.user = user.substr(0, user.rfind('('));
  ASSIGN_OR_RETURN(const std::string_view state, values.Needed("JobState"));
  job.state_word = state;
  job.state = ParseJobState(state);
  ASSIGN_OR_RETURN(const std::string_view reason, values.Needed("Reason"));
  job.reason = TextOrNothing(reason);
  ASSIGN_OR_RETURN(const std::string_view dependency, values.Needed("Dependency"));
  job.dependency = TextOrNothing(dependency);
  ASSIGN_OR_RETURN(const std::string_view partition, values.Needed("Partition"));
  job.partition = partition;
  job.account = TextOrNothing(values.Find("Account").value_or(""));
  job.qos = TextOrNothing(values.Find("QOS").value_or(""));
  job.batch_host = TextOrNothing(values.Find("BatchHost").value_or(""));
  job.failed_node = TextOrNothing(values.Find("FailedNode").value_or(""));
  ASSIGN_OR_RETURN(const std::string_view priority, values.Needed("Priority"));
  ASSIGN_OR_RETURN(job.priority, ParseNumber<int64_t>(priority));
  ASSIGN_OR_RETURN(const std::string_view restarts, values.Needed("Restarts"));
  ASSIGN_OR_RETURN(job.restarts, ParseNumber<int>(restarts));
  ASSIGN_OR_RETURN(const std::string_view requeue, values.Needed("Requeue"));
  ASSIGN_OR_RETURN(const int may_requeue, ParseNumber<int>(requeue));
  job.requeue = may_requeue != 0;
  ASSIGN_OR_RETURN(const std::string_view exit, values.Needed("ExitCode"));
  ASSIGN_OR_RETURN(job.exit, ParseExit(exit));
  ASSIGN_OR_RETURN(const std::string_view limit, values.Needed("TimeLimit"));
  ASSIGN_OR_RETURN(job.time_limit, ParseSlurmDuration(limit));
  const std::pair<const char*, std::optional<absl::Time>*> times[] = {
      {"SubmitTime", &job.submitted},
      {"EligibleTime", &job.eligible},
      {"StartTime", &job.start},
      {"EndTime", &job.end}};
  for (const auto& [key, time] : times) {
    ASSIGN_OR_RETURN(const std::string_view text, values.Needed(key));
    ASSIGN_OR_RETURN(*time, ParseSlurmTime(text));
  }
  ASSIGN_OR_RETURN(const std::string_view excluded, values.Needed("ExcNodeList"));
  ASSIGN_OR_RETURN(job.excluded, Nodes(excluded));
  ASSIGN_OR_RETURN(const std::string_view nodes, values.Needed("NodeList"));
  ASSIGN_OR_RETURN(job.nodes, Nodes(nodes));
  ASSIGN_OR_RETURN(const std::string_view count, values.Needed("NumNodes"));
  ASSIGN_OR_RETURN(const NodeRange range, ParseNodeRange(count));
  job.nodes_min = range.least;
  job.nodes_max = job.state == JobState::kPending ? range.most : range.least;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<JobView>> ParseScontrolJobs(std::string_view text,
                                                       const std::optional<std::string>& name) {
  if (!text.ends_with('\n')) return CutShort("scontrol show job", text);
  std::vector<JobView> jobs;
  while (text.find_first_not_of('\n') != text.npos) {
    text.remove_prefix(text.find_first_not_of('\n'));
    JobView job;
    // JobId=1 ArrayJobId=1 ArrayTaskId=2 … JobName=
    for (;;) {
      const size_t equal = text.find('=');
      if (equal == text.npos) return Unreadable("scontrol's JobId=", text);
      const std::string_view key = text.substr(0, equal);
      text.remove_prefix(equal + 1);
      if (key == "JobName") break;
      const size_t space = std::min(text.find(' '), text.size());
      const std::string_view value = text.substr(0, space);
      if (job.id == 0 && key != "JobId") return Unreadable("scontrol's JobId=", key);
      if (key == "JobId") {
        ASSIGN_OR_RETURN(job.id, ParseNumber<int64_t>(value));
      } else if (key == "ArrayJobId") {
        ASSIGN_OR_RETURN(job.array_job_id, ParseNumber<int64_t>(value));
      } else if (key == "ArrayTaskId") {
        job.array_task = value;
      }
      text.remove_prefix(std::min(space + 1, text.size()));
    }
    size_t end = std::min(text.find("\nJobId="), text.size());
    ASSIGN_OR_RETURN(const std::string_view found, NameOf(text, text.substr(0, end), name));
    job.name = found;
    text.remove_prefix(found.size());
    const size_t command = text.find(kCommand);
    if (job.id == 0 || command == text.npos) return CutShort("scontrol show job", text);
    if (const absl::Status read = ReadScontrol(KeyValues(text.substr(0, command)), job); !read.ok())
      return Internal("scontrol show job {}: {}", job.id, Message(read));
    jobs.push_back(std::move(job));
    end = text.find("\nJobId=", command);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  return jobs;
}

namespace {

using Names = std::optional<std::vector<std::string>>;

// "ALL" is everybody, like a key that is missing.
Names NamesOf(const KeyValues& values, std::string_view key) {
  const std::optional<std::string_view> text = values.Find(key);
  if (!text || *text == "ALL" || *text == "(null)") return std::nullopt;
  std::vector<std::string> names;
  for (const std::string_view name : Split(*text, ",")) names.emplace_back(name);
  return names;
}

absl::StatusOr<absl::Duration> OverTimeLimit(std::string_view text) {
  if (text == "NONE") return absl::ZeroDuration();
  if (text == "UNLIMITED") return absl::InfiniteDuration();
  ASSIGN_OR_RETURN(const int64_t minutes, ParseNumber<int64_t>(text.substr(0, text.find(' '))));
  return absl::Minutes(minutes);
}

absl::StatusOr<PartitionView> ReadPartition(const KeyValues& values) {
  PartitionView part;
  ASSIGN_OR_RETURN(const std::string_view name, values.Needed("PartitionName"));
  part.name = name;
  ASSIGN_OR_RETURN(const std::string_view state, values.Needed("State"));
  part.state = state;
  part.is_default = values.Find("Default") == "YES";
  ASSIGN_OR_RETURN(const std::string_view most, values.Needed("MaxTime"));
  ASSIGN_OR_RETURN(const std::optional<absl::Duration> time_max, ParseSlurmDuration(most));
  part.time_max = time_max.value_or(absl::InfiniteDuration());
  ASSIGN_OR_RETURN(part.time_default,
                   ParseSlurmDuration(values.Find("DefaultTime").value_or("NONE")));
  ASSIGN_OR_RETURN(const std::string_view nodes_min, values.Needed("MinNodes"));
  ASSIGN_OR_RETURN(const int64_t least, ParseCount(nodes_min));
  part.nodes_min = static_cast<int>(least);
  ASSIGN_OR_RETURN(const std::string_view nodes_max, values.Needed("MaxNodes"));
  if (nodes_max != "UNLIMITED") {
    ASSIGN_OR_RETURN(const int64_t count, ParseCount(nodes_max));
    part.nodes_max = static_cast<int>(count);
  }
  ASSIGN_OR_RETURN(const std::string_view total, values.Needed("TotalNodes"));
  ASSIGN_OR_RETURN(const int64_t nodes_total, ParseCount(total));
  part.nodes_total = static_cast<int>(nodes_total);
  ASSIGN_OR_RETURN(part.nodes, Nodes(values.Find("Nodes").value_or("")));
  part.accounts = NamesOf(values, "AllowAccounts");
  part.accounts_denied = NamesOf(values, "DenyAccounts");
  part.qos_allowed = NamesOf(values, "AllowQos");
  part.qos_denied = NamesOf(values, "DenyQos");
  part.qos = TextOrNothing(values.Find("QoS").value_or(""));
  part.preempt_mode = values.Find("PreemptMode").value_or("");
  ASSIGN_OR_RETURN(part.over_time_limit,
                   OverTimeLimit(values.Find("OverTimeLimit").value_or("NONE")));
  return part;
}

}  // namespace

absl::StatusOr<std::vector<PartitionView>> ParsePartitions(std::string_view text) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines,
                   Lines("scontrol show partition", text));
  std::vector<PartitionView> parts;
  for (const std::string_view line : lines) {
    absl::StatusOr<PartitionView> part = ReadPartition(KeyValues(line));
    if (!part.ok()) return Internal("scontrol show partition: {}", Message(part.status()));
    parts.push_back(*std::move(part));
  }
  return parts;
}

absl::StatusOr<SchedulerConfig> ParseConfig(std::string_view text) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, Lines("scontrol show config", text));
  const auto value = [&](std::string_view key) -> absl::StatusOr<std::string_view> {
    for (const std::string_view line : lines) {
      const size_t equal = line.find('=');
      if (equal == line.npos || absl::StripAsciiWhitespace({line.data(), equal}) !=
                                    absl::string_view(key.data(), key.size()))
        continue;
      const std::string_view right = line.substr(equal + 1);
      const absl::string_view word = absl::StripAsciiWhitespace({right.data(), right.size()});
      return std::string_view(word.data(), word.size());
    }
    return Internal("scontrol show config does not say {}", key);
  };
  // "30 sec".
  const auto seconds = [&](std::string_view key) -> absl::StatusOr<absl::Duration> {
    ASSIGN_OR_RETURN(const std::string_view word, value(key));
    ASSIGN_OR_RETURN(const int64_t number, ParseNumber<int64_t>(word.substr(0, word.find(' '))));
    return absl::Seconds(number);
  };
  SchedulerConfig config;
  const std::pair<const char*, std::string*> texts[] = {
      {"SLURM_VERSION", &config.version},
      {"ClusterName", &config.cluster},
      {"AccountingStorageType", &config.accounting},
      {"PreemptMode", &config.preempt_mode}};
  for (const auto& [key, field] : texts) {
    ASSIGN_OR_RETURN(const std::string_view word, value(key));
    *field = word;
  }
  ASSIGN_OR_RETURN(config.kill_wait, seconds("KillWait"));
  ASSIGN_OR_RETURN(config.slurmd_timeout, seconds("SlurmdTimeout"));
  ASSIGN_OR_RETURN(config.job_age_min, seconds("MinJobAge"));
  ASSIGN_OR_RETURN(const std::string_view requeue, value("JobRequeue"));
  ASSIGN_OR_RETURN(const int may_requeue, ParseNumber<int>(requeue));
  config.job_requeue = may_requeue != 0;
  ASSIGN_OR_RETURN(const std::string_view array, value("MaxArraySize"));
  ASSIGN_OR_RETURN(config.array_size_max, ParseNumber<int>(array));
  ASSIGN_OR_RETURN(const std::string_view over, value("OverTimeLimit"));
  ASSIGN_OR_RETURN(config.over_time_limit, OverTimeLimit(over));
  return config;
}

// ---- sacctmgr and sacct

namespace {

absl::StatusOr<std::vector<std::vector<std::string_view>>> Rows(std::string_view command,
                                                                std::string_view text,
                                                                std::string_view fields) {
  const size_t count = Split(fields, ",").size();
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, Lines(command, text));
  std::vector<std::vector<std::string_view>> rows;
  for (const std::string_view line : lines) {
    rows.push_back(Split(line, "|"));
    if (rows.back().size() != count)
      return Internal("{} wrote a line of {} fields in place of {}: '{}'", command,
                      rows.back().size(), count, Printable(line));
  }
  return rows;
}

// The count of `name` in "cpu=1,gres/gpu=4,node=2"; nothing: no limit.
absl::StatusOr<std::optional<int64_t>> Resource(std::string_view list, std::string_view name) {
  for (const std::string_view part : Split(list, ",")) {
    const size_t equal = part.find('=');
    if (equal == part.npos || part.substr(0, equal) != name) continue;
    ASSIGN_OR_RETURN(const int64_t count, ParseCount(part.substr(equal + 1)));
    return std::optional(count);
  }
  return std::nullopt;
}

absl::StatusOr<std::optional<int64_t>> Limit(std::string_view text) {
  if (text.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const int64_t count, ParseCount(text));
  return std::optional(count);
}

absl::StatusOr<QosView> ReadQos(const std::vector<std::string_view>& row) {
  QosView qos;
  qos.name = row[0];
  if (qos.name.empty()) return Unreadable("the name of a QoS", row[0]);
  ASSIGN_OR_RETURN(const std::optional<int64_t> priority, Limit(row[1]));
  qos.priority = priority.value_or(0);
  ASSIGN_OR_RETURN(qos.wall_max, ParseSlurmDuration(row[2]));
  ASSIGN_OR_RETURN(qos.nodes_max, Resource(row[3], "node"));
  ASSIGN_OR_RETURN(qos.gpus_max, Resource(row[3], "gres/gpu"));
  ASSIGN_OR_RETURN(qos.user_nodes_max, Resource(row[4], "node"));
  ASSIGN_OR_RETURN(qos.user_gpus_max, Resource(row[4], "gres/gpu"));
  ASSIGN_OR_RETURN(qos.user_jobs_max, Limit(row[5]));
  ASSIGN_OR_RETURN(qos.user_submit_max, Limit(row[6]));
  ASSIGN_OR_RETURN(qos.group_nodes_max, Resource(row[7], "node"));
  ASSIGN_OR_RETURN(qos.group_gpus_max, Resource(row[7], "gres/gpu"));
  qos.flags = row[8];
  qos.preempt_mode = row[9];
  return qos;
}

absl::StatusOr<PastJob> ReadPastJob(const std::vector<std::string_view>& row) {
  PastJob job;
  ASSIGN_OR_RETURN(job.id, ParseNumber<int64_t>(row[0]));
  ASSIGN_OR_RETURN(const int64_t nodes, ParseCount(row[1]));
  job.nodes = static_cast<int>(std::min<int64_t>(nodes, std::numeric_limits<int>::max()));
  job.state_word = row[2];
  job.state = ParseJobState(row[2]);
  ASSIGN_OR_RETURN(job.exit, ParseExit(row[3]));
  ASSIGN_OR_RETURN(job.submitted, ParseSlurmTime(row[4]));
  ASSIGN_OR_RETURN(job.eligible, ParseSlurmTime(row[5]));
  ASSIGN_OR_RETURN(job.start, ParseSlurmTime(row[6]));
  ASSIGN_OR_RETURN(job.end, ParseSlurmTime(row[7]));
  if (row[8] == "UNLIMITED") {
    job.time_limit = absl::InfiniteDuration();
  } else if (!row[8].empty() && row[8] != "Partition_Limit") {
    ASSIGN_OR_RETURN(const int64_t minutes, ParseNumber<int64_t>(row[8]));
    job.time_limit = absl::Minutes(minutes);
  }
  return job;
}

}  // namespace

absl::StatusOr<std::vector<QosView>> ParseQos(std::string_view text) {
  ASSIGN_OR_RETURN(const auto rows, Rows("sacctmgr show qos", text, kQosFields));
  std::vector<QosView> all;
  for (const std::vector<std::string_view>& row : rows) {
    absl::StatusOr<QosView> qos = ReadQos(row);
    if (!qos.ok()) return Internal("sacctmgr, QoS {}: {}", row[0], Message(qos.status()));
    all.push_back(*std::move(qos));
  }
  return all;
}

absl::StatusOr<std::vector<PastJob>> ParseHistory(std::string_view text) {
  ASSIGN_OR_RETURN(const auto rows, Rows("sacct", text, kHistoryFields));
  std::vector<PastJob> jobs;
  for (const std::vector<std::string_view>& row : rows) {
    absl::StatusOr<PastJob> job = ReadPastJob(row);
    if (!job.ok()) return Internal("sacct, job {}: {}", row[0], Message(job.status()));
    jobs.push_back(*std::move(job));
  }
  return jobs;
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

absl::Status CommandFailure(const std::vector<std::string>& argv, const CommandResult& result) {
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
       {"access/permission denied", "access denied"}},
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
