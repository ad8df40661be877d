#include "launch/version.h"

#include <fmt/format.h>

#include "kernels/ops.h"
#include "runtime/comm/nccl_group.h"
#include "runtime/comm/transport.h"

namespace perdure {
namespace {

std::string Cuda() {
  if (!CudaIsBuilt()) return "cuda: not built";
  const int devices = CudaDeviceCount();
  const std::string here = devices == 0   ? "no device here"
                           : devices == 1 ? "1 device here"
                                          : fmt::format("{} devices here", devices);
  return fmt::format("cuda (built for {}; {})", CudaArchitectures(), here);
}

}  // namespace

std::string Version() { return PERDURE_VERSION; }

std::string VersionText() {
  std::string transports;
  for (const std::string& kind : LinkedTransports())
    if (kind != "local")  // No job has it.
      transports += (transports.empty() ? "" : ", ") + kind;
  return fmt::format(
      "perdure {}\n"
      "backends: cpu ({}, {}), {}\n"
      "transports: {}; device: staged, {}",
      PERDURE_VERSION, CpuLibrary(), CpuIsa(), Cuda(),
      transports.empty() ? "none between processes" : transports,
      NcclIsBuilt() ? "nccl " + NcclVersion() : "nccl: not built");
}

}  // namespace perdure
