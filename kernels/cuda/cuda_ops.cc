#include "kernels/cuda/cuda_ops.h"

#include <cublasLt.h>
#include <cudnn_graph.h>
#include <fmt/format.h>

#include <cstring>

#include "kernels/cuda/kernels.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The device's stream, made before the members that keep it.
cuda::Stream MakeStream(int device, cuda::ErrorLatch* errors) {
  cuda::Stream stream{.errors = errors};
  errors->Note(cudaSetDevice(device), "cudaSetDevice");
  errors->Note(cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking),
               "cudaStreamCreate");
  errors->Note(cudaDeviceGetAttribute(&stream.multiprocessors, cudaDevAttrMultiProcessorCount,
                                      device),
               "cudaDeviceGetAttribute");
  return stream;
}

}  // namespace

CudaOps::CudaOps(int device)
    : device_(device),
      stream_(MakeStream(device, &errors_)),
      work_(&stream_),
      matmul_(&stream_),
      attention_(&stream_) {
  errors_.Note(cudaStreamCreateWithFlags(&behind_, cudaStreamNonBlocking), "cudaStreamCreate");
  for (cudaEvent_t* event : {&reached_, &downloaded_})
    errors_.Note(cudaEventCreateWithFlags(event, cudaEventDisableTiming | cudaEventBlockingSync),
                 "cudaEventCreate");
}

CudaOps::~CudaOps() {
  (void)cudaStreamSynchronize(behind_);
  for (cudaEvent_t event : {reached_, downloaded_}) (void)cudaEventDestroy(event);
  (void)cudaStreamDestroy(behind_);
  (void)cudaStreamSynchronize(stream_.stream);
  (void)cudaStreamDestroy(stream_.stream);
}

void* CudaOps::Allocate(size_t bytes) {
  void* memory = nullptr;
  errors_.Note(cudaSetDevice(device_), "cudaSetDevice");
  const cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (error != cudaSuccess)
    CheckFailed(__FILE__, __LINE__,
                fmt::format("cudaMalloc of {} bytes on device {}: {}; 'perdure plan' tells what a "
                            "rank needs",
                            bytes, device_, cudaGetErrorString(error))
                    .c_str());
  errors_.Note(cudaMemsetAsync(memory, 0, bytes, stream_.stream), "cudaMemset");
  return memory;
}

void CudaOps::Free(void* memory) {
  if (memory != nullptr) errors_.Note(cudaFree(memory), "cudaFree");
}

void* CudaOps::AllocateHost(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, bytes == 0 ? 1 : bytes, cudaHostAllocDefault);
  if (error != cudaSuccess)
    CheckFailed(__FILE__, __LINE__,
                fmt::format("cudaHostAlloc of {} bytes: {}; the host lacks memory that can be "
                            "pinned (see ulimit -l)",
                            bytes, cudaGetErrorString(error))
                    .c_str());
  std::memset(memory, 0, bytes);
  return memory;
}

void CudaOps::FreeHost(void* memory) {
  if (memory != nullptr) errors_.Note(cudaFreeHost(memory), "cudaFreeHost");
}

// A refusal is no error of the device: copies work all the same.
void CudaOps::PinHost(void* memory, size_t bytes) {
  if (cudaHostRegister(memory, bytes, cudaHostRegisterDefault) != cudaSuccess)
    (void)cudaGetLastError();
}

void CudaOps::UnpinHost(void* memory) {
  if (cudaHostUnregister(memory) != cudaSuccess) (void)cudaGetLastError();
}

bool CudaOps::DeviceIsHost() const { return false; }

void CudaOps::Upload(const void* host, size_t bytes, void* device) {
  errors_.Note(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_.stream),
               "cudaMemcpy to the device");
}

void CudaOps::Download(const void* device, size_t bytes, void* host) {
  errors_.Note(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_.stream),
               "cudaMemcpy from the device");
}

void CudaOps::DownloadBehind(const void* device, size_t bytes, void* host) {
  errors_.Note(cudaEventRecord(reached_, stream_.stream), "cudaEventRecord");
  errors_.Note(cudaStreamWaitEvent(behind_, reached_, 0), "cudaStreamWaitEvent");
  errors_.Note(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, behind_),
               "cudaMemcpy from the device, behind");
  errors_.Note(cudaEventRecord(downloaded_, behind_), "cudaEventRecord");
}

void CudaOps::AwaitDownloads() {
  errors_.Note(cudaStreamWaitEvent(stream_.stream, downloaded_, 0), "cudaStreamWaitEvent");
}

absl::Status CudaOps::SyncDownloads() {
  const cudaError_t error = cudaEventSynchronize(downloaded_);
  if (error == cudaSuccess) return absl::OkStatus();
  return Unavailable("CUDA device {}: a copy to the host: {}", device_, cudaGetErrorString(error));
}

absl::Status CudaOps::Sync() {
  errors_.Note(cudaStreamSynchronize(stream_.stream), "the device's work");
  if (errors_.ok()) return absl::OkStatus();
  return Unavailable("CUDA device {}: {}", device_, errors_.message());
}

bool CudaOps::Idle() {
  if (cudaStreamQuery(stream_.stream) != cudaErrorNotReady) return true;  // Sync tells errors.
  (void)cudaGetLastError();  // Or the next launch would take this answer for its own error.
  return false;
}

void* CudaOps::NativeStream() { return stream_.stream; }

std::string CudaOps::Describe() const {
  cudaDeviceProp properties{};
  (void)cudaGetDeviceProperties(&properties, device_);
  return fmt::format("cuda, {}, device {}", properties.name, device_);
}

