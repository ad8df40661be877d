// What a site with accounting allows, by the texts of a real Slurm's commands.
#include "launch/site_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/config.h"
#include "launch/pending_reason.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"
#include "tests/slurm/recorded_command.h"

namespace perdure {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

// A cluster "acct" with partitions main (default, 20 h, 4 nodes), big (2 days, 4 of 5 nodes) and
// closed, which enforces limits: `qos` and `users` are what sacctmgr -nP says.
struct Site {
  std::string qos = "normal|0||||||||cluster\n";
  std::string users = "me|alpha|acct|alpha|||normal|||||\n";
  std::string enforced = "associations,limits,qos,safe";
  std::string partition_qos;       // Of main.
  InvocationResult no_accounting;  // What sacctmgr answers in place of that, if it is an error.
};

absl::StatusOr<InvocationResult> Answer(const Site& site, const Invocation& command) {
  const auto has = [&](const char* word) {
    return std::find(command.argv.begin(), command.argv.end(), word) != command.argv.end();
  };
  const auto record = [](const char* name, const std::string& from, const std::string& to) {
    InvocationResult result = ReadRecord(std::string("22.05/") + name).result;
    const size_t at = result.output.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    result.output.replace(at, from.size(), to);
    return result;
  };
  if (command.argv[0] == "scontrol" && has("config"))
    return record("acct-config", "associations,limits,qos,safe", site.enforced);
  if (command.argv[0] == "scontrol" && has("partition"))
    return record("partitions", "QoS=N/A",
                  "QoS=" + (site.partition_qos.empty() ? "N/A" : site.partition_qos));
  EXPECT_EQ(command.argv[0], "sacctmgr");
  if (site.no_accounting.exit_code != 0) return site.no_accounting;
  return InvocationResult{.output = has("qos") ? site.qos : site.users};
}

struct Asked {
  std::vector<std::string> settings;
  std::vector<std::string> options;  // Of sbatch.
};
// nano on two nodes, for 10 h.
absl::Status Check(const Site& site, const Asked& asked = {}, std::string* said = nullptr) {
  std::vector<std::string> settings = {"job.nodes=2", "job.time_limit=10h"};
  settings.insert(settings.end(), asked.settings.begin(), asked.settings.end());
  const auto config = LoadConfig(NanoToml(), settings);
  if (!config.ok()) return config.status();
  Scheduler scheduler([&](const Invocation& command) { return Answer(site, command); });
  const absl::Status checked = CheckSite(scheduler, {.config = *config,
                                                     .options = asked.options,
                                                     .user = "me",
                                                     .say = [&](const std::string& line) {
                                                       if (said != nullptr) *said += line;
                                                     }});
  EXPECT_TRUE(checked.ok() || absl::IsInvalidArgument(checked)) << checked;
  return checked;
}
std::string Refusal(const Site& site, const Asked& asked = {}) {
  return std::string(Check(site, asked).message());
}

// With one column of kQosFields said.
std::string Qos(const std::string& name, int column, const std::string& value) {
  std::string line = name;
  for (int at = 1; at < 10; ++at) line += "|" + (at == column ? value : at == 1 ? "0" : "");
  return line + "\n";
}
constexpr int kMaxWall = 2, kMaxTres = 3, kMaxTresPerUser = 4, kMaxJobs = 5, kMaxSubmit = 6,
              kGrpTres = 7;

TEST(SiteCheck, WithoutLimitsAllIsFine) { EXPECT_EQ(Check({}), absl::OkStatus()); }

TEST(SiteCheck, TimeOfAJob) {
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxWall, "02:00:00")}),
              AllOf(HasSubstr("job.time_limit is 10h, but QoS normal ends jobs after 2h"),
                    HasSubstr("--set job.time_limit=2h, or another slurm.qos")));
  EXPECT_EQ(Check({.qos = Qos("normal", kMaxWall, "10:00:00")}), absl::OkStatus());
  EXPECT_EQ(Check({.qos = Qos("other", kMaxWall, "02:00:00")}), absl::OkStatus());
  EXPECT_THAT(Refusal({.users = "me|alpha|acct|alpha||||09:00:00||||\n"}),
              HasSubstr("but account alpha ends jobs after 9h: --set job.time_limit=9h, or another "
                        "slurm.account"));
}

