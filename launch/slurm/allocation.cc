#include "launch/slurm/allocation.h"

#include <charconv>
#include <cstdlib>
#include <limits>

#include "launch/slurm/hostlist.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

class Reader {
 public:
  explicit Reader(const EnvironmentLookup& lookup) : lookup_(lookup) {}

  std::string Text(const char* name) const { return lookup_(name).value_or(""); }

  // Not set: nothing. Set to something else than a number from `least` on: an error.
  template <typename T>
  absl::StatusOr<std::optional<T>> Number(const char* name, T least) const {
    const std::optional<std::string> text = lookup_(name);
    if (!text) return std::nullopt;
    T number = 0;
    const char* const end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, number);
    if (error != std::errc() || stop != end || number < least)
      return InvalidArgument(
          "{}='{}' is no number from {} on: Slurm sets it, so something in between has changed it",
          name, *text, least);
    return std::optional<T>(number);
  }

  absl::Status Missing(const char* name) const {
    return InvalidArgument(
        "SLURM_JOB_ID={} is set, but {} is not: start it with sbatch, srun or salloc, or unset "
        "SLURM_JOB_ID to run outside of the allocation",
        Text("SLURM_JOB_ID"), name);
  }

  absl::StatusOr<std::optional<absl::Time>> Time(const char* name) const {
    ASSIGN_OR_RETURN(const std::optional<int64_t> seconds, Number<int64_t>(name, 0));
    if (!seconds) return std::nullopt;
    return std::optional(absl::FromUnixSeconds(*seconds));
  }

 private:
  const EnvironmentLookup& lookup_;
};

absl::StatusOr<std::vector<std::string>> NodesOf(const Reader& read) {
  const std::string list = read.Text("SLURM_JOB_NODELIST");
  if (list.empty()) return read.Missing("SLURM_JOB_NODELIST");
  absl::StatusOr<std::vector<std::string>> nodes = ExpandHostlist(list, HostlistGrammar::k23_11);
  if (!nodes.ok()) return InvalidArgument("SLURM_JOB_NODELIST: {}", Message(nodes.status()));
  // A step that was started from outside of the job (srun --jobid) is not told the number.
  ASSIGN_OR_RETURN(const std::optional<int> count, read.Number<int>("SLURM_JOB_NUM_NODES", 1));
  if (count && static_cast<size_t>(*count) != nodes->size())
    return InvalidArgument("SLURM_JOB_NODELIST='{}' names {} nodes, SLURM_JOB_NUM_NODES={}", list,
                           nodes->size(), *count);
  return nodes;
}

}  // namespace

EnvironmentLookup ProcessEnvironment() {
  return [](std::string_view name) -> std::optional<std::string> {
    const char* const value = std::getenv(std::string(name).c_str());
    if (value == nullptr) return std::nullopt;
    return value;
  };
}

absl::StatusOr<std::optional<Allocation>> ReadAllocation(const EnvironmentLookup& lookup) {
  const Reader read(lookup);
  Allocation it;
  ASSIGN_OR_RETURN(const std::optional<int64_t> job, read.Number<int64_t>("SLURM_JOB_ID", 1));
  if (!job) return std::nullopt;
  it.job_id = *job;
  ASSIGN_OR_RETURN(const std::optional<int> restarts, read.Number<int>("SLURM_RESTART_COUNT", 0));
  it.restarts = restarts.value_or(0);
  ASSIGN_OR_RETURN(it.array_job_id, read.Number<int64_t>("SLURM_ARRAY_JOB_ID", 1));
  ASSIGN_OR_RETURN(it.array_task_id, read.Number<int64_t>("SLURM_ARRAY_TASK_ID", 0));
  if (it.array_job_id.has_value() != it.array_task_id.has_value())
    return read.Missing(it.array_job_id ? "SLURM_ARRAY_TASK_ID" : "SLURM_ARRAY_JOB_ID");
  it.job_name = read.Text("SLURM_JOB_NAME");
  it.partition = read.Text("SLURM_JOB_PARTITION");
  it.account = read.Text("SLURM_JOB_ACCOUNT");
  it.qos = read.Text("SLURM_JOB_QOS");
  it.cluster = read.Text("SLURM_CLUSTER_NAME");
  it.submit_directory = read.Text("SLURM_SUBMIT_DIR");
  ASSIGN_OR_RETURN(it.nodes, NodesOf(read));
  it.node_name = lookup("SLURMD_NODENAME");
  if (it.node_name && !IsNodeName(*it.node_name))
    return InvalidArgument("SLURMD_NODENAME='{}' is no node's name", *it.node_name);
  ASSIGN_OR_RETURN(it.step_id, read.Number<int64_t>("SLURM_STEP_ID", 0));
  ASSIGN_OR_RETURN(it.node_index, read.Number<int>("SLURM_NODEID", 0));
  ASSIGN_OR_RETURN(it.task_index, read.Number<int>("SLURM_PROCID", 0));
  ASSIGN_OR_RETURN(it.local_task_index, read.Number<int>("SLURM_LOCALID", 0));
  ASSIGN_OR_RETURN(it.cpus_on_node, read.Number<int>("SLURM_CPUS_ON_NODE", 1));
  ASSIGN_OR_RETURN(it.start, read.Time("SLURM_JOB_START_TIME"));
  ASSIGN_OR_RETURN(it.end, read.Time("SLURM_JOB_END_TIME"));
  return it;
}

}  // namespace perdure
