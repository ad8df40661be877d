#include "kernels/cuda/attention_cudnn.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cuda/cudnn_graph.h"
#include "runtime/base/check.h"

namespace perdure::cuda {
namespace {

using cudnn::Calls;
using cudnn::Descriptor;
using cudnn::Dims;
using cudnn::Graph;
using cudnn::Tensor;

// --- attention as a graph ---------------------------------------------------------------------
// Dimensions are [batch, heads, positions, head_dim]; all matrices are row-major with a stride.

// What an execution passes memory for.
enum Operand : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kOut,
  kLse,
  kDout,
  kDquery,
  kDkey,
  kDvalue,
  kOutDot,  // dot(dout, out) of each query, which cuDNN wants memory for.
  kScale,
  kOne,
  kHidden,  // Minus infinity.
};

struct Strides {
  int64_t qkv = 0;
  int64_t out = 0;
  int64_t dout = 0;
  int64_t dqkv = 0;
  auto operator<=>(const Strides&) const = default;
};

Tensor Heads(Graph& graph, Operand operand, const AttentionShape& shape, int64_t heads,
             int64_t stride) {
  return graph.Real(operand, CUDNN_DATA_BFLOAT16,
                    {shape.batch, heads, shape.sequence, shape.head_dim},
                    {shape.sequence * stride, shape.head_dim, stride, 1});
}

// As Heads(), but each head transposed.
Tensor HeadsTransposed(Graph& graph, Operand operand, const AttentionShape& shape, int64_t heads,
                       int64_t stride) {
  return graph.Real(operand, CUDNN_DATA_BFLOAT16,
                    {shape.batch, heads, shape.head_dim, shape.sequence},
                    {shape.sequence * stride, shape.head_dim, 1, stride});
}

// One fp32 number for each query.
Tensor Rows(Graph& graph, Operand operand, const AttentionShape& shape) {
  const Dims dims{shape.batch, shape.q_heads, shape.sequence, 1};
  return graph.Real(operand, CUDNN_DATA_FLOAT, dims, cudnn::RowMajor(dims));
}

void AddForward(Graph& graph, const AttentionShape& shape, const Strides& strides) {
  const Tensor query = Heads(graph, kQuery, shape, shape.q_heads, strides.qkv);
  const Tensor key = HeadsTransposed(graph, kKey, shape, shape.kv_heads, strides.qkv);
  const Tensor value = Heads(graph, kValue, shape, shape.kv_heads, strides.qkv);
  const Tensor out = Heads(graph, kOut, shape, shape.q_heads, strides.out);
  const Tensor lse = Rows(graph, kLse, shape);
  const Tensor scale = graph.Scalar(kScale);
  const Tensor hidden = graph.Scalar(kHidden);

  const Tensor products = graph.Multiply(query, key);
  const Tensor scaled = graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = products, .b = &scale});
  const Tensor scores = graph.HideFuture(scaled, hidden);
  const Tensor largest = graph.ReduceRows(CUDNN_REDUCE_TENSOR_MAX, scores);
  const Tensor lowered = graph.Apply({.mode = CUDNN_POINTWISE_SUB, .x = scores, .b = &largest});
  const Tensor exponentials = graph.Apply({.mode = CUDNN_POINTWISE_EXP, .x = lowered});
  const Tensor sum = graph.ReduceRows(CUDNN_REDUCE_TENSOR_ADD, exponentials);
  const Tensor log_sum = graph.Apply({.mode = CUDNN_POINTWISE_LOG, .x = sum});
  graph.Apply({.mode = CUDNN_POINTWISE_ADD, .x = largest, .b = &log_sum}, lse);
  const Tensor probabilities =
      graph.Apply({.mode = CUDNN_POINTWISE_DIV, .x = exponentials, .b = &sum}, CUDNN_DATA_BFLOAT16);
  graph.Multiply(probabilities, value, out);
}

// y = a b summed over the query heads of each of y's heads.
void MultiplyAndGather(Graph& graph, const Tensor& a, const Tensor& b, const Tensor& y) {
  if (a.dims[1] == y.dims[1]) {
    graph.Multiply(a, b, y);
    return;
  }
  const Tensor of_each_head =
      graph.Inner(CUDNN_DATA_BFLOAT16, {a.dims[0], a.dims[1], a.dims[2], b.dims[3]});
  graph.Multiply(a, b, of_each_head);
  graph.Reduce(CUDNN_REDUCE_TENSOR_ADD, of_each_head, y);
}

