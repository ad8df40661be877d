#include "tests/cluster/scheduler_facts.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {

std::unique_ptr<SlurmCluster> SchedulerFacts::cluster_;

void SchedulerFacts::SetUpTestSuite() {
  if (!SlurmCluster::WhyNot().empty()) return;
  SlurmClusterOptions options;
  options.cpus_per_node = 2;
  options.kill_wait = absl::Seconds(2);
  options.partitions = {{.name = "main",
                         .max_time = "20:00:00",
                         .default_time = "10",
                         .preempt_mode = "REQUEUE",
                         .grace_time = absl::Seconds(2)},
                        {.name = "urgent", .priority_tier = 10},
                        {.name = "small", .max_time = "5", .max_nodes = 2}};
  auto cluster = SlurmCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  cluster_ = *std::move(cluster);
}

void SchedulerFacts::TearDownTestSuite() { cluster_.reset(); }

void SchedulerFacts::SetUp() {
  if (const std::string why = SlurmCluster::WhyNot(); !why.empty()) GTEST_SKIP() << why;
  ASSERT_NE(cluster_, nullptr);
  const auto* const info = testing::UnitTest::GetInstance()->current_test_info();
  folder_ = cluster_->work() + "/" + info->name();
  std::filesystem::create_directories(folder_);
  ASSERT_EQ(::chmod(folder_.c_str(), 01777), 0);
}

void SchedulerFacts::TearDown() {
  if (cluster_ == nullptr) return;
  EXPECT_EQ(cluster_->CancelAll(), absl::OkStatus());
  for (const std::string& node : cluster_->nodes()) {
    if (cluster_->ProcessesOf(node).empty()) EXPECT_EQ(cluster_->StartNode(node), absl::OkStatus());
    const std::string state = cluster_->NodeState(node);
    if (state.starts_with("down") || state.starts_with("drain"))
      EXPECT_EQ(cluster_->ResumeNode(node), absl::OkStatus());
  }
  for (const std::string& node : cluster_->nodes())
    EXPECT_EQ(cluster_->AwaitNodeState(node, {"idle"}), absl::OkStatus());
}

std::string SchedulerFacts::File(const std::string& name) const {
  return ReadFile(folder_ + "/" + name).value_or("");
}

void SchedulerFacts::Write(const std::string& name, const std::string& text) const {
  std::ofstream(folder_ + "/" + name) << text;
}

SchedulerFacts::JobId SchedulerFacts::SubmitAs(std::optional<uid_t> user,
                                               const std::vector<std::string>& options,
                                               const std::string& script) {
  const auto job = cluster_->Submit(options, script, {.directory = folder_, .user = user});
  EXPECT_TRUE(job.ok()) << job.status();
  return job.value_or(0);
}

SchedulerFacts::JobId SchedulerFacts::Submit(const std::vector<std::string>& options,
                                             const std::string& script) {
  return SubmitAs(std::nullopt, options, script);
}

CommandResult SchedulerFacts::RunAs(std::optional<uid_t> user,
                                    const std::vector<std::string>& argv) {
  return cluster_->Run(argv, {.directory = folder_, .user = user});
}

CommandResult SchedulerFacts::Run(const std::vector<std::string>& argv) {
  return RunAs(std::nullopt, argv);
}

std::string SchedulerFacts::Queue(JobId job, const std::string& format) {
  std::string text =
      Run({"squeue", "-h", "-t", "all", "-j", std::to_string(job), "-o", format}).output;
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

testing::AssertionResult SchedulerFacts::Reaches(JobId job, const std::vector<std::string>& states,
                                                 absl::Duration timeout) {
  const absl::Status status = cluster_->AwaitJobState(job, states, timeout);
  if (status.ok()) return testing::AssertionSuccess();
  return testing::AssertionFailure() << Message(status);
}

testing::AssertionResult SchedulerFacts::Prints(JobId job, const std::string& part) {
  const auto there = [&] { return cluster_->Output(job).find(part) != std::string::npos; };
  if (SlurmCluster::Await(there)) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "job " << job << " (" << cluster_->JobState(job) << ") has not printed '" << part
         << "' but '" << cluster_->Output(job) << "'\n"
         << cluster_->Logs();
}

testing::AssertionResult SchedulerFacts::Appears(const std::string& file, const std::string& part) {
  if (SlurmCluster::Await([&] { return File(file).find(part) != std::string::npos; }))
    return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << file << " has no '" << part << "' but '" << File(file) << "'\n"
         << Run({"squeue"}).output;
}

std::optional<uid_t> SchedulerFacts::Somebody() {
  if (::geteuid() != 0) return std::nullopt;
  return 65534;  // nobody
}

}  // namespace perdure
