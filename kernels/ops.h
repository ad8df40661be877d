// The one set of operations a model is made of. CpuOps is the meaning; CudaOps (kernels/cuda) is
// the speed.
//
// Every operation enqueues on this object's stream and returns at once; Sync() waits and reports
// the device's errors. A wrong shape or dtype is a programmer's error (CHECK). An Ops object
// belongs to one rank and one thread.
//
// Determinism: the result of an operation depends on its operands' values and shapes alone - never
// on addresses, on threads, on what ran before. Sums run in an order fixed by the shapes, with fp32
// lanes or fp64, as each comment says.
//
// Letters: n rows (tokens), h hidden, f feed-forward width, q/k heads of queries/keys, d head
// dimension, w vocabulary slice width. "dtype" below is the compute type, fp32 or bf16;
// activations, weights and activation gradients are of it; parameter gradients, statistics and
// everything marked fp32 are fp32 always.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/shapes.h"
#include "kernels/tensor.h"

namespace perdure {

class Ops {
 public:
  virtual ~Ops() = default;

  // --- memory, stream
  // -------------------------------------------------------------------------------------------
  // Device memory aligned to 64 bytes, zero-filled. ResourceExhausted is a CHECK here: `plan` says
  // beforehand.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  // Host memory that Upload and Download reach at full speed and without a further copy (pinned),
  // aligned to 64 bytes, zero-filled.
  virtual void* AllocateHost(size_t bytes) = 0;
  virtual void FreeHost(void* memory) = 0;
  // Makes host memory that is not of AllocateHost, whole pages of it, as good for copies, as far as
  // the backend can; else they are slower and hold up who enqueues them. Undone before it is given
  // back.
  virtual void PinHost(void* /*memory*/, size_t /*bytes*/) {}
  virtual void UnpinHost(void* /*memory*/) {}
  // Whether device memory is host memory: then anybody may read and write it after Sync().
  virtual bool DeviceIsHost() const = 0;
  // Enqueued copies between host and device. The host's bytes must stay as they are, or unread,
  // until Sync().
  virtual void Upload(const void* host, size_t bytes, void* device) = 0;
  virtual void Download(const void* device, size_t bytes, void* host) = 0;
  // A Download that what is enqueued after it does not wait for: a copy behind the compute.
  virtual void DownloadBehind(const void* device, size_t bytes, void* host) = 0;
  // What is enqueued from here on comes after the downloads behind: it may overwrite their sources.
  virtual void AwaitDownloads() = 0;
  // Waits for the downloads behind. The only call that another thread may make meanwhile.
  virtual absl::Status SyncDownloads() = 0;
  virtual absl::Status Sync() = 0;
  // Whether Sync() would return at once. For who must not wait without end.
  virtual bool Idle() { return true; }
  // The cudaStream_t of the CUDA backend, for libraries that enqueue on it in their turn; null on
  // the CPU.
  virtual void* NativeStream() { return nullptr; }
  // One line for logs and benchmarks: backend, instruction set, threads.
  virtual std::string Describe() const = 0;

  virtual void Zero(Matrix x) = 0;
  // dst = src, converting dtype (round to nearest even). Same shape.
  virtual void Copy(ConstMatrix src, Matrix dst) = 0;

  // --- matmul
  // ---------------------------------------------------------------------------------------------------
  // c = op(a) op(b), or c += with `accumulate`. a, b: one dtype; c: fp32, or that dtype. Products
  // accumulate in fp32 and are rounded to c's dtype once. op(a) is [c.rows, k], op(b) is [k,
  // c.cols]; strides are free.
  virtual void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                      Matrix c, bool accumulate) = 0;