void AddBackward(Graph& graph, const AttentionShape& shape, const Strides& strides) {
  const Tensor query = Heads(graph, kQuery, shape, shape.q_heads, strides.qkv);
  const Tensor key = HeadsTransposed(graph, kKey, shape, shape.kv_heads, strides.qkv);
  const Tensor value = HeadsTransposed(graph, kValue, shape, shape.kv_heads, strides.qkv);
  const Tensor out = Heads(graph, kOut, shape, shape.q_heads, strides.out);
  const Tensor dout = Heads(graph, kDout, shape, shape.q_heads, strides.dout);
  const Tensor dquery = Heads(graph, kDquery, shape, shape.q_heads, strides.dqkv);
  const Tensor dkey = Heads(graph, kDkey, shape, shape.kv_heads, strides.dqkv);
  const Tensor dvalue = Heads(graph, kDvalue, shape, shape.kv_heads, strides.dqkv);
  const Tensor lse = Rows(graph, kLse, shape);
  const Tensor out_dot = Rows(graph, kOutDot, shape);
  const Tensor scale = graph.Scalar(kScale);
  const Tensor one = graph.Scalar(kOne);
  const Tensor hidden = graph.Scalar(kHidden);

  const Tensor dout_out = graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = dout, .b = &out});
  const Tensor sum = graph.ReduceRows(CUDNN_REDUCE_TENSOR_ADD, dout_out);
  // The form that cuDNN knows has a factor here: dropout's.
  graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = sum, .b = &one}, out_dot);

  const Tensor products = graph.Multiply(query, key);
  const Tensor scaled = graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = products, .b = &scale});
  const Tensor lowered = graph.Apply({.mode = CUDNN_POINTWISE_SUB, .x = scaled, .b = &lse});
  const Tensor scores = graph.HideFuture(lowered, hidden);
  const Tensor probabilities = graph.Apply({.mode = CUDNN_POINTWISE_EXP, .x = scores});
  MultiplyAndGather(graph, graph.Transpose(probabilities), dout, dvalue);

  const Tensor dprobabilities = graph.Multiply(dout, value);
  const Tensor centred =
      graph.Apply({.mode = CUDNN_POINTWISE_SUB, .x = dprobabilities, .b = &out_dot});
  const Tensor dscores =
      graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = centred, .b = &probabilities});
  const Tensor dproducts = graph.Apply({.mode = CUDNN_POINTWISE_MUL, .x = dscores, .b = &scale});
  MultiplyAndGather(graph, graph.Transpose(dproducts), query, dkey);

  // Straight into dQ, not through an fp32 sum in memory, which is where atomics would add.
  graph.Multiply(dproducts, graph.Transpose(key), dquery);
}

// --- plans ------------------------------------------------------------------------------------

enum class Pass : int64_t { kForward, kBackward };

