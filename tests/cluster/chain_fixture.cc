#include "tests/cluster/chain_fixture.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

}  // namespace

void ChainTest::SetUp() {
  if (const std::string why = SlurmCluster::WhyNot(); !why.empty()) GTEST_SKIP() << why;
  folder_ = FreshFolder("chain");
  WriteNanoData(folder_);
  base_ = {"layout.tensor=1",
           "layout.pipeline=1",
           "layout.transport=" + BuiltTransport(),
           "job.ranks_per_node=1",
           "job.interface=lo",
           "checkpoint.every=20s",
           "checkpoint.keep_every_steps=1000"};
}

ChainTest::~ChainTest() {
  cluster_.reset();
  if (!folder_.empty()) fs::remove_all(folder_);
}

void ChainTest::Begin(SlurmClusterOptions options) {
  options.cpus_per_node = ranks_per_node_;
  auto started = SlurmCluster::Start(std::move(options));
  ASSERT_TRUE(started.ok()) << started.status();
  cluster_ = *std::move(started);
}

void ChainTest::Become(uid_t user) {
  user_ = user;
  ASSERT_EQ(::chown(folder_.c_str(), user, user), 0) << folder_;
}

// ---- Commands, on the run

std::vector<std::string> ChainTest::Settings(const std::vector<std::string>& more) const {
  std::vector<std::string> arguments = {NanoToml(), "--data-dir", folder_};
  for (const std::vector<std::string>& settings : {base_, more})
    for (const std::string& setting : settings)
      arguments.insert(arguments.end(), {"--set", setting});
  return arguments;
}

CommandResult ChainTest::Run(const std::vector<std::string>& argv) const {
  return cluster_->Run(argv, {.input = "", .environment = {}, .directory = "", .user = user_});
}

CommandResult ChainTest::Submit(const std::vector<std::string>& settings,
                                const std::vector<std::string>& options) const {
  std::vector<std::string> argv = {PerdurePath(), "submit", "--run-dir", run()};
  const std::vector<std::string> arguments = Settings(settings);
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  argv.insert(argv.end(), options.begin(), options.end());
  return Run(argv);
}

CommandResult ChainTest::PerdureOf(const std::string& command,
                                   const std::vector<std::string>& more) const {
  std::vector<std::string> argv = {PerdurePath(), command, run()};
  argv.insert(argv.end(), more.begin(), more.end());
  return Run(argv);
}

CommandResult ChainTest::Nodes(const std::vector<std::string>& words) const {
  std::vector<std::string> argv = {PerdurePath(), "nodes"};
  argv.insert(argv.end(), words.begin(), words.end());
  return Run(argv);
}

std::string ChainTest::VerdictOn(const std::string& node) const {
  const json listed = json::parse(Nodes({run(), "--json"}).output, nullptr, false);
  for (const json& each : listed.is_object() ? listed["nodes"] : json::array())
    if (each["node"] == node) return each["verdict"];
  return "";
}

bool ChainTest::Leave() const {
  const std::vector<json> jobs = Jobs();
  const std::string job = std::to_string(jobs.back()["job"].get<int64_t>());
  return Run({"scancel", "--signal=TERM", job}).exit_code == 0 && AwaitJobs(jobs.size() + 1);
}

// ---- What is to be seen

json ChainTest::Status() const {
  return json::parse(PerdureOf("status", {"--json"}).output, nullptr, false);
}

std::vector<json> ChainTest::Jobs() const {
  std::vector<json> jobs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run() + "/chain/jobs", error)) {
    if (entry.path().extension() != ".json") continue;  // One that is being replaced.
    if (json job = json::parse(ReadFile(entry.path()).value_or(""), nullptr, false);
        job.is_object())
      jobs.push_back(std::move(job));
  }
  std::sort(jobs.begin(), jobs.end(),
            [](const json& a, const json& b) { return a["began"] < b["began"]; });
  return jobs;
}

std::string ChainTest::Story() const {
  std::string story;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run() + "/jobs", error))
    if (entry.is_regular_file())
      story += "== " + entry.path().filename().string() + "\n" +
               ReadFile(entry.path()).value_or("") + "\n";
  return story;
}

bool ChainTest::AwaitComplete(absl::Duration timeout) const {
  return SlurmCluster::Await(
      [&] {
        const std::vector<json> jobs = Jobs();
        return std::any_of(jobs.begin(), jobs.end(), [](const json& job) {
          return job.contains("left") && job["exit_code"] == 0;
        });
      },
      timeout);
}

bool ChainTest::AwaitJobs(size_t count) const {
  return SlurmCluster::Await([&] { return Jobs().size() == count; }, absl::Minutes(3));
}

int64_t ChainTest::Step() const {
  const std::vector<std::string> steps = LossColumn(run(), "step");
  return steps.empty() ? -1 : std::stoll(steps.back());
}

bool ChainTest::AwaitStep(int64_t step) const {
  return SlurmCluster::Await([&] { return Step() >= step; }, absl::Minutes(3));
}

bool ChainTest::AwaitTrainingOn(int64_t nodes) {
  return SlurmCluster::Await(
      [&] {
        const std::vector<json> generations = JournalEvents(run(), "generation");
        const json status = Status();
        if (generations.size() <= generations_ || generations.back()["nodes"] != nodes ||
            status.value("state", "") != "running" ||
            status["generation"] != generations.back()["generation"])
          return false;
        generations_ = generations.size();
        return true;
      },
      absl::Minutes(3));
}

// ---- Whole tests

void ChainTest::RunThrough(const std::vector<std::string>& settings, int64_t step,
                           const std::function<absl::Status()>& hurt) {
  const CommandResult submitted = Submit(settings);
  ASSERT_EQ(submitted.exit_code, 0) << submitted.errors;
  ASSERT_TRUE(AwaitStep(step)) << Story();
  ASSERT_EQ(hurt(), absl::OkStatus()) << Story();
  ASSERT_TRUE(AwaitComplete(absl::Minutes(10))) << Story();
  ExpectSameAsUndisturbed(settings);
}

void ChainTest::ExpectEndedWithoutBatchHost() const {
  const std::vector<json> jobs = Jobs();
  ASSERT_EQ(jobs.size(), 1U) << Story();
  EXPECT_EQ(jobs[0]["exit_code"], 0) << jobs[0];
  EXPECT_EQ(cluster_->AwaitJobState(1, {"CANCELLED"}), absl::OkStatus());
  EXPECT_EQ(cluster_->JobState(2), "CANCELLED") << "nothing is left to do";
  EXPECT_EQ(Status()["state"], "complete");
}

void ChainTest::ExpectSameAsUndisturbed(const std::vector<std::string>& settings) const {
  const std::string whole = folder_ + "/whole";
  std::vector<std::string> arguments = {"run", "--run-dir",        whole, "--nodes",
                                        "1",   "--ranks-per-node", "2",   "--quiet"};
  const std::vector<std::string> rest = Settings(settings);
  arguments.insert(arguments.end(), rest.begin(), rest.end());
  const CommandResult undisturbed = Perdure(arguments);
  ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.errors;
  EXPECT_EQ(LossColumn(run(), "loss_bits"), LossColumn(whole, "loss_bits"));
  // Whose it is may look.
  const json listed =
      json::parse(Run({PerdurePath(), "ckpt", "list", run(), "--json"}).output, nullptr, false);
  ASSERT_TRUE(listed.is_array() && !listed.empty()) << listed;
  EXPECT_EQ(listed.back()["certificate"], ListedCheckpoints(whole).back()["certificate"]);
}

}  // namespace perdure
