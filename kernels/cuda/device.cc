#include "kernels/cuda/device.h"

#include <fmt/format.h>

#include "runtime/base/check.h"

namespace perdure::cuda {

void ErrorLatch::Note(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // The thread's own note of it: the next launch is not to find it.
  if (!ok()) return;
  message_ = fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

void ErrorLatch::Note(int status, const char* text, const char* what) {
  if (status == 0 || !ok()) return;
  message_ = fmt::format("{}: {} ({})", what, text, status);
}

Workspace::~Workspace() { cudaFree(memory_); }

void* Workspace::Reserve(size_t bytes) {
  if (bytes <= bytes_) return memory_;
  stream_->errors->Note(cudaStreamSynchronize(stream_->stream), "cudaStreamSynchronize");
  cudaFree(memory_);
  memory_ = nullptr;
  const cudaError_t error = cudaMalloc(&memory_, bytes);
  stream_->errors->Note(error, "cudaMalloc of work space");
  PERDURE_CHECK(error == cudaSuccess);
  bytes_ = bytes;
  return memory_;
}

}  // namespace perdure::cuda
