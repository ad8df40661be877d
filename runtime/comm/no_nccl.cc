// Stands in for nccl_group.cc where NCCL or the CUDA backend was not found.
#include "runtime/base/status.h"
#include "runtime/comm/nccl_group.h"

namespace perdure {

bool NcclIsBuilt() { return false; }

std::string NcclVersion() { return ""; }

std::string GpuIdentity(Ops*) { return ""; }

absl::StatusOr<std::unique_ptr<Collectives>> NewNcclGroup(Transport*, std::vector<int>, uint32_t,
                                                          Ops*, StartOrder) {
  return Unimplemented(
      "this build has no NCCL; install NCCL 2.28.9 or newer beside CUDA and configure with "
      "-DPERDURE_NCCL=ON, or choose the device transport 'staged'");
}

}  // namespace perdure