// An executable graph.
class Plan {
 public:
  Plan(Pass pass, const AttentionShape& shape, const Strides& strides, cudnnHandle_t handle)
      : graph_(&calls_), scale_(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {
    if (pass == Pass::kForward) {
      AddForward(graph_, shape, strides);
    } else {
      AddBackward(graph_, shape, strides);
    }
    whole_ = graph_.Finalize(handle);
    // The fallbacks' list is asked only when the first is of no use.
    if (calls_.ok() && !Choose(CUDNN_HEUR_MODE_A, handle)) Choose(CUDNN_HEUR_MODE_FALLBACK, handle);
    if (calls_.ok() && executable_ == nullptr) calls_ = refusal_;
    calls_.Get(executable_, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
               &work_bytes_, "the size of the work space");
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Why there is none.
  const Calls& calls() const { return calls_; }
  int64_t work_bytes() const { return work_bytes_; }

  // REQUIRES: calls().ok().
  Calls Execute(cudnnHandle_t handle,
                std::initializer_list<std::pair<Operand, const void*>> operands, void* work) const {
    constexpr std::string_view kWhat = "execution";
    std::vector<int64_t> ids;
    std::vector<const void*> memory;
    for (const auto& [operand, at] : operands) {
      ids.push_back(operand);
      memory.push_back(at);
    }
    const auto count = static_cast<int64_t>(ids.size());
    Calls calls;
    Descriptor pack = calls.Create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, kWhat);
    calls.Set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count,
              memory.data(), kWhat);
    calls.Set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data(), kWhat);
    calls.Set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &work, kWhat);
    calls.Finalize(pack, kWhat);
    if (calls.ok()) calls.Note(cudnnBackendExecute(handle, executable_.get(), pack.get()), kWhat);
    return calls;
  }

  // The scalars, for Execute().
  const float* scale() const { return &scale_; }
  const float* one() const { return &one_; }
  const float* hidden() const { return &hidden_; }

 private:
  // Makes the plan of the first proposal that can be made; false if there is none.
  bool Choose(cudnnBackendHeurMode_t mode, cudnnHandle_t handle) {
    constexpr std::string_view kWhat = "the choice of an engine";
    Calls calls;
    Descriptor heuristics = calls.Create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, kWhat);
    calls.Set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole_.get(), kWhat);
    calls.Set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode, kWhat);
    calls.Finalize(heuristics, kWhat);
    int64_t count = calls.Get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                              CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr, kWhat);
    std::vector<Descriptor> configs;
    std::vector<cudnnBackendDescriptor_t> raw_configs;
    for (int64_t i = 0; i < count; ++i) {
      configs.push_back(calls.Create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, kWhat));
      raw_configs.push_back(configs.back().get());
    }
    // Now only those that support the graph are counted.
    if (count > 0)
      count = calls.Get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                        count, raw_configs.data(), kWhat);
    if (calls.ok() && count == 0)
      calls.Note(CUDNN_STATUS_NOT_SUPPORTED, "no engine takes the graph");
    for (int64_t i = 0; i < count && executable_ == nullptr; ++i) {
      Calls attempt;
      Descriptor plan = attempt.Create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, kWhat);
      attempt.Set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, kWhat);
      attempt.Set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, raw_configs[i], kWhat);
      attempt.Finalize(plan, kWhat);
      if (attempt.ok()) {
        config_ = std::move(configs[i]);
        executable_ = std::move(plan);
      } else if (calls.ok()) {
        calls = attempt;
      }
    }
    if (refusal_.ok()) refusal_ = calls;
    return executable_ != nullptr;
  }

  Calls calls_;
  Calls refusal_;  // The first reason why no proposal served.
  Graph graph_;
  Descriptor whole_;
  Descriptor config_;
  Descriptor executable_;
  int64_t work_bytes_ = 0;
  const float scale_;
  const float one_ = 1;
  const float hidden_ = -std::numeric_limits<float>::infinity();
};

// Element (row, col) of a bf16 matrix.
const char* At(ConstMatrix x, int64_t row, int64_t col) {
  return static_cast<const char*>(x.data) + (row * x.stride + col) * 2;
}

}  // namespace