void CudaOps::Zero(Matrix x) { cuda::Zero(stream_, x); }

void CudaOps::Copy(ConstMatrix src, Matrix dst) { cuda::Copy(stream_, src, dst); }

void CudaOps::Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                     Matrix c, bool accumulate) {
  matmul_.Multiply(transpose_a, transpose_b, a, b, accumulate ? ConstMatrix(c) : ConstMatrix(), c);
}

void CudaOps::MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                        ConstMatrix residual, Matrix c, Matrix) {
  matmul_.Multiply(transpose_a, transpose_b, a, b, residual, c);
}

bool CudaOps::AddsWholeProducts() const { return true; }

void CudaOps::Add(ConstMatrix x, Matrix acc) { cuda::Add(stream_, x, acc); }

void CudaOps::WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) {
  cuda::WordSums(stream_, work_, data, runs, sums);
}

void CudaOps::Max(ConstMatrix x, Matrix acc) { cuda::Max(stream_, x, acc); }

void CudaOps::TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) {
  cuda::TreeSum(stream_, parts, residual, out);
}

void CudaOps::SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) {
  cuda::SumsOfSquares(stream_, work_, x, runs, sums);
}

void CudaOps::EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                               Matrix out) {
  cuda::EmbeddingForward(stream_, tokens, table, row_begin, out);
}

void CudaOps::EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                                Matrix dtable) {
  cuda::EmbeddingBackward(stream_, work_, tokens, dout, row_begin, dtable);
}

void CudaOps::RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y, float* rstd) {
  cuda::RmsNormForward(stream_, x, weight, eps, y, rstd);
}

void CudaOps::RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                              ConstMatrix dresidual, Matrix dx, Matrix dweight) {
  cuda::RmsNormBackward(stream_, work_, dy, x, weight, rstd, dresidual, dx, dweight);
}

void CudaOps::Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
                   bool inverse) {
  cuda::Rope(stream_, qkv, shape, cos, sin, inverse);
}

void CudaOps::AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                               float* lse) {
  attention_.Forward(qkv, shape, out, lse);
}

void CudaOps::AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out,
                                const float* lse, const AttentionShape& shape, Matrix dqkv) {
  attention_.Backward(dout, qkv, out, lse, shape, dqkv);
}

void CudaOps::SwiGluForward(ConstMatrix gate_up, Matrix out) {
  cuda::SwiGluForward(stream_, gate_up, out);
}

void CudaOps::SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) {
  cuda::SwiGluBackward(stream_, dout, gate_up, dgate_up, out);
}

void CudaOps::CrossEntropyMax(ConstMatrix logits, float* row_max) {
  cuda::CrossEntropyMax(stream_, logits, row_max);
}

void CudaOps::CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                              int64_t column_begin, float* row_sum, float* target_logit) {
  cuda::CrossEntropySum(stream_, logits, row_max, targets, column_begin, row_sum, target_logit);
}

void CudaOps::CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                               double* loss) {
  cuda::CrossEntropyLoss(stream_, row_sum, target_logit, rows, loss);
}

void CudaOps::CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum,
                                   const int32_t* targets, int64_t column_begin, float scale,
                                   Matrix dlogits) {
  cuda::CrossEntropyGradient(stream_, exp_logits, row_sum, targets, column_begin, scale, dlogits);
}

void CudaOps::AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
                    float* exp_avg_sq, Matrix param) {
  cuda::AdamW(stream_, step, gradient, master, exp_avg, exp_avg_sq, param);
}

bool CudaIsBuilt() { return true; }

std::string CudaArchitectures() { return PERDURE_CUDA_ARCHITECTURES; }

int CudaDeviceCount() {
  int count = 0;
  // Without a driver this is an error, and none of ours.
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  (void)cudaGetLastError();
  return count;
}

absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(int device) {
  const int count = CudaDeviceCount();
  if (device < 0 || device >= count)
    return Unavailable("CUDA device {} was asked for, but this process sees {}; see nvidia-smi and "
                       "CUDA_VISIBLE_DEVICES",
                       device, count);
  auto ops = std::make_unique<CudaOps>(device);
  RETURN_IF_ERROR(ops->Sync());
  return ops;
}

absl::StatusOr<std::string> CudaIsa(int device) {
  const int count = CudaDeviceCount();
  cudaDeviceProp properties{};
  if (device < 0 || device >= count ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess)
    return Unavailable("CUDA device {} was asked for, but this process sees {}; see nvidia-smi and "
                       "CUDA_VISIBLE_DEVICES",
                       device, count);
  const size_t cublas = cublasLtGetVersion(), cudnn = cudnnGetVersion();
  return fmt::format("sm_{}{} {} cublas {}.{}.{} cudnn {}.{}.{}", properties.major,
                     properties.minor, properties.multiProcessorCount, cublas / 10000,
                     cublas / 100 % 100, cublas % 100, cudnn / 10000, cudnn / 100 % 100,
                     cudnn % 100);
}

absl::StatusOr<CudaDevice> DescribeCudaDevice(int device) {
  CudaDevice described;
  cudaDeviceProp properties{};
  char bus[32] = "";
  size_t total = 0;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) error = cudaDeviceGetPCIBusId(bus, sizeof bus, device);
  if (error == cudaSuccess) error = cudaMemGetInfo(&described.free_bytes, &total);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return Unavailable("CUDA device {}: {}; see nvidia-smi and CUDA_VISIBLE_DEVICES", device,
                       cudaGetErrorString(error));
  }
  described.name = properties.name;
  described.pci_bus_id = bus;
  return described;
}

}  // namespace perdure
