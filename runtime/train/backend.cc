#include "runtime/train/backend.h"

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<RankDevice> NewRankDevice(const RunConfig& config, int local_rank) {
  const NumericsConfig& numerics = config.numerics;
  RankDevice rank_device;
  if (numerics.backend == "cpu") {
    rank_device.ops = NewCpuOps(static_cast<int>(numerics.threads));
    rank_device.name = "the CPU";
    return rank_device;
  }
  PERDURE_CHECK(numerics.backend == "cuda");
  const int devices = CudaDeviceCount();
  const int device = devices > 0 ? local_rank % devices : 0;
  ASSIGN_OR_RETURN(rank_device.ops, NewCudaOps(device));
  ASSIGN_OR_RETURN(const std::string here, CudaIsa(device));
  if (here != numerics.isa)
    return FailedPrecondition(
        "numerics.isa is {} but device {} of this node is {}: the bits would differ. Run on nodes "
        "with the same kind of GPU and the same versions of its libraries",
        numerics.isa, device, here);
  ASSIGN_OR_RETURN(const CudaDevice described, DescribeCudaDevice(device));
  rank_device.name =
      fmt::format("CUDA device {} ({}, PCI {})", device, described.name, described.pci_bus_id);
  rank_device.pci_bus_id = described.pci_bus_id;
  rank_device.free_bytes = described.free_bytes;
  return rank_device;
}

}  // namespace perdure