bool CudnnReads(ConstMatrix x) {
  return x.dtype == DType::kBF16 && x.stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

struct CudnnAttention::Impl {
  // The plan, made at first need; null where cuDNN has none, which is noted once.
  const Plan* Find(Pass pass, const AttentionShape& shape, const Strides& strides) {
    const Key key{static_cast<int64_t>(pass),
                  shape.batch,
                  shape.sequence,
                  shape.q_heads,
                  shape.kv_heads,
                  shape.head_dim,
                  strides.qkv,
                  strides.out,
                  strides.dout,
                  strides.dqkv};
    auto& plan = plans[key];
    if (plan == nullptr) {
      plan = std::make_unique<Plan>(pass, shape, strides, handle);
      Note(plan->calls(), pass, shape);
    }
    return plan->calls().ok() ? plan.get() : nullptr;
  }

  void Note(const Calls& calls, Pass pass, const AttentionShape& shape) {
    if (calls.ok()) return;
    stream->errors->Note(
        calls.status(), calls.text().c_str(),
        fmt::format("cuDNN attention {}, batch {} sequence {} heads {}/{} head_dim "
                    "{}",
                    pass == Pass::kForward ? "forward" : "backward", shape.batch, shape.sequence,
                    shape.q_heads, shape.kv_heads, shape.head_dim)
            .c_str());
  }

  using Key = std::array<int64_t, 10>;
  const Stream* stream = nullptr;
  Workspace* work = nullptr;
  cudnnHandle_t handle = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans;
};

CudnnAttention::CudnnAttention(const Stream* stream, Workspace* work)
    : impl_(std::make_unique<Impl>()) {
  impl_->stream = stream;
  impl_->work = work;
  Calls calls;
  calls.Note(cudnnCreate(&impl_->handle), "cudnnCreate");
  if (calls.ok()) calls.Note(cudnnSetStream(impl_->handle, stream->stream), "cudnnSetStream");
  stream->errors->Note(calls.status(), calls.text().c_str(), "cuDNN");
}

CudnnAttention::~CudnnAttention() {
  impl_->plans.clear();
  if (impl_->handle != nullptr) (void)cudnnDestroy(impl_->handle);
}

void CudnnAttention::Forward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse) {
  PERDURE_CHECK(CudnnTakes(shape, qkv.dtype) && CudnnReads(qkv) && CudnnReads(out));
  if (impl_->handle == nullptr) return;
  const Plan* plan = impl_->Find(Pass::kForward, shape, {.qkv = qkv.stride, .out = out.stride});
  if (plan == nullptr) return;
  void* work = impl_->work->Reserve(static_cast<size_t>(plan->work_bytes()));
  const int64_t key_column = shape.q_heads * shape.head_dim;
  const int64_t value_column = key_column + shape.kv_heads * shape.head_dim;
  const Calls calls = plan->Execute(impl_->handle,
                                    {{kQuery, qkv.data},
                                     {kKey, At(qkv, 0, key_column)},
                                     {kValue, At(qkv, 0, value_column)},
                                     {kOut, out.data},
                                     {kLse, lse},
                                     {kScale, plan->scale()},
                                     {kHidden, plan->hidden()}},
                                    work);
  impl_->Note(calls, Pass::kForward, shape);
}

void CudnnAttention::Backward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                              const AttentionShape& shape, Matrix dqkv) {
  PERDURE_CHECK(CudnnTakes(shape, qkv.dtype));
  PERDURE_CHECK(CudnnReads(dout) && CudnnReads(qkv) && CudnnReads(out) && CudnnReads(dqkv));
  if (impl_->handle == nullptr) return;
  const AttentionShape slice = CudnnBackwardSlice(shape);
  const Plan* plan =
      impl_->Find(Pass::kBackward, slice,
                  {.qkv = qkv.stride, .out = out.stride, .dout = dout.stride, .dqkv = dqkv.stride});
  if (plan == nullptr) return;

  // Work space: the products of dout and out, then the plan's own.
  const int64_t dots = slice.rows() * slice.q_heads;
  const int64_t dot_bytes = (dots * 4 + 255) / 256 * 256;
  char* work =
      static_cast<char*>(impl_->work->Reserve(static_cast<size_t>(dot_bytes + plan->work_bytes())));
  const int64_t group = shape.q_heads / shape.kv_heads;
  const int64_t d = shape.head_dim;
  for (int64_t sample = 0; sample < shape.batch; sample += slice.batch) {
    for (int64_t head = 0; head < shape.kv_heads; head += slice.kv_heads) {
      const int64_t row = sample * shape.sequence;
      const int64_t query_column = head * group * d;
      const int64_t key_column = (shape.q_heads + head) * d;
      const int64_t value_column = key_column + shape.kv_heads * d;
      const int64_t first_lse = (sample * shape.q_heads + head * group) * shape.sequence;
      const Calls calls = plan->Execute(impl_->handle,
                                        {{kQuery, At(qkv, row, query_column)},
                                         {kKey, At(qkv, row, key_column)},
                                         {kValue, At(qkv, row, value_column)},
                                         {kOut, At(out, row, query_column)},
                                         {kDout, At(dout, row, query_column)},
                                         {kLse, lse + first_lse},
                                         {kOutDot, work},
                                         {kDquery, At(dqkv, row, query_column)},
                                         {kDkey, At(dqkv, row, key_column)},
                                         {kDvalue, At(dqkv, row, value_column)},
                                         {kScale, plan->scale()},
                                         {kOne, plan->one()},
                                         {kHidden, plan->hidden()}},
                                        work + dot_bytes);
      impl_->Note(calls, Pass::kBackward, shape);
    }
  }
}

}  // namespace perdure::cuda
