#include <cstdint>
#include <utility>

#include "launch/slurm/scheduler_text.h"
#include "launch/slurm/slurm_words.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"

namespace perdure {

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

absl::StatusOr<ResourceLimits> Resources(std::string_view list) {
  ResourceLimits limits;
  ASSIGN_OR_RETURN(limits.nodes, Resource(list, "node"));
  ASSIGN_OR_RETURN(limits.gpus, Resource(list, "gres/gpu"));
  ASSIGN_OR_RETURN(limits.cpus, Resource(list, "cpu"));
  return limits;
}

absl::StatusOr<QosView> ReadQos(const std::vector<std::string_view>& row) {
  QosView qos;
  qos.name = row[0];
  if (qos.name.empty()) return Unreadable("the name of a QoS", row[0]);
  ASSIGN_OR_RETURN(const std::optional<int64_t> priority, Limit(row[1]));
  qos.priority = priority.value_or(0);
  ASSIGN_OR_RETURN(qos.wall_max, ParseSlurmDuration(row[2]));
  ASSIGN_OR_RETURN(qos.job_max, Resources(row[3]));
  ASSIGN_OR_RETURN(qos.user_max, Resources(row[4]));
  ASSIGN_OR_RETURN(qos.user_jobs_max, Limit(row[5]));
  ASSIGN_OR_RETURN(qos.user_submit_max, Limit(row[6]));
  ASSIGN_OR_RETURN(qos.group_max, Resources(row[7]));
  qos.flags = row[8];
  qos.preempt_mode = row[9];
  return qos;
}

absl::StatusOr<AssociationView> ReadAssociation(const std::vector<std::string_view>& row) {
  AssociationView it;
  const std::pair<std::string*, size_t> texts[] = {{&it.user, 0},      {&it.default_account, 1},
                                                   {&it.cluster, 2},   {&it.account, 3},
                                                   {&it.partition, 4}, {&it.default_qos, 5}};
  for (const auto& [field, column] : texts) *field = row[column];
  if (it.user.empty() || it.account.empty())
    return Unreadable("user and account of an association", row[0]);
  for (const std::string_view qos : Split(row[6], ","))
    if (!qos.empty()) it.qos.emplace_back(qos);
  ASSIGN_OR_RETURN(it.wall_max, ParseSlurmDuration(row[7]));
  ASSIGN_OR_RETURN(it.job_max, Resources(row[8]));
  ASSIGN_OR_RETURN(it.jobs_max, Limit(row[9]));
  ASSIGN_OR_RETURN(it.submit_max, Limit(row[10]));
  ASSIGN_OR_RETURN(it.group_max, Resources(row[11]));
  return it;
}

absl::StatusOr<PastJob> ReadPastJob(const std::vector<std::string_view>& row) {
  PastJob job;
  ASSIGN_OR_RETURN(job.id, ParseNumber<int64_t>(row[0]));
  ASSIGN_OR_RETURN(job.nodes, ParseNodeCount(row[1]));
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

absl::StatusOr<std::vector<AssociationView>> ParseAssociations(std::string_view text) {
  ASSIGN_OR_RETURN(const auto rows, Rows("sacctmgr show user", text, kAssociationFields));
  std::vector<AssociationView> all;
  for (const std::vector<std::string_view>& row : rows) {
    absl::StatusOr<AssociationView> one = ReadAssociation(row);
    if (!one.ok()) return Internal("sacctmgr, account {}: {}", row[3], Message(one.status()));
    all.push_back(*std::move(one));
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

}  // namespace perdure