  // c = residual + op(a) op(b): the product complete in fp32, then the sum, rounded to c's dtype;
  // a backend's library may round the product to that dtype, too, as the shape decides. c: fp32 or
  // the dtype of a; residual: of c's dtype, or null data (left out). work: fp32 [c.rows, c.cols],
  // what it holds is lost.
  virtual void MatmulAdd(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b,
                         ConstMatrix residual, Matrix c, Matrix work) = 0;
  // Whether an accumulating Matmul into fp32 gives the bits of the product followed by Add. It may
  // start its sums from c instead.
  virtual bool AddsWholeProducts() const = 0;

  // --- sums in canonical order
  // ---------------------------------------------------------------------------------- acc += x,
  // both fp32 [n, m].
  virtual void Add(ConstMatrix x, Matrix acc) = 0;
  // out = residual + tree(parts): the balanced binary tree over parts (count a power of two, at
  // most 64), in fp32: tree(p[0..k)) = tree(p[0..k/2)) + tree(p[k/2..k)). parts fp32; residual may
  // have null data (then it is left out); residual and out are of one dtype, or out is fp32. All
  // [n, m].
  virtual void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) = 0;
  // sums[k] (device, fp64) = sum of x[i]^2 over the elements of runs[k], fp32. The order follows
  // from a run's length alone; on the CPU: 16 fp64 lanes (lane = i mod 16) folded by halves.
  virtual void SumsOfSquares(const float* x, std::span<const ElementRun> runs, double* sums) = 0;
  // sums[run.sum] (device) += WordSum (word_sum.h) of each run's bytes of `data`, device memory:
  // the same on every backend.
  virtual void WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) = 0;
  // acc = max(acc, x), both fp32 [n, m].
  virtual void Max(ConstMatrix x, Matrix acc) = 0;

  // --- embedding
  // ------------------------------------------------------------------------------------------------
  // out[t] = table[tokens[t] - row_begin] + 0 where that row is in the table (the "+ 0" turns -0
  // into +0, as a sum over slices would); other rows of out are set to zero. table [w, h], out [n,
  // h], both dtype. tokens: device memory.
  virtual void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin,
                                Matrix out) = 0;
  // dtable[tokens[t] - row_begin] += dout[t], in token order. dtable fp32.
  virtual void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin,
                                 Matrix dtable) = 0;

  // --- RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight
  // ------------------------------------ x, y [n, h] dtype; weight [1, h] dtype; rstd fp32 [n].
  virtual void RmsNormForward(ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                              float* rstd) = 0;
  // dx = dresidual + dnorm(dy); dresidual may have null data (then 0) and may alias dx. dweight:
  // fp32 [k, h], k divides n. Row j += the sum over rows [j n/k, (j + 1) n/k), in order on the
  // CPU, with the bits of a call on that slice alone with k = 1.
  virtual void RmsNormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                               ConstMatrix dresidual, Matrix dx, Matrix dweight) = 0;

  // --- rotary embedding (Su et al. 2021), halves paired as in Hugging Face's Llama
  // --------------------------------- Rotates the q and k heads of packed qkv rows in place; row r
  // is at position r mod shape.sequence. cos, sin: fp32 [sequence, head_dim / 2]. `inverse` rotates
  // back: the backward pass on gradients.
  virtual void Rope(Matrix qkv, const AttentionShape& shape, const float* cos, const float* sin,
                    bool inverse) = 0;

  // --- causal grouped-query attention, tiled over the sequence (Dao et al. 2022)
  // ---------------------------------- No sequence x sequence buffer, with one exception: cuDNN's
  // backward without atomics keeps the gradients of scores in bf16, for a slice of the heads at a
  // time (at most 1 GiB, or one key/value head with its queries where that takes more).
  // out [rows, out_cols]; lse fp32 [batch, q_heads, sequence]: log-sum-exp of the scaled scores.
  // scale = 1/sqrt(head_dim).
  virtual void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out,
                                float* lse) = 0;
  // dqkv [rows, qkv_cols] is overwritten.
  virtual void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out,
                                 const float* lse, const AttentionShape& shape, Matrix dqkv) = 0;

  // --- SwiGLU (Shazeer 2020): out = silu(gate) * up
  // --------------------------------------------------------------- gate_up [n, 2f]: gate columns
  // first, then up. out [n, f].
  virtual void SwiGluForward(ConstMatrix gate_up, Matrix out) = 0;
  // dgate_up overwritten (may alias gate_up); also writes the forward result to `out` again, for
  // the weight gradient.
  virtual void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up,
                              Matrix out) = 0;

  // --- vocabulary-parallel cross-entropy, in three passes over a slice of logits
  // ------------------------------------ logits fp32 [n, w] are the columns [column_begin,
  // column_begin + w) of the whole vocabulary. row_max[t] = max over the slice.
  virtual void CrossEntropyMax(ConstMatrix logits, float* row_max) = 0;
  // With row_max now over the whole vocabulary: logits <- exp(logits - row_max); row_sum[t] = its
  // sum over the slice (16 fp32 lanes folded by halves); target_logit[t] = logits[t, targets[t]] -
  // row_max[t] where the target is in the slice, else 0.
  virtual void CrossEntropySum(Matrix logits, const float* row_max, const int32_t* targets,
                               int64_t column_begin, float* row_sum, float* target_logit) = 0;
  // *loss (device, fp64) += sum over rows of log(row_sum) - target_logit, row_sum and target_logit
  // over the whole vocabulary. The order follows from `rows` alone; on the CPU: row order.
  virtual void CrossEntropyLoss(const float* row_sum, const float* target_logit, int64_t rows,
                                double* loss) = 0;
  // With row_sum now over the whole vocabulary: dlogits = (exp / row_sum - [column is the target])
  // * scale. dlogits is dtype [n, w] and may alias logits when it is fp32.
  virtual void CrossEntropyGradient(ConstMatrix exp_logits, const float* row_sum,
                                    const int32_t* targets, int64_t column_begin, float scale,
                                    Matrix dlogits) = 0;

  // --- optimizer
  // ------------------------------------------------------------------------------------------------
  // One fused pass over `count` elements: g = gradient * scale; m, v, master fp32 updated; param
  // (dtype) = master rounded. param.data may be master itself (fp32).
  virtual void AdamW(const AdamWStep& step, const float* gradient, float* master, float* exp_avg,
                     float* exp_avg_sq, Matrix param) = 0;
};

