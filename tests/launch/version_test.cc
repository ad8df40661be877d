// `perdure --version` names the backends and transports that this build has.
#include "launch/version.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "runtime/comm/nccl_group.h"
#include "runtime/comm/transport.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

TEST(Version, HasALineForEachKindOfThing) {
  EXPECT_THAT(VersionText(), MatchesRegex("perdure [0-9]+\\.[0-9]+\\.[0-9]+\n"
                                          "backends: cpu \\(oneDNN [0-9.]+, [a-z0-9_]+\\), cuda.*\n"
                                          "transports: .*; device: staged, nccl.*"));
  EXPECT_THAT(VersionText(), HasSubstr(CpuIsa()));
}

TEST(Version, SaysWhetherThereIsCuda) {
  if (!CudaIsBuilt()) {
    EXPECT_THAT(VersionText(), HasSubstr("cuda: not built\n"));
    EXPECT_EQ(CudaArchitectures(), "");
    return;
  }
  EXPECT_THAT(VersionText(), HasSubstr("cuda (built for " + CudaArchitectures() + "; "));
  const int devices = CudaDeviceCount();
  EXPECT_THAT(VersionText(), HasSubstr(devices == 0 ? "; no device here)\n"
                                                    : "; " + std::to_string(devices) + " device"));
}

TEST(Version, NamesTheTransportsThatAreLinked) {
  const std::string text = VersionText();
  EXPECT_THAT(text, Not(HasSubstr("local"))) << "no job has it";
  for (const std::string kind : {"ucx", "libfabric"}) {
    const auto transport = NewTransport(kind, {.rank = 0, .size = 1});
    const bool linked = !absl::IsUnimplemented(transport.status());
    EXPECT_THAT(text,
                linked ? testing::Matcher<std::string>(HasSubstr(kind)) : Not(HasSubstr(kind)));
  }
  EXPECT_THAT(text, HasSubstr(NcclIsBuilt() ? "nccl " + NcclVersion() : "nccl: not built"));
}

}  // namespace
}  // namespace perdure
