#include "launch/batch_script.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/config.h"
#include "launch/sites/sites.h"
#include "launch/slurm/command.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using testing::Not;

absl::StatusOr<std::string> ScriptOf(const std::vector<std::string>& settings) {
  absl::StatusOr<RunConfig> config = LoadConfig(NanoToml(), settings);
  if (!config.ok()) return config.status();
  return WriteBatchScript({.config = *config,
                           .common = {.job_name = "perdure-nano-1", .data_directory = "/d"},
                           .run_directory = "/scratch/it's a run",
                           .program = "/opt/perdure"});
}

// With bash: what it would run, instead of running it.
std::string Ran(const std::string& script) {
  const auto result = RunCommand(
      {.argv = {"bash", "-s"},
       .input =
           "module() { echo \"module $*\"; }\nexec() { printf '<%s>' \"$@\"; echo; }\n" + script});
  return result.ok() ? result->output + result->errors : std::string(result.status().message());
}

TEST(BatchScript, BecomesTheJob) {
  const auto script = ScriptOf({"job.time_limit=90min"});
  ASSERT_TRUE(script.ok()) << script.status();
  for (const char* line :
       {"#!/bin/bash\n", "#SBATCH \"--job-name=perdure-nano-1\"\n", "#SBATCH \"--time=90\"\n",
        "#SBATCH \"--output=/scratch/it's a run/jobs/slurm-%j.log\"\n",
        "#SBATCH \"--open-mode=append\"\n", "#SBATCH \"--no-kill\"\n", "#SBATCH \"--requeue\"\n"})
    EXPECT_THAT(*script, HasSubstr(line));
  EXPECT_THAT(*script, Not(HasSubstr("--account")));
  EXPECT_EQ(Ran(*script), "</opt/perdure><job></scratch/it's a run>\n");
}

TEST(BatchScript, RoundsTimeUp) {
  EXPECT_THAT(*ScriptOf({"job.time_limit=61s"}), HasSubstr("--time=2\""));
  EXPECT_THAT(*ScriptOf({"job.time_limit=1s"}), HasSubstr("--time=1\""));
}

TEST(BatchScript, LoadsAndExportsWhatTheSiteWants) {
  const auto script = ScriptOf({"slurm.modules=[\"arch/h100\", \"a;b\"]",
                                "slurm.environment=[\"X=a 'b' $HOME\"]", "slurm.account=abc",
                                "slurm.account_suffix=@h100", "slurm.options=[\"--gres=gpu:4\"]"});
  ASSERT_TRUE(script.ok()) << script.status();
  EXPECT_THAT(*script, HasSubstr("#SBATCH \"--account=abc@h100\"\n"));
  EXPECT_THAT(*script, HasSubstr("#SBATCH \"--gres=gpu:4\"\n"));
  EXPECT_THAT(Ran(*script + "echo \"$X\"\n"),
              HasSubstr("module load arch/h100\nmodule load a;b\n"));
  EXPECT_THAT(Ran(*script + "echo \"$X\"\n"), HasSubstr("\na 'b' $HOME\n"));
  EXPECT_THAT(*ScriptOf({"slurm.account=abc@h100", "slurm.account_suffix=@h100"}),
              HasSubstr("\"--account=abc@h100\""));
}

TEST(BatchScript, RefusesWhatAScriptCannotHold) {
  for (const char* setting : {"slurm.constraint='a\"b'", "slurm.options=['--x=a\\b']"}) {
    const auto script = ScriptOf({setting});
    EXPECT_TRUE(absl::IsInvalidArgument(script.status())) << setting;
    EXPECT_THAT(script.status().message(), HasSubstr("command line")) << setting;
  }
  for (const char* setting :
       {"slurm.account='a b'", "slurm.options=['gres']", "slurm.environment=['1X=2']",
        "slurm.environment=['X']", "slurm.modules=['']", "slurm.options=[3]", "slurm.options='-x'"})
    EXPECT_TRUE(absl::IsInvalidArgument(ScriptOf({setting}).status())) << setting;
}

TEST(Sites, AllAreProfiles) {
  EXPECT_GE(KnownSites().size(), 8U);
  for (const Site& site : KnownSites()) {
    const auto script = ScriptOf({"slurm.site=" + site.name});
    EXPECT_TRUE(script.ok()) << site.name << ": " << script.status();
  }
  EXPECT_THAT(*ScriptOf({"slurm.site=jean-zay-h100", "slurm.account=abc"}),
              HasSubstr("#SBATCH \"--constraint=h100\"\n"));
}

TEST(Sites, CountLessThanTheRun) {
  const auto config =
      LoadConfig(NanoToml(), {"slurm.site=jean-zay-h100", "slurm.qos=qos_gpu_h100-dev"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->slurm.qos, "qos_gpu_h100-dev");
  EXPECT_EQ(config->slurm.constraint, "h100");
  EXPECT_EQ(config->job.ranks_per_node, 4) << "as nano.toml says it, too";
  EXPECT_EQ(config->job.leave_margin, absl::Seconds(60));
}

TEST(Sites, UnknownAndWrongOnesAreRefused) {
  const auto unknown = LoadConfig(NanoToml(), {"slurm.site=jean-zay"});
  EXPECT_THAT(unknown.status().message(), HasSubstr("jean-zay-h100"));
  // A whole run is no profile.
  const auto run = LoadConfig(NanoToml(), {"slurm.site=" + NanoToml()});
  EXPECT_TRUE(absl::IsInvalidArgument(run.status())) << run.status();
  EXPECT_THAT(run.status().message(), HasSubstr("belongs into run.toml"));
}

}  // namespace
}  // namespace perdure
