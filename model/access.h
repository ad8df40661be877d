// What a stage of the model asks of the runtime: weights and gradient space by bucket, and the
// tensor axis' collectives. The runtime implements them over ZeRO's sharding and a communication
// group; tests implement them in memory.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class ParameterAccess {
 public:
  virtual ~ParameterAccess() = default;
  // The bucket's weights in the compute dtype, valid until Release. Calls come in one order on
  // every data-parallel rank.
  virtual absl::StatusOr<const void*> Weights(int bucket) = 0;
  virtual void Release(int bucket) = 0;
  // Where the current leaf's gradient of the bucket is summed, fp32; valid until GradientsReady.
  virtual absl::StatusOr<float*> Gradients(int bucket) = 0;
  // The leaf's gradient of this bucket is complete.
  virtual absl::Status GradientsReady(int bucket) = 0;
};

// The T ranks that share a block's matmuls. All sums are balanced binary trees over rank index, in
// fp32. A call takes its place in the order of the ops' stream, as an operation does: nobody
// synchronises before or after it.
class TensorAxis {
 public:
  virtual ~TensorAxis() = default;
  // out: T blocks of `bytes`, in rank order.
  virtual absl::Status AllGather(const void* in, size_t bytes, void* out) = 0;
  // partial: T blocks of `count`; out: this rank's block of the sum.
  virtual absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) = 0;
  virtual absl::Status AllReduceTree(const float* partial, int64_t count, float* out) = 0;
};

}  // namespace perdure
