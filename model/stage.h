// One pipeline stage of a Llama: forward and backward of a run of blocks, with the embedding in
// front of the first stage and the final norm, the head and the loss behind the last.
//
// What is canonical: every matmul has the shape of one of the V slices, whatever T is; sums over
// slices are balanced trees (local subtree, then the tensor axis); rows of the residual stream are
// split over T in V sequence slices, and norm-weight gradients are kept per sequence slice until
// the leaf ends. So the bits depend on (model, V, micro-batch, context) and not on T, P or D.
//
// Letters: M = micro_batch * context rows; Mt = M / T own rows; h hidden; per slice: c = (q + 2 kv)
// head_dim columns of qkv, a = q head_dim of attention, f of the feed-forward.
//
// A Stage lives for one phase (its context fixes its memory). One thread. Passes enqueue and
// return; nothing here touches device memory or waits for it. Errors are the tensor axis' or the
// parameter access' (the device's come from Ops::Sync); after one the stage must not be used again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "model/access.h"
#include "model/arena.h"
#include "model/config.h"

namespace perdure {

class Bump;

struct StageOptions {
  ModelConfig model;
  DType dtype = DType::kF32;
  TensorSlot slot;
  int64_t micro_batch = 1;  // Samples.
  int64_t context = 0;      // Tokens per sample.
  double rope_theta = 10000;
  bool recompute =
      false;      // Keep only each block's input; run the block again in the backward pass.
  int slots = 1;  // Micro-batches in flight at once.
  // Buckets of this stage, as indices for ParameterAccess: first_bucket, first_bucket + 1, ... in
  // layer order.
  int first_bucket = 0;
};

class Stage {
 public:
  // `buckets`: this stage's alone, contiguous layers. Pointers must outlive the stage.
  Stage(const StageOptions& options, std::span<const Bucket> buckets, const AtomTable* table,
        Ops* ops, TensorAxis* axis, ParameterAccess* access);
  ~Stage();
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  bool has_embedding() const;
  bool has_head() const;
  // [Mt, h]: where the input of a slot is to be put before Forward (stages without embedding) ...
  Matrix Input(int slot);
  // ... and where its output lies after Forward, until the slot's Backward (stages without head).
  Matrix Output(int slot);

  // tokens: M ids, device memory; only the first stage reads them.
  absl::Status Forward(int slot, const int32_t* tokens);

  struct BackwardOptions {
    const int32_t* tokens = nullptr;   // First stage: for the embedding's gradient.
    const int32_t* targets = nullptr;  // Last stage: M ids.
    Matrix output_gradient;            // [Mt, h], other than the last stage.
    Matrix input_gradient;             // [Mt, h], other than the first stage: written.
    float loss_scale = 1;              // Last stage: 1 / tokens of the step.
    bool first_of_leaf = true;         // Gradients are overwritten instead of added to.
    bool last_of_leaf = true;  // GradientsReady is called for each bucket, last bucket first.
    // Last stage: device memory, += sum of the tokens' losses, fp64, rows in order.
    double* loss = nullptr;
  };
  absl::Status Backward(int slot, const BackwardOptions& options);

  // A micro-batch that this replica does not have: touches weights in the same order as the real
  // passes do (gathers are collective), and finishes the leaf. `leaf_has_gradient`: some
  // micro-batch of the leaf was real.
  absl::Status PhantomForward();
  absl::Status PhantomBackward(bool last_of_leaf, bool leaf_has_gradient);

  // Device bytes that a stage of these options allocates, by kind.
  struct Memory {
    int64_t activations = 0;  // Of all slots.
    int64_t work = 0;         // Shared by all blocks.
  };
  static Memory MemoryOf(const StageOptions& options, int64_t blocks, bool embedding, bool head);

 private:
  struct Block;         // Activations of one block for one micro-batch.
  struct Work;          // Buffers shared by all blocks.
  struct BlockWeights;  // Views into a bucket.

  void SetShape();
  void TakeActivations(Bump& bump);

  BlockWeights ViewBlock(const Bucket& bucket, const void* base, DType dtype) const;
  absl::Status ForwardBlock(const Bucket& bucket, const void* weights, Block& block, Matrix out);
  absl::Status BackwardBlock(const Bucket& bucket, const void* weights, float* gradients,
                             Block& block, Matrix dout, Matrix dx, bool first_of_leaf);
  absl::Status BackwardFeedForward(const BlockWeights& w, const BlockWeights& g, Block& block,
                                   Matrix dout, Matrix dx, float* partials, bool first_of_leaf);
  absl::Status BackwardAttention(const BlockWeights& w, const BlockWeights& g, Block& block,
                                 Matrix dout, Matrix dx, float* partials, bool first_of_leaf);
  absl::Status ForwardEmbedding(const Bucket& bucket, const void* weights, const int32_t* tokens,
                                Matrix out);
  absl::Status BackwardEmbedding(const Bucket& bucket, float* gradients, Matrix dx,
                                 const BackwardOptions& options);
  absl::Status BackwardHead(const Bucket& bucket, const void* weights, float* gradients, Matrix x,
                            Matrix dx, const BackwardOptions& options);
  absl::Status HeadChunk(int64_t chunk, ConstMatrix all_rows, const Bucket& bucket,
                         const void* weights, float* gradients, const BackwardOptions& options);
  int64_t HeadRows() const;  // Of one chunk.

  // All rows of an own-rows matrix: itself when T is 1, else gathered into `space`.
  absl::StatusOr<ConstMatrix> GatherRows(ConstMatrix own, Matrix space);
  // out = residual + tree over all V slices of the local parts, own rows.
  absl::Status SumSlices(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out);
  // The same where the parts are products a_s op(b_s), s over the local slices in order: first
  // AddProduct for each, then FinishProducts. Rows of out from first_row on.
  struct ProductSum {
    ConstMatrix residual;
    Matrix out;
    int64_t first_row = 0;
  };
  void AddProduct(const ProductSum& sum, size_t slice, Transpose transpose_b, ConstMatrix a,
                  ConstMatrix b);
  absl::Status FinishProducts(const ProductSum& sum);
  // A sum for each sequence slice, so that weight gradients do not depend on T. partials: [V/T],
  // `stride` apart.
  void NormBackward(ConstMatrix dy, ConstMatrix x, ConstMatrix weight, const float* rstd,
                    ConstMatrix dresidual, Matrix dx, float* partials, int64_t stride,
                    bool first_of_leaf);
  absl::Status FinishNorms(const Bucket& bucket, const float* partials, int64_t norms,
                           float* gradients);
  absl::Status FinishBucket(int bucket, bool last_of_leaf, bool leaf_has_gradient);

  Block& BlockOf(int slot, int64_t block);
  const Bucket& BucketAt(int index) const { return buckets_[static_cast<size_t>(index)]; }

  StageOptions options_;
  std::vector<Bucket> buckets_;
  const AtomTable* table_;
  Ops* ops_;
  TensorAxis* axis_;
  ParameterAccess* access_;
  bool has_embedding_ = false;
  bool has_head_ = false;
  int64_t blocks_ = 0;
  int64_t rows_ = 0;      // M.
  int64_t own_rows_ = 0;  // Mt.
  AttentionShape attention_;
  void* slab_ = nullptr;                         // One allocation for everything below.
  std::vector<std::vector<Block>> activations_;  // [slot][block]
  std::vector<Matrix> final_;                    // [slot]: the stage's output.
  std::unique_ptr<Work> work_;
};

}  // namespace perdure
