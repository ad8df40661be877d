#include "launch/site_check.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "launch/chain.h"
#include "launch/sbatch_options.h"
#include "launch/slurm/allocation.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

// What a job of a phase needs at least.
struct Demand {
  std::string what;  // "phase extension needs 34 nodes (32 and 2 spares)".
  int64_t nodes = 0, gpus = 0, cpus = 0;
};

// The limits of one object, and what it is.
struct Limits {
  std::string whose;  // "QoS long".
  std::string other;  // What to name in its place.
  std::optional<absl::Duration> wall;
  ResourceLimits job, user, group;
  std::optional<int64_t> jobs, submit;
};

std::string Counting(const SiteCheck& check, const SbatchOption& option, const std::string& else_) {
  return CountingValueOf(option, check.options, ProcessEnvironment(), check.config.slurm.options)
      .value_or(else_);
}

absl::StatusOr<std::vector<Demand>> DemandsOf(const SiteCheck& check) {
  const JobConfig& job = check.config.job;
  const int64_t gpus = std::max(GpusOfGres(Counting(check, kGresOption, "")),
                                GpusPerNode(Counting(check, kGpusPerNodeOption, "")));
  // One task a node; a whole node may have more.
  const int64_t cpus = ParseNumber<int64_t>(Counting(check, kCpusPerTaskOption, "")).value_or(1);
  std::vector<std::pair<std::string, std::string>> asked;
  for (const PhaseConfig& phase : check.config.phases)
    asked.emplace_back("phase " + phase.name, phase.nodes.empty() ? job.nodes : phase.nodes);
  if (check.config.foreign()) asked.emplace_back("the run", job.nodes);
  std::vector<Demand> demands;
  for (const auto& [who, wants] : asked) {
    ASSIGN_OR_RETURN(const NodeRange range, ParseNodeRange(wants));
    const int64_t nodes = range.least + job.spares;
    demands.push_back({.what = fmt::format("{} needs {} nodes ({} and {} spares)", who, nodes,
                                           range.least, job.spares),
                       .nodes = nodes,
                       .gpus = nodes * gpus,
                       .cpus = nodes * cpus});
  }
  return demands;
}

// ---- partitions

absl::Status CheckPartition(const PartitionView& partition, const SiteCheck& check,
                            const std::vector<Demand>& demands) {
  const absl::Duration limit = check.config.job.time_limit;
  if (limit > partition.time_max)
    return InvalidArgument(
        "job.time_limit is {}, but partition {} ends jobs after {}: --set job.time_limit={}",
        absl::FormatDuration(limit), partition.name, absl::FormatDuration(partition.time_max),
        absl::FormatDuration(partition.time_max));
  const int64_t most =
      std::min<int64_t>(partition.nodes_total, partition.nodes_max.value_or(partition.nodes_total));
  for (const Demand& demand : demands)
    if (demand.nodes > most)
      return InvalidArgument("{}, but a job of partition {} gets {} at most", demand.what,
                             partition.name, most);
  return absl::OkStatus();
}

// Those that sbatch may put the job in.
absl::StatusOr<std::vector<PartitionView>> PartitionsOf(Scheduler& scheduler,
                                                        const SiteCheck& check) {
  ASSIGN_OR_RETURN(const std::vector<PartitionView> all, scheduler.Partitions());
  std::string known;
  for (const PartitionView& each : all) known += (known.empty() ? "" : ", ") + each.name;
  const std::string asked = Counting(check, kPartitionOption, check.config.slurm.partition);
  std::vector<PartitionView> meant;
  for (const std::string_view name : Split(asked, ",")) {
    const auto at = std::find_if(all.begin(), all.end(), [&](const PartitionView& each) {
      return asked.empty() ? each.is_default : each.name == name;
    });
    if (at == all.end())
      return InvalidArgument("slurm.partition = \"{}\": {}; there are {}", asked,
                             asked.empty() ? "the site has no default one" : "no such partition",
                             known);
    meant.push_back(*at);
  }
  return meant;
}

