#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "launch/slurm/scheduler_text.h"
#include "launch/slurm/slurm_words.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"

namespace perdure {

namespace {

constexpr std::string_view kUserId = " UserId=", kHetSet = " HetJobIdSet=", kCommand = " Command=";

// What stands between "JobName=" and the fields behind it.
absl::StatusOr<std::string_view> NameOf(std::string_view text,
                                        const std::optional<std::string>& known) {
  if (known) {
    const std::string_view behind =
        text.starts_with(*known) ? text.substr(known->size()) : std::string_view();
    if (!behind.starts_with(kUserId) && !behind.starts_with(kHetSet))
      return Internal("scontrol, a job whose name is not '{}': it was changed meanwhile",
                      Printable(*known));
    return text.substr(0, known->size());
  }
  const size_t user = text.find(kUserId);
  if (user == text.npos) return CutShort("scontrol show job", text);
  return text.substr(0, std::min(user, text.find(kHetSet)));
}

// One record, and nothing in it that could be taken for the end of its name: a name may hold all
// of another record, so the first of several lines proves nothing.
bool IsClear(std::string_view text) {
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text.find('\n') == text.npos && text.find(kUserId) == text.rfind(kUserId) &&
         text.find(kHetSet) == text.rfind(kHetSet);
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
  ASSIGN_OR_RETURN(job.excluded, ParseNodeNames(excluded));
  ASSIGN_OR_RETURN(const std::string_view nodes, values.Needed("NodeList"));
  ASSIGN_OR_RETURN(job.nodes, ParseNodeNames(nodes));
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
  if (!name && !IsClear(text))
    return FailedPrecondition("the answer has several lines, or a text that looks like a field");
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
    ASSIGN_OR_RETURN(const std::string_view found, NameOf(text, name));
    job.name = found;
    text.remove_prefix(found.size());
    const size_t command = text.find(kCommand);
    if (job.id == 0 || command == text.npos) return CutShort("scontrol show job", text);
    if (const absl::Status read = ReadScontrol(KeyValues(text.substr(0, command)), job); !read.ok())
      return Internal("scontrol show job {}: {}", job.id, Message(read));
    jobs.push_back(std::move(job));
    const size_t end = text.find("\nJobId=", command);
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
  ASSIGN_OR_RETURN(part.nodes_min, ParseNodeCount(nodes_min));
  ASSIGN_OR_RETURN(const std::string_view nodes_max, values.Needed("MaxNodes"));
  if (nodes_max != "UNLIMITED") {
    ASSIGN_OR_RETURN(part.nodes_max, ParseNodeCount(nodes_max));
  }
  ASSIGN_OR_RETURN(const std::string_view total, values.Needed("TotalNodes"));
  ASSIGN_OR_RETURN(part.nodes_total, ParseNodeCount(total));
  ASSIGN_OR_RETURN(part.nodes, ParseNodeNames(values.Find("Nodes").value_or("")));
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
      {"AccountingStorageEnforce", &config.enforced},
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

}  // namespace perdure
