#include "launch/slurm/allocation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Variables = std::map<std::string, std::string, std::less<>>;

// What Slurm 22.05 gives to the second task of a step of two nodes, in an array's job.
Variables Task() {
  return {{"SLURMD_NODENAME", "n2"},
          {"SLURM_ARRAY_JOB_ID", "19"},
          {"SLURM_ARRAY_TASK_COUNT", "1"},
          {"SLURM_ARRAY_TASK_ID", "3"},
          {"SLURM_CLUSTER_NAME", "t"},
          {"SLURM_CPUS_ON_NODE", "4"},
          {"SLURM_GTIDS", "1"},
          {"SLURM_JOBID", "20"},
          {"SLURM_JOB_CPUS_PER_NODE", "4(x2)"},
          {"SLURM_JOB_ID", "20"},
          {"SLURM_JOB_NAME", "env"},
          {"SLURM_JOB_NODELIST", "n[1-2]"},
          {"SLURM_JOB_NUM_NODES", "2"},
          {"SLURM_JOB_PARTITION", "main"},
          {"SLURM_LOCALID", "0"},
          {"SLURM_NODEID", "1"},
          {"SLURM_PROCID", "1"},
          {"SLURM_STEP_ID", "0"},
          {"SLURM_SUBMIT_DIR", "/tmp"}};
}

absl::StatusOr<std::optional<Allocation>> Read(const Variables& variables) {
  return ReadAllocation([&](std::string_view name) -> std::optional<std::string> {
    const auto at = variables.find(name);
    if (at == variables.end()) return std::nullopt;
    return at->second;
  });
}

Allocation Good(const Variables& variables) {
  const auto allocation = Read(variables);
  EXPECT_TRUE(allocation.ok()) << allocation.status();
  EXPECT_TRUE(allocation.ok() && allocation->has_value());
  return allocation.ok() ? allocation->value_or(Allocation()) : Allocation();
}

TEST(Allocation, OutsideOfSlurmThereIsNone) {
  const auto none = Read({{"HOME", "/root"}, {"SLURM_CONF", "/etc/slurm.conf"}});
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
}

TEST(Allocation, OfATask) {
  const Allocation it = Good(Task());
  EXPECT_EQ(it.job_id, 20);
  EXPECT_EQ(it.restarts, 0);
  EXPECT_EQ(it.array_job_id, 19);
  EXPECT_EQ(it.array_task_id, 3);
  EXPECT_EQ(it.job_name, "env");
  EXPECT_EQ(it.partition, "main");
  EXPECT_EQ(it.account, "");
  EXPECT_EQ(it.qos, "");
  EXPECT_EQ(it.cluster, "t");
  EXPECT_THAT(it.nodes, ElementsAre("n1", "n2"));
  EXPECT_EQ(it.node_name, "n2");
  EXPECT_EQ(it.step_id, 0);
  EXPECT_EQ(it.node_index, 1);
  EXPECT_EQ(it.task_index, 1);
  EXPECT_EQ(it.local_task_index, 0);
  EXPECT_EQ(it.cpus_on_node, 4);
  EXPECT_EQ(it.submit_directory, "/tmp");
  EXPECT_EQ(it.start, std::nullopt);
  EXPECT_EQ(it.end, std::nullopt);
}

TEST(Allocation, OfABatchScript) {
  Variables batch = Task();
  for (const char* name : {"SLURM_STEP_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"})
    batch.erase(name);
  batch["SLURM_NODEID"] = batch["SLURM_PROCID"] = "0";
  batch["SLURM_RESTART_COUNT"] = "2";
  batch["SLURM_JOB_ACCOUNT"] = "abc@h100";
  batch["SLURM_JOB_QOS"] = "qos_gpu_h100-t3";
  // From 23.02 on.
  batch["SLURM_JOB_START_TIME"] = "1795880655";
  batch["SLURM_JOB_END_TIME"] = "1795882455";
  const Allocation it = Good(batch);
  EXPECT_EQ(it.step_id, std::nullopt);
  EXPECT_EQ(it.array_job_id, std::nullopt);
  EXPECT_EQ(it.restarts, 2);
  EXPECT_EQ(it.account, "abc@h100");
  EXPECT_EQ(it.qos, "qos_gpu_h100-t3");
  EXPECT_EQ(it.start, absl::FromUnixSeconds(1795880655));
  EXPECT_EQ(it.end, absl::FromUnixSeconds(1795882455));
}

TEST(Allocation, OfAStepFromOutsideOfTheJob) {
  // srun --jobid=20 --overlap in a login shell.
  Variables attached = Task();
  attached.erase("SLURM_JOB_NUM_NODES");
  EXPECT_THAT(Good(attached).nodes, ElementsAre("n1", "n2"));
}

TEST(Allocation, OfAShellInAnAllocation) {
  // salloc: no node, no task.
  const Allocation it =
      Good({{"SLURM_JOB_ID", "3"}, {"SLURM_JOB_NODELIST", "n[1-2]"}, {"SLURM_JOB_NUM_NODES", "2"}});
  EXPECT_EQ(it.nodes.size(), 2U);
  EXPECT_EQ(it.node_name, std::nullopt);
  EXPECT_EQ(it.node_index, std::nullopt);
  EXPECT_EQ(it.task_index, std::nullopt);
  EXPECT_EQ(it.cpus_on_node, std::nullopt);
}

TEST(Allocation, SaysWhichVariableIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {"SLURM_JOB_ID", ""},           {"SLURM_JOB_ID", "0"},
      {"SLURM_JOB_ID", "12a"},        {"SLURM_JOB_ID", " 12"},
      {"SLURM_RESTART_COUNT", "-1"},  {"SLURM_RESTART_COUNT", "99999999999"},
      {"SLURM_ARRAY_TASK_ID", "x"},   {"SLURM_STEP_ID", "batch"},
      {"SLURM_NODEID", "-2"},         {"SLURM_PROCID", "1,2"},
      {"SLURM_LOCALID", ""},          {"SLURM_CPUS_ON_NODE", "0"},
      {"SLURM_JOB_NODELIST", "n[1-"}, {"SLURM_JOB_NODELIST", "n[1-3]"},
      {"SLURM_JOB_NUM_NODES", "0"},   {"SLURM_JOB_NUM_NODES", "two"},
      {"SLURMD_NODENAME", "n 1"},     {"SLURM_JOB_END_TIME", "soon"},
  };
  for (const auto& [name, value] : wrong) {
    Variables variables = Task();
    variables[name] = value;
    const absl::Status status = Read(variables).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name << "=" << value;
    EXPECT_THAT(Message(status), HasSubstr(name)) << value;
    EXPECT_THAT(Message(status), HasSubstr(value)) << name;
  }
}

TEST(Allocation, SaysWhichVariableIsMissing) {
  for (const char* name : {"SLURM_JOB_NODELIST", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"}) {
    Variables variables = Task();
    variables.erase(name);
    const absl::Status status = Read(variables).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(Message(status), HasSubstr(std::string(name) + " is not")) << name;
  }
}

TEST(Allocation, NodesOfLaterReleases) {
  Variables variables = Task();
  variables["SLURM_JOB_NODELIST"] = "n[1-2]-int";
  EXPECT_THAT(Good(variables).nodes, ElementsAre("n1-int", "n2-int"));
}

TEST(Allocation, OfThisProcess) {
  const EnvironmentLookup lookup = ProcessEnvironment();
  EXPECT_TRUE(lookup("PATH").has_value());
  EXPECT_FALSE(lookup("PERDURE_NO_SUCH_VARIABLE").has_value());
}

}  // namespace
}  // namespace perdure
