// The backends that tests of Ops run on, as a parameter of test suites: one contract, every
// backend. Where a backend is missing its cases are skipped, by name.
//
// What operations read and write lies in memory that both the test and the backend reach, so tests
// write operands and read results in place: std::pmr::vector, in the default memory resource. That
// is plain memory until a CUDA backend is first made in the process, and pinned memory, which
// devices address too, from then on.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>

#include "kernels/ops.h"

namespace perdure {

enum class Backend : uint8_t { kCpu, kCuda };

// "cpu", "cuda".
std::string NameOf(Backend backend);
// "fp32", "bf16".
std::string NameOf(DType dtype);
// How failures and lists of tests show them.
inline void PrintTo(Backend backend, std::ostream* out) { *out << NameOf(backend); }
inline void PrintTo(DType dtype, std::ostream* out) { *out << NameOf(dtype); }

// Why the backend's cases are skipped; empty where it can be used.
std::string WhyMissing(Backend backend);

// An Ops that waits after every call, so that results can be read at once. A device's error fails
// the test that met it and leaves the others a new stream. Null where the backend is missing.
std::unique_ptr<Ops> NewTestOps(Backend backend);
// The one that all tests of this process share, for one thread at a time: a CUDA backend's
// libraries take longer to start than a test to run.
Ops* TestOps(Backend backend);

// For suites with the backend as parameter.
inline auto EveryBackend() { return testing::Values(Backend::kCpu, Backend::kCuda); }
inline std::string BackendName(const testing::TestParamInfo<Backend>& info) {
  return NameOf(info.param);
}
// And for those with the compute type alone.
inline std::string TypeName(const testing::TestParamInfo<DType>& info) {
  return NameOf(info.param);
}

class OpsTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  static Backend backend() { return GetParam(); }
  static bool on_cpu() { return backend() == Backend::kCpu; }
  // What EXPECT_DEATH finds where a CHECK of the operands fails: on the CPU that `fact` was not
  // one, elsewhere only that some CHECK failed, since each backend says it in its own words. The
  // statement must make no tensor: a device's memory does not survive the fork.
  static std::string Failed(const std::string& fact) {
    return "kernels/.*CHECK failed: .*" + (on_cpu() ? fact : "");
  }

  Ops* const ops_ = TestOps(GetParam());
};

// Likewise, with the compute type.
class TypedOpsTest : public testing::TestWithParam<std::tuple<Backend, DType>> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyMissing(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  static Backend backend() { return std::get<0>(GetParam()); }
  static bool on_cpu() { return backend() == Backend::kCpu; }
  static DType dtype() { return std::get<1>(GetParam()); }

  Ops* const ops_ = TestOps(std::get<0>(GetParam()));
};

inline auto EveryBackendAndType() {
  return testing::Combine(EveryBackend(), testing::Values(DType::kF32, DType::kBF16));
}
inline std::string BackendAndTypeName(
    const testing::TestParamInfo<std::tuple<Backend, DType>>& info) {
  return NameOf(std::get<0>(info.param)) + "_" + NameOf(std::get<1>(info.param));
}

}  // namespace perdure
