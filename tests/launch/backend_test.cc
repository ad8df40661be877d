// What a run's first start finds, and what later ones must find again.
#include "launch/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::HasSubstr;

RunConfig With(const std::string& backend, const std::string& isa) {
  RunConfig config;
  config.numerics.backend = backend;
  config.numerics.isa = isa;
  return config;
}

// What "auto" becomes here: the tests hold with and without a GPU.
RunConfig Here() {
  RunConfig config = With("auto", "auto");
  EXPECT_TRUE(ResolveBackend(config, nullptr).ok());
  return config;
}

TEST(ResolveBackend, TheFirstStartTakesWhatIsThere) {
  const RunConfig here = Here();
  EXPECT_TRUE(here.numerics.backend == "cpu" || here.numerics.backend == "cuda");
  EXPECT_NE(here.numerics.isa, "auto");
  RunConfig cpu = With("cpu", "auto");
  ASSERT_TRUE(ResolveBackend(cpu, nullptr).ok());
  EXPECT_EQ(cpu.numerics.backend, "cpu");
  EXPECT_EQ(cpu.numerics.isa, CpuIsa());
}

TEST(ResolveBackend, LaterStartsTakeWhatIsFrozen) {
  const RunConfig frozen = With("cpu", CpuIsa());
  RunConfig config = With("auto", "auto");
  ASSERT_TRUE(ResolveBackend(config, &frozen).ok());
  EXPECT_EQ(config.numerics.backend, "cpu");
  EXPECT_EQ(config.numerics.isa, CpuIsa());
}

TEST(ResolveBackend, AnotherInstructionSetIsRefused) {
  const RunConfig frozen = With("cpu", "vax");
  RunConfig config = With("auto", "auto");
  const absl::Status status = ResolveBackend(config, &frozen);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("numerics.isa is vax but this machine's matmul library"));
  EXPECT_THAT(Message(status), HasSubstr(CpuIsa()));
}

TEST(ResolveBackend, AGpuThatIsNotThereIsRefused) {
  if (Here().numerics.backend == "cuda") GTEST_SKIP() << "this machine has a GPU";
  RunConfig asked = With("cuda", "auto");
  const absl::Status first = ResolveBackend(asked, nullptr);
  EXPECT_EQ(first.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(first), HasSubstr("numerics.backend is cuda but there is no GPU to use"));
  EXPECT_THAT(Message(first), HasSubstr("Run on a machine with one"));
  const RunConfig frozen = With("cuda", "sm_90 132 cublas 13.1.0 cudnn 9.19.0");
  RunConfig config = With("auto", "auto");
  const absl::Status later = ResolveBackend(config, &frozen);
  EXPECT_EQ(later.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(later), HasSubstr("the kind of GPU that the run began on"));
  EXPECT_THAT(Message(later), HasSubstr("numerics.backend = \"cpu\""));
}

TEST(ResolveBackend, AnotherGpuIsRefused) {
  if (Here().numerics.backend != "cuda") GTEST_SKIP() << "this machine has no GPU";
  const RunConfig frozen = With("cuda", "sm_1 1 cublas 1 cudnn 1");
  RunConfig config = With("auto", "auto");
  const absl::Status status = ResolveBackend(config, &frozen);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("but this machine's GPU is " + Here().numerics.isa));
}

}  // namespace
}  // namespace perdure
