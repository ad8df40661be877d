// Nodes with networks of their own, whose cables are pulled: each goes on reading and writing the
// run's directory, nobody can ask it anything. The job ends in the bits of the undisturbed run.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <thread>

#include "monitoring/loss_csv.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/chaos/chaos_job.h"
#include "tests/chaos/network.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

constexpr int kNodes = 4;
constexpr int64_t kStrike = 8;
// Until a node that is back has been there for long enough to be taken in.
constexpr int64_t kSteps = 110;
constexpr uint64_t kJob = 77;

// Agents that a batch script would have started, one in each network.
class Agents {
 public:
  Agents(const std::string& folder, const Network& network, const std::vector<std::string>& more)
      : run_(folder + "/run") {
    std::vector<std::string> first = SmallModel(run_, folder, 1);
    first.insert(first.end(), {"--nodes", "4", "--ranks-per-node", "2"});
    first.insert(first.end(), more.begin(), more.end());
    EXPECT_EQ(Perdure(first).exit_code, 75);
    for (int node = 0; node < kNodes; ++node) {
      errors_.push_back(folder + "/errors." + std::to_string(node));
      const std::vector<std::string> words = {"agent",
                                              run_,
                                              "--node",
                                              std::to_string(node),
                                              "--nodes",
                                              std::to_string(kNodes),
                                              "--job",
                                              std::to_string(kJob),
                                              "--ranks-per-node",
                                              "2",
                                              "--interface",
                                              network.Address(node),
                                              "--data-dir",
                                              folder,
                                              "--until-step",
                                              std::to_string(kSteps),
                                              "--quiet"};
      pids_.push_back(network.On(node, [&] { return StartPerdure(words, errors_.back()); }));
    }
  }
  ~Agents() {
    for (const int pid : pids_)
      if (pid != 0) {
        ::kill(pid, SIGKILL);
        (void)WaitFor(pid);
      }
  }

  const std::string& run() const { return run_; }
  bool AwaitStep(int64_t step) const {
    return Await([&] {
      const auto row = LastLossRow(run_ + "/metrics/loss.csv");
      return row.ok() && row->has_value() && (*row)->step >= step;
    });
  }
  // Generations of this job whose ranks had their state.
  size_t Loaded() const { return JournalEvents(run_, "loaded").size() - 1; }
  bool AwaitLoaded(size_t count) const {
    return Await([&] { return Loaded() >= count; });
  }
  int64_t Coordinator() const { return StatusOf(run_).value("coordinator", int64_t{-1}); }
  // LEAD records of this job.
  int64_t Leads() const {
    const RunLog log = *RunLog::Open(run_);
    return std::count_if(log.records().begin(), log.records().end(), [](const Record& record) {
      return record.type == RecordType::kLead && record.author.at.job == JobStart(kJob, 0);
    });
  }
  // All end, with one code.
  int Wait() {
    std::optional<int> code;
    for (int& pid : pids_) {
      const int exit_code = WaitFor(std::exchange(pid, 0));
      EXPECT_EQ(code.value_or(exit_code), exit_code) << Errors();
      code = exit_code;
    }
    return *code;
  }
  std::string Errors() const {
    std::string all;
    for (const std::string& path : errors_) all += path + ":\n" + ReadFile(path).value_or("");
    return all;
  }

 private:
  template <typename Done>
  static bool Await(Done done) {
    const absl::Time deadline = absl::Now() + absl::Minutes(2);
    while (absl::Now() < deadline) {
      if (done()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

  const std::string run_;
  std::vector<std::string> errors_;
  std::vector<int> pids_;
};

struct Case {
  const char* name;
  int place;  // Behind the coordinator's node.
  bool mended;
};

void PrintTo(const Case& tested, std::ostream* out) { *out << tested.name; }

class LongPartition : public testing::TestWithParam<Case> {};

TEST_P(LongPartition, EndsInTheSameBits) {
  const absl::StatusOr<Network> network = Network::Create(kNodes);
  if (!network.ok()) GTEST_SKIP() << Message(network.status());
  const std::string folder = FreshFolder("partition");
  WriteNanoData(folder);
  const ChaosEnd undisturbed = Undisturbed(folder, {}, kSteps);
  {
    Agents agents(folder, *network, {});
    ASSERT_TRUE(agents.AwaitStep(kStrike)) << agents.Errors();
    const int64_t coordinator = agents.Coordinator();
    ASSERT_GE(coordinator, 0);
    const int node = static_cast<int>((coordinator + GetParam().place) % kNodes);
    const size_t before = agents.Loaded();
    ASSERT_EQ(network->Cut(node), absl::OkStatus());
    ASSERT_TRUE(agents.AwaitLoaded(before + 1)) << agents.Errors();
    if (GetParam().mended) {
      ASSERT_EQ(network->Mend(node), absl::OkStatus());
      EXPECT_TRUE(agents.AwaitLoaded(before + 2)) << agents.Errors();
    }
    const ChaosEnd end = ChaosEndOf(agents.run(), agents.Wait());
    EXPECT_EQ(end.exit_code, 75) << agents.Errors();
    // Whoever is cut off leaves the lead to those who go on.
    // (An agent that gets no processor for a second loses it, too.)
    EXPECT_LE(agents.Leads(), (GetParam().place == 0 ? 2 : 1) + 2) << agents.Errors();
    EXPECT_EQ(end.certificate, undisturbed.certificate) << agents.Errors();
    EXPECT_EQ(end.loss_bits, undisturbed.loss_bits) << agents.Errors();
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Cut, LongPartition,
                         testing::Values(Case{"ANode", 1, false},
                                         Case{"ANodeThatComesBack", 2, true},
                                         Case{"TheCoordinator", 0, false},
                                         Case{"TheCoordinatorThatComesBack", 0, true}),
                         [](const auto& of) { return std::string(of.param.name); });

}  // namespace
}  // namespace perdure