// ---- accounting

Limits LimitsOf(const QosView& qos, const std::string& whose) {
  return {.whose = whose,
          .other = "another slurm.qos",
          .wall = qos.wall_max,
          .job = qos.job_max,
          .user = qos.user_max,
          .group = qos.group_max,
          .jobs = qos.user_jobs_max,
          .submit = qos.user_submit_max};
}

Limits LimitsOf(const AssociationView& association) {
  return {.whose = "account " + association.account,
          .other = "another slurm.account",
          .wall = association.wall_max,
          .job = association.job_max,
          .user = {},
          .group = association.group_max,
          .jobs = association.jobs_max,
          .submit = association.submit_max};
}

// `layers`: whose limits go before whose; of each limit only the first that sets it counts.
template <typename Get>
auto First(const std::vector<Limits>& layers, const Get& get)
    -> std::optional<std::pair<const Limits*, typename decltype(get(layers.front()))::value_type>> {
  for (const Limits& layer : layers)
    if (const auto limit = get(layer); limit.has_value()) return std::pair(&layer, *limit);
  return std::nullopt;
}

absl::Status CheckResources(const std::vector<Limits>& layers, const Demand& demand) {
  constexpr std::pair<ResourceLimits Limits::*, const char*> kKinds[] = {
      {&Limits::job, "gives a job {} {} at most"},
      {&Limits::user, "gives a user {} {} at most"},
      {&Limits::group, "has {} {} for all its jobs"}};
  const std::tuple<std::optional<int64_t> ResourceLimits::*, int64_t, const char*> resources[] = {
      {&ResourceLimits::nodes, demand.nodes, "nodes"},
      {&ResourceLimits::gpus, demand.gpus, "GPUs"},
      {&ResourceLimits::cpus, demand.cpus, "CPUs"}};
  for (const auto& [kind, words] : kKinds)
    for (const auto& [resource, needs, name] : resources) {
      const auto limit = First(layers, [&, kind = kind, resource = resource](const Limits& layer) {
        return layer.*kind.*resource;
      });
      if (!limit.has_value() || needs <= limit->second) continue;
      return InvalidArgument(
          "{}{}, but {} {}: fewer nodes (job.nodes, phase.NAME.nodes, job.spares), or {}",
          demand.what, needs == demand.nodes ? "" : fmt::format(", which are {} {}", needs, name),
          limit->first->whose, fmt::format(fmt::runtime(words), limit->second, name),
          limit->first->other);
    }
  return absl::OkStatus();
}

absl::Status CheckLimits(const std::vector<Limits>& layers, const SiteCheck& check,
                         const std::vector<Demand>& demands) {
  const absl::Duration time = check.config.job.time_limit;
  const auto wall = First(layers, [](const Limits& layer) { return layer.wall; });
  if (wall.has_value() && time > wall->second)
    return InvalidArgument(
        "job.time_limit is {}, but {} ends jobs after {}: --set job.time_limit={}, or {}",
        absl::FormatDuration(time), wall->first->whose, absl::FormatDuration(wall->second),
        absl::FormatDuration(wall->second), wall->first->other);
  for (const Demand& demand : demands) RETURN_IF_ERROR(CheckResources(layers, demand));
  const auto jobs = First(layers, [](const Limits& layer) { return layer.jobs; });
  if (jobs.has_value() && jobs->second < 1)
    return InvalidArgument("{} lets no job run: {}", jobs->first->whose, jobs->first->other);
  // The one that runs and the one behind it; where the next phase has other nodes, one more for
  // the moment in which it takes that one's place.
  const int64_t queued = OtherNodesFrom(check.config, 0) >= 0 ? 3 : 2;
  const auto submit = First(layers, [](const Limits& layer) { return layer.submit; });
  if (submit.has_value() && submit->second < queued)
    return InvalidArgument("a chain of this run has {} jobs in the queue, but {} takes {}: {}",
                           queued, submit->first->whose, submit->second, submit->first->other);
  return absl::OkStatus();
}

