// Whatever is done to a job's processes, it ends by itself in the bits of the undisturbed run: the
// same loss at every step, the same certificate.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <functional>
#include <random>

#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

struct Fault {
  std::string name;
  std::function<void(ChaosJob&)> strike;
  bool breaks_a_node = true;  // Or no more than a process of it.
};

// What is there for those that break.
struct Provision {
  std::string name;
  std::vector<std::string> arguments;
};

const Provision kSpare{"ASpareStepsIn",
                       {"--nodes", "5", "--set", "job.spares=1", "--no-agent-restart"}};
const Provision kShrink{"TheOthersGoOn", {"--nodes", "4", "--no-agent-restart"}};
const Provision kReturn{"ItComesBack", {"--nodes", "4"}};

// When it strikes.
struct Moment {
  std::string name;
  std::vector<std::string> arguments;  // Of the undisturbed run, too.
  std::function<bool(ChaosJob&)> await;
};

constexpr int64_t kStrike = 6, kPhaseEnd = 20;

const Moment kAtAStep{"", {}, [](ChaosJob& job) { return job.AwaitStep(kStrike); }};
const Moment kInACheckpoint{
    "InACheckpoint", {"--set", "checkpoint.every_steps=1"}, [](ChaosJob& job) {
      return job.AwaitStep(kStrike) && job.AwaitOpenCheckpoint();
    }};
const Moment kAtAPhaseEnd{"AtAPhaseEnd",
                          {"--set", "phase.pretrain.batch=16", "--set", "phase.pretrain.rate=1e-3",
                           "--set", fmt::format("phase.pretrain.samples={}", 16 * kPhaseEnd),
                           // Not through at the last step.
                           "--set", "phase.extension.samples=480"},
                          [](ChaosJob& job) { return job.AwaitStep(kPhaseEnd); }};

Fault KillRank(int64_t node, size_t rank) {
  return {"KilledRank",
          [=](ChaosJob& job) {
            const std::vector<int> pids = job.Ranks(node);
            ASSERT_GT(pids.size(), rank);
            ::kill(pids[rank], SIGKILL);
          },
          false};
}

// Of the node `places` behind the coordinator's.
Fault KillAgent(const std::string& name, int64_t places) {
  return {name, [=](ChaosJob& job) { job.SignalAgent(job.Behind(places), SIGKILL); }};
}

Fault KillNode() {
  return {"KilledNode", [](ChaosJob& job) { job.SignalNode(job.Behind(1), SIGKILL); }};
}

// Of both replicas.
Fault KillTwoNodes() {
  return {"TwoKilledNodes", [](ChaosJob& job) {
            job.SignalNode(1, SIGKILL);
            job.SignalNode(2, SIGKILL);
          }};
}

// While the others recover from another one's death.
Fault KillInRecovery() {
  return {"KilledInRecovery", [](ChaosJob& job) {
            const int victim = job.Agent(3);
            ASSERT_GT(victim, 1);
            const std::vector<int> ranks = job.Ranks(1);
            ASSERT_FALSE(ranks.empty());
            ::kill(ranks[0], SIGKILL);
            ASSERT_TRUE(job.AwaitEvent("remark", "generation 2:", absl::Seconds(20)));
            ::kill(victim, SIGKILL);
          }};
}

Fault StopRank() {
  return {"StoppedRank",
          [](ChaosJob& job) {
            const std::vector<int> pids = job.Ranks(2);
            ASSERT_FALSE(pids.empty());
            ::kill(pids[0], SIGSTOP);
          },
          false};
}

Fault StopNode() {
  return {"StoppedNode", [](ChaosJob& job) { job.SignalNode(job.Behind(2), SIGSTOP); }};
}

Fault StopAgent(const std::string& name, int64_t places) {
  return {name, [=](ChaosJob& job) { job.SignalAgent(job.Behind(places), SIGSTOP); }};
}

struct Case {
  Fault fault;
  Provision provision;
  Moment moment = kAtAStep;
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.fault.name << tested.moment.name << tested.provision.name;
}

class Chaos : public testing::TestWithParam<Case> {
 protected:
  Chaos() : folder_(FreshFolder("chaos")) { WriteNanoData(folder_); }
  ~Chaos() override { std::filesystem::remove_all(folder_); }
  const std::string folder_;
};

void ExpectTheSame(const ChaosJob& job, const ChaosEnd& end, const ChaosEnd& undisturbed) {
  EXPECT_EQ(end.exit_code, 75) << job.Errors();
  EXPECT_EQ(end.certificate, undisturbed.certificate) << job.Errors();
  EXPECT_EQ(end.loss_bits, undisturbed.loss_bits) << job.Errors();
}