TEST(SiteCheck, WhatAJobMayHave) {
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxTres, "node=1")}),
              HasSubstr("phase pretrain needs 2 nodes (2 and 0 spares), but QoS normal gives a job "
                        "1 nodes at most: fewer nodes (job.nodes, phase.NAME.nodes, job.spares), "
                        "or another slurm.qos"));
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxTresPerUser, "node=1")}),
              HasSubstr("gives a user 1 nodes at most"));
  EXPECT_THAT(Refusal({.qos = Qos("normal", kGrpTres, "node=1")}),
              HasSubstr("has 1 nodes for all its jobs"));
  // A phase counts by itself, and spares with it.
  EXPECT_EQ(Check({.qos = Qos("normal", kMaxTres, "node=3")}), absl::OkStatus());
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxTres, "node=3")},
                      {.settings = {"phase.extension.nodes=3", "job.spares=1"}, .options = {}}),
              HasSubstr("phase extension needs 4 nodes (3 and 1 spares)"));
  // Of a range the least, which Slurm may give.
  EXPECT_EQ(Check({.qos = Qos("normal", kMaxTres, "node=2")},
                  {.settings = {"job.nodes=\"2-4\""}, .options = {}}),
            absl::OkStatus());
}

TEST(SiteCheck, GpusAndProcessors) {
  const Site gpus{.qos = Qos("normal", kMaxTresPerUser, "cpu=64,gres/gpu=7")};
  EXPECT_EQ(Check(gpus), absl::OkStatus());
  for (const Asked& asked :
       {Asked{.settings = {"slurm.options=[\"--gres=gpu:h100:4\"]"}, .options = {}},
        Asked{.settings = {}, .options = {"--gres", "nic:1,gpu:4"}},
        Asked{.settings = {}, .options = {"--gpus-per-node=h100:4"}}})
    EXPECT_THAT(
        Refusal(gpus, asked),
        HasSubstr("(2 and 0 spares), which are 8 GPUs, but QoS normal gives a user 7 GPUs"));
  EXPECT_EQ(
      Check(gpus, {.settings = {"slurm.options=[\"--gres=gpu:4\"]"}, .options = {"--gres=gpu:3"}}),
      absl::OkStatus())
      << "the command line counts more";
  EXPECT_THAT(Refusal(gpus, {.settings = {}, .options = {"-c", "33"}}),
              HasSubstr("which are 66 CPUs, but QoS normal gives a user 64 CPUs"));
}

TEST(SiteCheck, AChainNeedsTwoJobsInTheQueue) {
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxSubmit, "1")}),
              HasSubstr("a chain of this run has 2 jobs in the queue, but QoS normal takes 1"));
  const Site two{.qos = Qos("normal", kMaxSubmit, "2")};
  EXPECT_EQ(Check(two), absl::OkStatus());
  EXPECT_THAT(Refusal(two, {.settings = {"phase.extension.nodes=1"}, .options = {}}),
              HasSubstr("has 3 jobs in the queue"));
  EXPECT_THAT(Refusal({.qos = Qos("normal", kMaxJobs, "0")}), HasSubstr("lets no job run"));
  EXPECT_THAT(Refusal({.users = "me|alpha|acct|alpha|||||||1|\n"}),
              HasSubstr("but account alpha takes 1: another slurm.account"));
}

