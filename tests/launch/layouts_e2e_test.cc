// nano.toml through real processes: any layout, any transport, any chain of layouts ends in the
// same bits.
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

struct Layout {
  int tensor, pipeline, data, zero;
  const char* transport;
  int virtual_stages = 1;
  int nodes = 1;
  const char* recompute = "none";

  int ranks() const { return tensor * pipeline * data; }
  std::string Name() const {
    return fmt::format("tensor {} pipeline {} data {} zero {} virtual {} {} recompute {}", tensor,
                       pipeline, data, zero, virtual_stages, transport, recompute);
  }
};

class LayoutsEndToEnd : public testing::Test {
 protected:
  LayoutsEndToEnd() : folder_(FreshFolder("layouts_e2e")) { WriteNanoData(folder_); }
  ~LayoutsEndToEnd() override { std::filesystem::remove_all(folder_); }

  void Run(const std::string& run_directory, const Layout& l, int until,
           const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"run",
                                          NanoToml(),
                                          "--run-dir",
                                          run_directory,
                                          "--data-dir",
                                          folder_,
                                          "--quiet",
                                          "--nodes",
                                          std::to_string(l.nodes),
                                          "--ranks-per-node",
                                          std::to_string(l.ranks() / l.nodes)};
    if (until > 0) arguments.insert(arguments.end(), {"--until-step", std::to_string(until)});
    for (const std::string& setting :
         {fmt::format("layout.tensor={}", l.tensor), fmt::format("layout.pipeline={}", l.pipeline),
          fmt::format("layout.data={}", l.data), fmt::format("layout.zero={}", l.zero),
          fmt::format("layout.transport={}", l.transport),
          fmt::format("layout.virtual_stages={}", l.virtual_stages),
          fmt::format("layout.recompute={}", l.recompute)})
      arguments.insert(arguments.end(), {"--set", setting});
    for (const std::string& setting : more) arguments.insert(arguments.end(), {"--set", setting});
    const CommandResult result = Perdure(arguments);
    ASSERT_EQ(result.exit_code, until > 0 ? 75 : 0) << result.errors;
  }

  struct Ending {
    std::vector<std::string> loss_bits;
    std::string certificate;
    friend bool operator==(const Ending&, const Ending&) = default;
  };
  Ending EndOf(const std::string& run_directory) {
    const nlohmann::json listed = ListedCheckpoints(run_directory);
    return {LossColumn(run_directory, "loss_bits"),
            listed.empty() ? "" : listed.back()["certificate"].get<std::string>()};
  }

  void ExpectAllEqual(const std::vector<Layout>& layouts, int steps,
                      const std::vector<std::string>& more = {}) {
    Ending reference;
    int number = 0;
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(layout.Name());
      const std::string run = fmt::format("{}/run{}", folder_, number++);
      ASSERT_NO_FATAL_FAILURE(Run(run, layout, steps, more));
      const Ending ending = EndOf(run);
      ASSERT_EQ(ending.loss_bits.size(), static_cast<size_t>(steps));
      ASSERT_EQ(ending.certificate.size(), 32U);
      if (number == 1) reference = ending;
      EXPECT_EQ(ending, reference);
    }
  }

  std::string folder_;
};

const std::vector<Layout> kLayouts = {
    {1, 1, 1, 1, "ucx"},
    {2, 2, 2, 1, "ucx", 1, 2},
    {1, 1, 2, 0, "libfabric"},
    {4, 1, 1, 2, "ucx"},
    {1, 2, 3, 3, "ucx", 2},
    {2, 1, 5, 2, "libfabric", 1, 2},
    {1, 4, 1, 1, "ucx"},
    {4, 2, 1, 0, "libfabric"},
    {1, 2, 5, 1, "libfabric", 2, 5},
    {2, 4, 1, 3, "ucx", 1, 4},
    {1, 1, 3, 3, "libfabric"},
    {2, 2, 1, 2, "ucx", 2, 1, "full"},
    {4, 1, 2, 3, "ucx"},
    {1, 4, 2, 2, "libfabric"},
    {1, 1, 5, 0, "ucx"},
    {2, 1, 1, 0, "ucx", 1, 2},
    {1, 2, 1, 3, "libfabric", 1, 1, "full"},
};

TEST_F(LayoutsEndToEnd, EightLayoutsAndTwoTransports) {
  ExpectAllEqual({kLayouts.begin(), kLayouts.begin() + 8}, 6);
}

TEST_F(LayoutsEndToEnd, Bf16) {
  ExpectAllEqual({{1, 1, 1, 1, "ucx"}, {2, 2, 2, 3, "ucx"}, {4, 1, 1, 0, "libfabric"}}, 4,
                 {"numerics.dtype=bf16"});
}

// The full contract: 60 steps in 17 layouts, then a chain stopped at 7, 20 and the phase boundary.
TEST_F(LayoutsEndToEnd, LongSixtyStepsInEveryLayout) { ExpectAllEqual(kLayouts, 60); }

TEST_F(LayoutsEndToEnd, LongSixtyStepsInEveryLayoutInBf16) {
  ExpectAllEqual(kLayouts, 60, {"numerics.dtype=bf16"});
}

class LongChain : public LayoutsEndToEnd, public testing::WithParamInterface<const char*> {};

TEST_P(LongChain, StoppedAndResumedAtOtherLayouts) {
  const std::vector<std::string> dtype = {fmt::format("numerics.dtype={}", GetParam())};
  const std::string whole = folder_ + "/whole", chain = folder_ + "/chain";
  ASSERT_NO_FATAL_FAILURE(Run(whole, kLayouts[0], -1, dtype));
  const int phase_end = 100;  // Of 120 steps.
  const std::vector<std::pair<Layout, int>> jobs = {{kLayouts[1], 7},
                                                    {kLayouts[5], 20},
                                                    {kLayouts[4], phase_end},
                                                    {kLayouts[9], phase_end + 5},
                                                    {kLayouts[2], -1}};
  for (const auto& [layout, until] : jobs)
    ASSERT_NO_FATAL_FAILURE(Run(chain, layout, until, dtype));
  EXPECT_EQ(EndOf(chain), EndOf(whole));
  EXPECT_EQ(EndOf(chain).loss_bits.size(), 120U);
  const CommandResult diff = Perdure({"ckpt", "diff", whole, chain});
  EXPECT_EQ(diff.exit_code, 0);
  EXPECT_NE(diff.output.find("identical"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(DTypes, LongChain, testing::Values("fp32", "bf16"));

}  // namespace
}  // namespace perdure