std::string ThisUser() {
  const passwd* const user = ::getpwuid(::geteuid());
  return user == nullptr ? "" : user->pw_name;
}

bool Has(const std::string& list, const std::string& word) {
  return ("," + list + ",").find("," + word + ",") != std::string::npos;
}

struct Accounting {
  SchedulerConfig scheduler;
  std::vector<QosView> qos;
  std::vector<AssociationView> associations;
};

// Nothing: jobs are held to no limits.
absl::StatusOr<std::optional<Accounting>> ReadAccounting(Scheduler& scheduler,
                                                         const SiteCheck& check) {
  Accounting all;
  ASSIGN_OR_RETURN(all.scheduler, scheduler.Config());
  // "safe" is "limits" and more.
  if (!Has(all.scheduler.enforced, "limits") && !Has(all.scheduler.enforced, "safe"))
    return std::nullopt;
  ASSIGN_OR_RETURN(all.qos, scheduler.Qos());
  const std::string user = check.user.empty() ? ThisUser() : check.user;
  if (!user.empty()) {
    ASSIGN_OR_RETURN(all.associations, scheduler.Associations(user));
  }
  return all;
}

// Whose limits hold for jobs of that partition, the first ones before the others.
std::vector<Limits> LayersOf(const Accounting& accounting, const SiteCheck& check,
                             const PartitionView& partition) {
  const SlurmConfig& slurm = check.config.slurm;
  const bool whole = slurm.account.empty() || slurm.account.ends_with(slurm.account_suffix);
  const std::string account =
      Counting(check, kAccountOption, whole ? slurm.account : slurm.account + slurm.account_suffix);
  const AssociationView* association = nullptr;
  for (const AssociationView& each : accounting.associations) {
    if (each.cluster != accounting.scheduler.cluster ||
        each.account != (account.empty() ? each.default_account : account))
      continue;
    if (each.partition == partition.name || (each.partition.empty() && association == nullptr))
      association = &each;
  }
  std::string qos = association == nullptr ? "" : association->default_qos;
  if (qos.empty() && Has(accounting.scheduler.enforced, "qos")) qos = "normal";
  qos = Counting(check, kQosOption, slurm.qos.empty() ? qos : slurm.qos);
  std::vector<Limits> layers;
  bool before_partition = false;
  for (const QosView& each : accounting.qos)
    if (each.name == qos) {
      layers.push_back(LimitsOf(each, "QoS " + each.name));
      before_partition = each.before_partition();
    }
  for (const QosView& each : accounting.qos)
    if (each.name == partition.qos && each.name != qos)
      layers.insert(
          before_partition ? layers.end() : layers.begin(),
          LimitsOf(each, fmt::format("QoS {} of partition {}", each.name, partition.name)));
  if (association != nullptr) layers.push_back(LimitsOf(*association));
  return layers;
}

}  // namespace

absl::Status CheckSite(Scheduler& scheduler, const SiteCheck& check) {
  ASSIGN_OR_RETURN(const std::vector<Demand> demands, DemandsOf(check));
  ASSIGN_OR_RETURN(const std::vector<PartitionView> partitions, PartitionsOf(scheduler, check));
  const auto accounting = ReadAccounting(scheduler, check);
  // A site without accounting, or that shows it to nobody, is none to complain of.
  if (absl::IsInternal(accounting.status()))
    check.say("warning: limits of QoS and account are not looked at: " +
              Message(accounting.status()));
  absl::Status first;
  for (const PartitionView& partition : partitions) {
    absl::Status fits = CheckPartition(partition, check, demands);
    if (fits.ok() && accounting.ok() && accounting->has_value())
      fits = CheckLimits(LayersOf(**accounting, check, partition), check, demands);
    // Of several Slurm takes whichever can start it.
    if (fits.ok()) return fits;
    first.Update(fits);
  }
  return first;
}

}  // namespace perdure