TEST(SiteCheck, WhichQosItIs) {
  const std::string all =
      Qos("normal", 0, "") + Qos("long", kMaxWall, "01:00:00") + Qos("short", kMaxWall, "00:10:00");
  const Site site{.qos = all, .users = "me|alpha|acct|alpha||long|long,normal|||||\n"};
  EXPECT_THAT(Refusal(site), HasSubstr("QoS long")) << "the account's default";
  EXPECT_EQ(Check(site, {.settings = {"slurm.qos=normal"}, .options = {}}), absl::OkStatus());
  EXPECT_THAT(Refusal(site, {.settings = {"slurm.qos=normal"}, .options = {"-q", "short"}}),
              HasSubstr("QoS short"));
}

// A partition's QoS goes first, unless the job's says otherwise, and the account's limits last.
TEST(SiteCheck, WhoseLimitsCount) {
  const std::string account = "me|alpha|acct|alpha||||04:00:00||||\n";
  Site site{.qos = Qos("normal", kMaxWall, "03:00:00") + Qos("part", kMaxWall, "02:00:00"),
            .users = account,
            .partition_qos = "part"};
  EXPECT_THAT(Refusal(site), HasSubstr("QoS part of partition main ends jobs after 2h"));
  site.qos = "normal|0|03:00:00||||||OverPartQOS|\n" + Qos("part", kMaxWall, "02:00:00");
  EXPECT_THAT(Refusal(site), HasSubstr("QoS normal ends jobs after 3h"));
  site.qos = Qos("normal", kMaxWall, "20:00:00");
  EXPECT_EQ(Check(site), absl::OkStatus()) << "and not the account's 4 h";
  site.qos = Qos("normal", 0, "");
  EXPECT_THAT(Refusal(site), HasSubstr("account alpha ends jobs after 4h"));
}

TEST(SiteCheck, WhichAccountItIs) {
  const Site site{.users =
                      "me|alpha|acct|alpha|||||||9|\n"
                      "me|alpha|acct|beta@h100||||01:00:00||||\n"
                      "me|alpha|acct|alpha|main|||02:00:00||||\n"
                      "me|alpha|elsewhere|alpha|main|||00:01:00||||\n"};
  EXPECT_THAT(Refusal(site), HasSubstr("account alpha ends jobs after 2h"))
      << "the one of the partition";
  EXPECT_EQ(Check(site, {.settings = {"slurm.partition=big"}, .options = {}}), absl::OkStatus());
  EXPECT_THAT(Refusal(site, {.settings = {"slurm.account=beta", "slurm.account_suffix=@h100"},
                             .options = {}}),
              HasSubstr("account beta@h100 ends jobs after 1h"));
  EXPECT_THAT(Refusal(site, {.settings = {}, .options = {"--account=beta@h100"}}),
              HasSubstr("account beta@h100"));
}

TEST(SiteCheck, WhatIsNotEnforcedOrNotToldDoesNotCount) {
  Site site{.qos = Qos("normal", kMaxWall, "00:01:00")};
  for (const char* enforced : {"none", "associations", "associations,qos"}) {
    site.enforced = enforced;
    EXPECT_EQ(Check(site), absl::OkStatus()) << enforced;
  }
  site.enforced = "associations,limits";
  EXPECT_EQ(Check(site), absl::OkStatus()) << "no QoS is asked for, and none is the default";
  EXPECT_THAT(Refusal(site, {.settings = {"slurm.qos=normal"}, .options = {}}),
              HasSubstr("QoS normal"));
  std::string said;
  for (const char* record : {"no-qos", "acct-away-qos"}) {
    site.no_accounting = ReadRecord(std::string("22.05/") + record).result;
    EXPECT_EQ(Check(site, {}, &said), absl::OkStatus()) << record;
  }
  EXPECT_THAT(said, IsEmpty());
  EXPECT_EQ(Check({.qos = "normal|0|a week||||||||\n"}, {}, &said), absl::OkStatus());
  EXPECT_THAT(said, HasSubstr("limits of QoS and account are not looked at"));
}