TEST_P(Chaos, EndsInTheSameBits) {
  const Moment& moment = GetParam().moment;
  const ChaosEnd undisturbed = Undisturbed(folder_, moment.arguments);
  ASSERT_EQ(undisturbed.exit_code, 75);
  ASSERT_EQ(undisturbed.loss_bits.size(), static_cast<size_t>(kChaosSteps));
  std::vector<std::string> arguments = GetParam().provision.arguments;
  arguments.insert(arguments.end(), moment.arguments.begin(), moment.arguments.end());
  ChaosJob job(folder_, arguments);
  ASSERT_TRUE(moment.await(job)) << job.Errors();
  GetParam().fault.strike(job);
  const ChaosEnd end = job.Wait();
  ExpectTheSame(job, end, undisturbed);
  // It did strike.
  EXPECT_TRUE(JournalEvents(job.run(), "loaded").size() > 1 ||
              !JournalEvents(job.run(), "generation_taken_over").empty())
      << job.Errors();
}

std::string NameOf(const testing::TestParamInfo<Case>& info) {
  return testing::PrintToString(info.param);
}

std::vector<Case> Each(const std::vector<Fault>& faults, const Moment& moment = kAtAStep) {
  std::vector<Case> cases;
  for (const Fault& fault : faults)
    for (const Provision& provision : {kSpare, kShrink, kReturn}) {
      // A dead process of a living node is replaced there, whatever there is besides.
      if (!fault.breaks_a_node && provision.name != kReturn.name) continue;
      cases.push_back({fault, provision, moment});
    }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Short, Chaos,
                         testing::Values(Case{KillRank(1, 1), kReturn}, Case{KillNode(), kSpare},
                                         Case{KillNode(), kShrink},
                                         Case{KillAgent("KilledCoordinator", 0), kReturn}),
                         NameOf);

INSTANTIATE_TEST_SUITE_P(Long, Chaos,
                         testing::ValuesIn(Each({KillAgent("KilledAgent", 1), KillNode(),
                                                 KillAgent("KilledCoordinator", 0), KillTwoNodes(),
                                                 KillInRecovery(), StopRank(), StopNode(),
                                                 StopAgent("StoppedAgent", 1),
                                                 StopAgent("StoppedCoordinator", 0)})),
                         NameOf);

const std::vector<Fault> kSudden{KillRank(1, 0), KillNode(), KillAgent("KilledAgent", 2),
                                 KillAgent("KilledCoordinator", 0)};
INSTANTIATE_TEST_SUITE_P(LongSave, Chaos, testing::ValuesIn(Each(kSudden, kInACheckpoint)), NameOf);
INSTANTIATE_TEST_SUITE_P(LongPhase, Chaos, testing::ValuesIn(Each(kSudden, kAtAPhaseEnd)), NameOf);

// Faults of all kinds, one after the other, until the run is done.
class RandomChaos : public testing::TestWithParam<int> {};

TEST_P(RandomChaos, EndsInTheSameBits) {
  const std::string folder = FreshFolder("random_chaos");
  WriteNanoData(folder);
  const ChaosEnd undisturbed = Undisturbed(folder);
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  {
    std::vector<std::string> arguments = {"--nodes", std::to_string(4 + below(2)), "--set",
                                          fmt::format("layout.zero={}", below(4))};
    if (GetParam() % 4 == 3)
      arguments.insert(arguments.end(), {"--set", "layout.transport=" + OtherTransport()});
    if (GetParam() % 2 == 1)
      arguments.insert(arguments.end(), {"--set", "checkpoint.every_steps=2"});
    ChaosJob job(folder, arguments);
    for (int64_t step = 3 + below(5); job.AwaitStep(step); step = job.Step() + 2 + below(8)) {
      if (step >= kChaosSteps - 1) break;
      const int64_t node = below(4);
      switch (below(5)) {
        case 0:
        case 1: {
          const std::vector<int> pids = job.Ranks(node);
          if (!pids.empty())
            ::kill(pids[static_cast<size_t>(below(static_cast<int64_t>(pids.size())))], SIGKILL);
          break;
        }
        case 2:
          if (const int agent = job.Agent(node); agent != 0) ::kill(agent, SIGKILL);
          break;
        case 3:
          if (job.Agent(node) != 0) job.SignalNode(node, SIGKILL);
          break;
        default:
          if (const int agent = job.Agent(job.Coordinator()); agent != 0) ::kill(agent, SIGKILL);
      }
    }
    const ChaosEnd end = job.Wait();
    ExpectTheSame(job, end, undisturbed);
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Short, RandomChaos, testing::Range(0, 3));
INSTANTIATE_TEST_SUITE_P(Long, RandomChaos, testing::Range(3, 40));

}  // namespace
}  // namespace perdure
