// A build without network libraries says so, and what to do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"

namespace perdure {
namespace {

TEST(NoNetworkTest, AbsenceIsUnimplemented) {
  const absl::Status ucx = NewUcxFabric({}).status(), ofi = NewOfiFabric({}).status();
  EXPECT_TRUE(absl::IsUnimplemented(ucx) && absl::IsUnimplemented(ofi));
  EXPECT_THAT(Message(ucx), testing::HasSubstr("PERDURE_UCX=ON"));
  EXPECT_THAT(Message(ofi), testing::HasSubstr("PERDURE_LIBFABRIC=ON"));
}

}  // namespace
}  // namespace perdure