// The CPU backend. `threads` > 1 lets matmuls use that many OpenMP threads; the results may depend
// on it, so a run fixes it.
std::unique_ptr<Ops> NewCpuOps(int threads);

// The instruction set that the matmul library dispatches to here ("avx512_core_bf16", "avx2", ...):
// part of what fixes the bits.
std::string CpuIsa();
// The matmul library of the CPU backend and its version: "oneDNN 2.6.3".
std::string CpuLibrary();

// Whether bf16 matmuls have hardware here; without it they still run, slowly, through the library's
// emulation.
bool CpuHasBF16();

// The GPUs that this process can use: 0 without a driver, without a device, or in a build without
// CUDA (kernels/no_cuda).
int CudaDeviceCount();
// Whether this build has the CUDA backend at all.
bool CudaIsBuilt();
// The architectures whose code this build has: "sm_80 sm_90a sm_100". Empty without the backend.
std::string CudaArchitectures();
// The CUDA backend on one device, with a stream of its own. Unavailable, naming the reason, where
// there is no such device; Unimplemented in a build without CUDA.
absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(int device);
// What fixes the bits of a device's results: its architecture and multiprocessors, and the versions
// of the libraries. "sm_90 132 cublas 13.1.0 cudnn 9.19.0".
absl::StatusOr<std::string> CudaIsa(int device);
// What people and the driver call a device, and what of its memory nobody has taken yet.
struct CudaDevice {
  std::string name;        // "NVIDIA H100 80GB HBM3".
  std::string pci_bus_id;  // "0000:1b:00.0".
  size_t free_bytes = 0;
};
absl::StatusOr<CudaDevice> DescribeCudaDevice(int device);

}  // namespace perdure
