#include "runtime/train/backend.h"

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<std::unique_ptr<Ops>> NewOps(const RunConfig& config, int local_rank) {
  const NumericsConfig& numerics = config.numerics;
  if (numerics.backend == "cpu") return NewCpuOps(static_cast<int>(numerics.threads));
  PERDURE_CHECK(numerics.backend == "cuda");
  const int devices = CudaDeviceCount();
  const int device = devices > 0 ? local_rank % devices : 0;
  ASSIGN_OR_RETURN(std::unique_ptr<Ops> ops, NewCudaOps(device));
  ASSIGN_OR_RETURN(const std::string here, CudaIsa(device));
  if (here != numerics.isa)
    return FailedPrecondition(
        "numerics.isa is {} but device {} of this node is {}: the bits would differ. Run on nodes "
        "with the same kind of GPU and the same versions of its libraries",
        numerics.isa, device, here);
  return ops;
}

}  // namespace perdure
