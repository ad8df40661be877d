#include "launch/pending_reason.h"

#include <algorithm>
#include <vector>

namespace perdure {
namespace {

struct Rule {
  // All of these are in the reason, none of those is.
  std::vector<std::string_view> has, has_not;
  const char* advice;
};

// The first that fits counts. The words are those of slurm_protocol_defs.c; what is not here goes
// away when other jobs end, nodes come back or a reservation begins.
const std::vector<Rule>& Rules() {
  static const std::vector<Rule> rules = {
      {{"JobHeldUser"}, {}, "it is held: perdure resume lets it go on"},
      {{"JobHeldAdmin"}, {}, "an administrator holds it: ask your site"},
      {{"JobHoldMaxRequeue"},
       {},
       "Slurm holds it after too many failed starts: look into its log, then scontrol release"},
      {{"requeued_held"},
       {},
       "Slurm holds it since it could not be started: look into its log, then scontrol release"},
      {{"PartitionTimeLimit"},
       {},
       "the partition ends jobs earlier: a shorter job.time_limit, or another slurm.partition"},
      {{"PartitionNodeLimit"},
       {},
       "the partition has not so many nodes for a job: fewer job.nodes, or another "
       "slurm.partition"},
      {{"MaxWallDuration"},
       {},
       "the QoS or the account ends jobs earlier: a shorter job.time_limit, or another slurm.qos"},
      // Of a job: "MinutesPerJob" is its time as well.
      {{"PerJob"},
       {},
       "the QoS or the account gives no job so much: fewer job.nodes, a shorter job.time_limit, "
       "or another slurm.qos"},
      {{"PerNode"},
       {},
       "the QoS or the account gives no job so much of a node: see slurm.options, or another "
       "slurm.qos"},
      {{"QOSMin"}, {}, "the QoS is for larger jobs: more job.nodes, or another slurm.qos"},
      {{"Grp", "Minutes"}, {"RunMinutes"}, "the hours are used up: ask your site for more"},
      {{"GrpWall"}, {}, "the hours are used up: ask your site for more"},
      {{"QOSTimeLimit"}, {}, "the hours are used up: ask your site for more"},
      {{"AssociationTimeLimit"}, {}, "the hours are used up: ask your site for more"},
      {{"QOSUsageThreshold"}, {}, "too much was used for this QoS: another slurm.qos"},
      {{"InvalidAccount"}, {}, "no such account any more, or not here: another slurm.account"},
      {{"AccountNotAllowed"},
       {},
       "the partition is not for this account: another slurm.account or slurm.partition"},
      {{"InvalidQOS"}, {}, "no such QoS any more, or not for you: another slurm.qos"},
      {{"QOSNotAllowed"},
       {},
       "the partition is not for this QoS: another slurm.qos or slurm.partition"},
      {{"BadConstraints"}, {}, "no node is like that: see slurm.constraint and slurm.options"},
      {{"MaxMemPerLimit"}, {}, "no node gives a job so much memory: see slurm.options"},
      {{"DependencyNeverSatisfied"}, {}, "cancel it, and perdure submit again"},
      {{"ReservationDeleted"},
       {},
       "there is no such reservation any more: another slurm.reservation"},
  };
  return rules;
}

}  // namespace

std::string AdviceFor(std::string_view reason) {
  const auto has = [&](std::string_view word) { return reason.find(word) != reason.npos; };
  for (const Rule& rule : Rules())
    if (std::all_of(rule.has.begin(), rule.has.end(), has) &&
        std::none_of(rule.has_not.begin(), rule.has_not.end(), has))
      return rule.advice;
  return "";
}

bool IsHeld(std::string_view reason) {
  return reason.starts_with("JobHeld") || reason.starts_with("JobHold") ||
         reason.find("requeued_held") != reason.npos;
}

}  // namespace perdure
