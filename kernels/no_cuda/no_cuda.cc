// What stands in for kernels/cuda where the CUDA toolkit is not there to build it.
#include "kernels/ops.h"
#include "runtime/base/status.h"

namespace perdure {

bool CudaIsBuilt() { return false; }

std::string CudaArchitectures() { return ""; }

int CudaDeviceCount() { return 0; }

absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(int) {
  return Unimplemented(
      "this build has no CUDA backend: install the CUDA toolkit (cuBLAS and cuDNN 9 with it) and "
      "build again, or set numerics.backend to \"cpu\"");
}

absl::StatusOr<std::string> CudaIsa(int device) { return NewCudaOps(device).status(); }

absl::StatusOr<CudaDevice> DescribeCudaDevice(int device) { return NewCudaOps(device).status(); }

}  // namespace perdure
