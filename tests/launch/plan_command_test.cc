#include "launch/plan_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "tests/launch/command_in_process.h"

namespace perdure {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// There is no Slurm on this machine.
absl::StatusOr<InvocationResult> NoSlurm(const Invocation& command) {
  return NotFound("there is no program '{}' in PATH", command.argv[0]);
}

// `perdure plan ARGUMENTS...` in this process.
CommandOutput Plan(std::vector<std::string> arguments, const CommandRunner& runner = NoSlurm) {
  arguments.insert(arguments.begin(), "plan");
  return RunInProcess(
      [&](CLI::App& app, int* exit_code) { AddPlanCommand(app, exit_code, runner); },
      std::move(arguments));
}

std::string Recipe(const std::string& name) {
  return std::string(PERDURE_SOURCE_DIR) + "/launch/recipes/" + name + ".toml";
}

json PlanJson(std::vector<std::string> arguments) {
  arguments.push_back("--json");
  const CommandOutput result = Plan(std::move(arguments));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

TEST(PlanCommand, LucieIsTheModelCard) {
  const json plan = PlanJson({Recipe("lucie/run"), "--memory-per-rank", "80GiB"});
  EXPECT_EQ(plan["name"], "lucie-7b");
  EXPECT_EQ(plan["parameters"], 6'706'958'336);
  EXPECT_EQ(plan["steps"], 756'291);
  EXPECT_EQ(plan["samples"], 762'144'064 + 2 * 156'160);
  EXPECT_EQ(plan["tokens"], 3'131'736'326'144);
  ASSERT_EQ(plan["phases"].size(), 3);
  const json& first = plan["phases"][0];
  EXPECT_EQ(first["name"], "pretrain");
  EXPECT_EQ(first["steps"], 753'851);
  EXPECT_EQ(first["samples"], 762'144'064);
  EXPECT_EQ(first["tokens"], int64_t{762'144'064} * 4096);
  EXPECT_EQ(first["context"], 4096);
  EXPECT_EQ(first["batch_initial"], 256);
  EXPECT_EQ(first["batch_final"], 1024);
  const auto layout = [](int64_t data) {
    return json(
        {{"tensor", 4}, {"pipeline", 4}, {"data", data}, {"zero", 1}, {"ranks", 16 * data}});
  };
  EXPECT_EQ(first["nodes"], 128);
  EXPECT_EQ(first["layout"], layout(32));
  EXPECT_EQ(plan["layout"], layout(32));
  for (const int phase : {1, 2}) {
    const json& later = plan["phases"][phase];
    EXPECT_EQ(later["name"], phase == 1 ? "extension" : "annealing");
    EXPECT_EQ(later["first_step"], 753'851 + (phase - 1) * 1'220);
    EXPECT_EQ(later["steps"], 1'220);
    EXPECT_EQ(later["samples"], 156'160);
    EXPECT_EQ(later["context"], 32'000);
    EXPECT_EQ(later["batch_final"], 128);
    EXPECT_EQ(later["nodes"], 32);
    EXPECT_EQ(later["ranks"], 128);
    EXPECT_EQ(later["layout"], layout(8));
  }
  EXPECT_EQ(plan["fits"], true);
  EXPECT_EQ(plan["backend"], "cuda");
  EXPECT_EQ(plan["warnings"], json::array());
  EXPECT_NEAR(first["bubble_fraction"].get<double>(), 3.0 / 19, 1e-12);
}

TEST(PlanCommand, AiSwedenIsTheModelCard) {
  const json plan = PlanJson({Recipe("ai-sweden-8b")});
  EXPECT_EQ(plan["parameters"], 8'030'261'248);
  EXPECT_EQ(plan["steps"], 18'833);
  EXPECT_EQ(plan["layout"]["data"], 92);
  EXPECT_EQ(plan["layout"]["ranks"], 92);
  EXPECT_EQ(plan["layout"]["zero"], 2);
  EXPECT_EQ(plan["phases"][0]["batch_final"], 92 * 16);
  EXPECT_EQ(plan["phases"][0]["tokens"], int64_t{18'833} * 12'058'624);
  EXPECT_EQ(plan["warnings"], json::array());
  // And the one epoch of the card, of which whole steps are taken.
  EXPECT_EQ(int64_t{27'722'788} * 8192, 227'105'079'296);
}

TEST(PlanCommand, MemoryOfTheFullestPhase) {
  const json plan = PlanJson({Recipe("nano"), "--memory-per-rank", "1GiB"});
  const json& memory = plan["memory_bytes_per_rank"];
  int64_t sum = 0;
  for (const char* key : {"parameters", "gradients", "optimizer", "activations", "buffers",
                          "checkpoint", "snapshots", "runtime"}) {
    ASSERT_TRUE(memory.contains(key)) << key;
    EXPECT_GT(memory[key].get<int64_t>(), 0) << key;
    sum += memory[key].get<int64_t>();
  }
  EXPECT_EQ(memory["total"], sum);
  int64_t most = 0;
  for (const json& phase : plan["phases"])
    most = std::max(most, phase["memory_bytes_per_rank"]["total"].get<int64_t>());
  EXPECT_EQ(memory["total"], most);
  EXPECT_GT(plan["atoms"], 0);
  EXPECT_EQ(plan["fits"], true);
  EXPECT_EQ(plan["memory_limit_bytes_per_rank"], int64_t{1} << 30);
  EXPECT_EQ(plan["memory_limit_source"], "--memory-per-rank");
}

TEST(PlanCommand, DoesNotFit) {
  EXPECT_EQ(PlanJson({Recipe("nano"), "--memory-per-rank", "1MiB"})["fits"], false);
  EXPECT_THAT(Plan({Recipe("nano"), "--memory-per-rank", "1MiB"}).out,
              HasSubstr("does NOT fit into 1.0 MiB a rank (--memory-per-rank)"));
}

TEST(PlanCommand, WithoutALimitThisNodeIsAsked) {
  const json plan = PlanJson({Recipe("nano")});
  EXPECT_EQ(plan["memory_limit_source"], "this node");
  EXPECT_GT(plan["memory_limit_bytes_per_rank"], 0);
}

TEST(PlanCommand, NodesRanksAndSettings) {
  const json plan = PlanJson({Recipe("nano"), "--nodes", "2", "--ranks-per-node", "6", "--set",
                              "layout.tensor=1", "--set", "phase.pretrain.samples=1000"});
  EXPECT_EQ(plan["layout"]["ranks"], 12);
  EXPECT_EQ(plan["layout"]["tensor"], 1);
  EXPECT_EQ(plan["phases"][0]["nodes"], 2);
  EXPECT_LE(plan["phases"][0]["samples"], 1000);
  EXPECT_EQ(PlanJson({"--set", "layout.tensor=4", Recipe("nano")})["layout"]["tensor"], 4);
}

TEST(PlanCommand, SizesOfMemory) {
  const std::pair<const char*, int64_t> sizes[] = {{"1048576", 1 << 20},
                                                   {"4096B", 4096},
                                                   {"3KiB", 3072},
                                                   {"2 MiB", 2 << 20},
                                                   {"1TiB", int64_t{1} << 40},
                                                   {"5KB", 5'000},
                                                   {"7MB", 7'000'000},
                                                   {"80GB", int64_t{80'000'000'000}},
                                                   {"1TB", int64_t{1'000'000'000'000}}};
  for (const auto& [text, bytes] : sizes)
    EXPECT_EQ(PlanJson({Recipe("nano"), "--memory-per-rank", text})["memory_limit_bytes_per_rank"],
              bytes)
        << text;
  for (const char* text : {"GiB", "80Gi", "-1GiB", "0GiB", "9999999999TiB", "80GiB "}) {
    const CommandOutput result = Plan({Recipe("nano"), std::string("--memory-per-rank=") + text});
    EXPECT_EQ(result.exit_code, 2) << text;
    EXPECT_THAT(result.err, HasSubstr("for example 80GiB")) << text;
  }
}

TEST(PlanCommand, TableForPeople) {
  const CommandOutput result = Plan({Recipe("lucie/run"), "--memory-per-rank", "80GiB"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const char* text :
       {"6,706,958,336 parameters", "753,851", "762,144,064", "756,291", "3,131,736,326,144",
        "256-1,024", "tensor 4 pipeline 4 data 32 zero 1", "80.00 GiB a rank"})
    EXPECT_THAT(result.out, HasSubstr(text));
}

TEST(PlanCommand, WarningsAreShown) {
  EXPECT_THAT(Plan({Recipe("nano"), "--nodes", "4"}).out,
              HasSubstr("warning: phase \"extension\""));
}

TEST(PlanCommand, WrongUsageAndConfigurationExitWithTwo) {
  const CommandOutput missing = Plan({"/nonexistent/run.toml"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_EQ(missing.out, "");
  EXPECT_THAT(missing.err, HasSubstr("perdure plan: cannot read"));
  const CommandOutput key = Plan({Recipe("nano"), "--set", "layout.tensr=2"});
  EXPECT_EQ(key.exit_code, 2);
  EXPECT_THAT(key.err, HasSubstr("did you mean layout.tensor?"));
  const CommandOutput layout = Plan({Recipe("nano"), "--nodes", "1", "--ranks-per-node", "3"});
  EXPECT_EQ(layout.exit_code, 2);
  EXPECT_THAT(layout.err, HasSubstr("3 ranks cannot hold tensor 2 x pipeline 2"));
  EXPECT_THAT(layout.err, HasSubstr("nearest: tensor 1 x pipeline 1 x data 3"));
  EXPECT_EQ(Plan({}).exit_code, 2);
  EXPECT_EQ(Plan({Recipe("nano"), "--nodes", "0"}).exit_code, 2);
  EXPECT_EQ(Plan({Recipe("nano"), "--ranks-per-node", "-1"}).exit_code, 2);
}

}  // namespace
}  // namespace perdure