TEST(SiteCheck, Partitions) {
  const auto in = [](const char* partition) {
    return Asked{.settings = {"job.time_limit=21h"}, .options = {"-p", partition}};
  };
  EXPECT_THAT(Refusal({}, in("main")), HasSubstr("partition main ends jobs after 20h"));
  EXPECT_EQ(Check({}, in("big")), absl::OkStatus());
  EXPECT_EQ(Check({}, in("main,big")), absl::OkStatus()) << "one of them takes it";
  EXPECT_THAT(Refusal({}, in("gpu,big")),
              HasSubstr("\"gpu,big\": no such partition; there are main, big, closed"));
  EXPECT_THAT(Refusal({}, {.settings = {"job.nodes=5", "slurm.partition=big"}, .options = {}}),
              HasSubstr("phase pretrain needs 5 nodes (5 and 0 spares), but a job of partition big "
                        "gets 4 at most"));
}

// Words of Slurm's own table of reasons.
TEST(PendingReason, WhatNeverGoesAway) {
  for (const auto& [reason, advice] : std::vector<std::pair<const char*, const char*>>{
           {"PartitionTimeLimit", "job.time_limit"},
           {"PartitionNodeLimit", "job.nodes"},
           {"QOSMaxWallDurationPerJobLimit", "job.time_limit"},
           {"AssocMaxWallDurationPerJobLimit", "job.time_limit"},
           {"QOSMaxNodePerJobLimit", "job.nodes"},
           {"AssocMaxNodePerJobLimit", "job.nodes"},
           {"AssocMaxGRESPerJob", "job.nodes"},
           {"QOSMaxCpuMinutesPerJobLimit", "job.time_limit"},
           {"QOSMaxCpuPerNode", "slurm.options"},
           {"QOSMinNode", "more job.nodes"},
           {"QOSMinCpuNotSatisfied", "more job.nodes"},
           {"AssocGrpBillingMinutes", "hours are used up"},
           {"AssocGrpCPUMinutesLimit", "hours are used up"},
           {"QOSGrpGRESMinutes", "hours are used up"},
           {"AssocGrpWallLimit", "hours are used up"},
           {"InvalidAccount", "slurm.account"},
           {"AccountNotAllowed", "slurm.account"},
           {"InvalidQOS", "slurm.qos"},
           {"QOSNotAllowed", "slurm.qos"},
           {"BadConstraints", "slurm.constraint"},
           {"DependencyNeverSatisfied", "perdure submit"},
           {"ReservationDeleted", "slurm.reservation"},
           {"JobHeldUser", "perdure resume"},
           {"JobHeldAdmin", "ask your site"},
           {"JobHoldMaxRequeue", "scontrol release"},
           {"launch_failed_requeued_held", "scontrol release"}})
    EXPECT_THAT(AdviceFor(reason), HasSubstr(advice)) << reason;
}

TEST(PendingReason, WhatDoes) {
  for (const char* reason :
       {"", "None", "Priority", "Resources", "Dependency", "BeginTime", "ReqNodeNotAvail",
        "QOSGrpNodeLimit", "QOSMaxNodePerUserLimit", "QOSMaxJobsPerUserLimit",
        "AssocGrpCPURunMinutesLimit", "QOSGrpGRESRunMinutes", "AssocMaxJobsLimit", "PartitionDown",
        "Reservation", "NodeDown", "Licenses", "a reason of next year"})
    EXPECT_THAT(AdviceFor(reason), IsEmpty()) << reason;
}

TEST(PendingReason, WhatIsHeld) {
  for (const char* reason :
       {"JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "launch_failed_requeued_held"})
    EXPECT_TRUE(IsHeld(reason)) << reason;
  for (const char* reason : {"", "Dependency", "PartitionTimeLimit"})
    EXPECT_FALSE(IsHeld(reason)) << reason;
}

}  // namespace
}  // namespace perdure
