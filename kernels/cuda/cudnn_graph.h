// cuDNN's graph interface, as much of it as attention needs: calls that keep their first failure,
// and a graph of products, reductions and element-wise steps on tensors of four dimensions.
//
// cuDNN matches a graph with its fused kernels by its form, down to the order of operations and the
// types of the tensors between them. Computation is in fp32.
#pragma once

#include <cudnn_graph.h>
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace perdure::cuda::cudnn {

struct DestroyDescriptor {
  void operator()(cudnnBackendDescriptor_t descriptor) const {
    (void)cudnnBackendDestroyDescriptor(descriptor);
  }
};
using Descriptor = std::unique_ptr<void, DestroyDescriptor>;

// A chain of calls that keeps its first failure; the calls after it are not made.
class Calls {
 public:
  bool ok() const { return status_ == CUDNN_STATUS_SUCCESS; }
  int status() const { return status_; }
  const std::string& text() const { return text_; }

  void Note(cudnnStatus_t status, std::string_view what) {
    if (status == CUDNN_STATUS_SUCCESS || !ok()) return;
    std::array<char, 1024> reason{};
    cudnnGetLastErrorString(reason.data(), reason.size());
    status_ = status;
    text_ = fmt::format("{}: {}: {}", what, cudnnGetErrorString(status), reason.data());
  }

  Descriptor Create(cudnnBackendDescriptorType_t type, std::string_view what) {
    cudnnBackendDescriptor_t descriptor = nullptr;
    if (ok()) Note(cudnnBackendCreateDescriptor(type, &descriptor), what);
    return Descriptor(descriptor);
  }
  void Finalize(const Descriptor& descriptor, std::string_view what) {
    if (ok()) Note(cudnnBackendFinalize(descriptor.get()), what);
  }
  void Set(const Descriptor& descriptor, cudnnBackendAttributeName_t name,
           cudnnBackendAttributeType_t type, int64_t count, const void* values,
           std::string_view what) {
    if (ok()) Note(cudnnBackendSetAttribute(descriptor.get(), name, type, count, values), what);
  }
  void Set(const Descriptor& descriptor, cudnnBackendAttributeName_t name,
           cudnnBackendDescriptor_t value, std::string_view what) {
    Set(descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value, what);
  }
  // Returns how many elements there are; at most `capacity` are written.
  int64_t Get(const Descriptor& descriptor, cudnnBackendAttributeName_t name,
              cudnnBackendAttributeType_t type, int64_t capacity, void* values,
              std::string_view what) {
    int64_t count = 0;
    if (ok())
      Note(cudnnBackendGetAttribute(descriptor.get(), name, type, capacity, &count, values), what);
    return ok() ? count : 0;
  }

 private:
  cudnnStatus_t status_ = CUDNN_STATUS_SUCCESS;
  std::string text_;
};

using Dims = std::array<int64_t, 4>;

inline Dims RowMajor(const Dims& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

inline Dims SwapLast(const Dims& x) { return {x[0], x[1], x[3], x[2]}; }

struct Tensor {
  cudnnBackendDescriptor_t descriptor = nullptr;
  Dims dims{};
  Dims strides{};
};

// Element-wise y = mode(x), mode(x, b), or mode(x, b, t).
struct Step {
  cudnnPointwiseMode_t mode;
  const Tensor& x;
  const Tensor* b = nullptr;
  const Tensor* t = nullptr;
  cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  int64_t axis = -1;  // Of an index.
};

// Operations in the order in which they are added.
class Graph {
 public:
  // Numbers from here on name tensors without memory.
  static constexpr int64_t kFirstInner = 1000;

  // `calls` outlives the graph.
  explicit Graph(Calls* calls) : calls_(calls) {}

  // What an execution passes memory for, by this number.
  Tensor Real(int64_t id, cudnnDataType_t type, const Dims& dims, const Dims& strides) {
    return MakeTensor(id, type, dims, strides, {});
  }
  // One fp32 number, read from host memory at each execution.
  Tensor Scalar(int64_t id) {
    return MakeTensor(id, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, {.by_value = true});
  }
  // A tensor that gets no memory.
  Tensor Inner(cudnnDataType_t type, const Dims& dims, const Dims& strides) {
    return MakeTensor(next_inner_++, type, dims, strides, {.inner = true});
  }
  Tensor Inner(cudnnDataType_t type, const Dims& dims) { return Inner(type, dims, RowMajor(dims)); }

  // y = a b, over the last two dimensions; b may have fewer heads.
  void Multiply(const Tensor& a, const Tensor& b, const Tensor& y) {
    constexpr std::string_view kWhat = "a product";
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Descriptor product = calls_->Create(CUDNN_BACKEND_MATMUL_DESCRIPTOR, kWhat);
    calls_->Set(product, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute, kWhat);
    calls_->Finalize(product, kWhat);
    Descriptor operation = calls_->Create(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, y.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, product.get(), kWhat);
    Add(std::move(operation), std::move(product), kWhat);
  }
  Tensor Multiply(const Tensor& a, const Tensor& b) {
    Tensor y = Inner(CUDNN_DATA_FLOAT, {a.dims[0], a.dims[1], a.dims[2], b.dims[3]});
    Multiply(a, b, y);
    return y;
  }

  // y = x reduced over the dimensions where y has 1, or fewer heads than x.
  void Reduce(cudnnReduceTensorOp_t op, const Tensor& x, const Tensor& y) {
    constexpr std::string_view kWhat = "a reduction";
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Descriptor reduction = calls_->Create(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, kWhat);
    calls_->Set(reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute,
                kWhat);
    calls_->Set(reduction, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1,
                &op, kWhat);
    calls_->Finalize(reduction, kWhat);
    Descriptor operation = calls_->Create(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction.get(), kWhat);
    Add(std::move(operation), std::move(reduction), kWhat);
  }
  Tensor ReduceRows(cudnnReduceTensorOp_t op, const Tensor& x) {
    Tensor y = Inner(CUDNN_DATA_FLOAT, {x.dims[0], x.dims[1], x.dims[2], 1});
    Reduce(op, x, y);
    return y;
  }

  // The same elements under other dimensions and strides.
  Tensor View(const Tensor& x, const Dims& dims, const Dims& strides) {
    constexpr std::string_view kWhat = "a view";
    Tensor y = Inner(CUDNN_DATA_BFLOAT16, dims, strides);
    Descriptor operation = calls_->Create(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y.descriptor, kWhat);
    Add(std::move(operation), nullptr, kWhat);
    return y;
  }
  Tensor Transpose(const Tensor& x) { return View(x, SwapLast(x.dims), SwapLast(x.strides)); }

  void Apply(const Step& step, const Tensor& y) {
    constexpr std::string_view kWhat = "an element-wise step";
    Descriptor mode = calls_->Create(CUDNN_BACKEND_POINTWISE_DESCRIPTOR, kWhat);
    calls_->Set(mode, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &step.mode, kWhat);
    calls_->Set(mode, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &step.compute,
                kWhat);
    if (step.axis >= 0)
      calls_->Set(mode, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &step.axis, kWhat);
    calls_->Finalize(mode, kWhat);
    Descriptor operation = calls_->Create(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode.get(), kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, step.x.descriptor, kWhat);
    calls_->Set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor, kWhat);
    if (step.b != nullptr)
      calls_->Set(operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, step.b->descriptor, kWhat);
    if (step.t != nullptr)
      calls_->Set(operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, step.t->descriptor, kWhat);
    Add(std::move(operation), std::move(mode), kWhat);
  }
  Tensor Apply(const Step& step, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    Tensor y = Inner(type, step.x.dims);
    Apply(step, y);
    return y;
  }

  // Scores, but `hidden` where the key is behind the query.
  Tensor HideFuture(const Tensor& scores, const Tensor& hidden) {
    const Tensor query =
        Apply({.mode = CUDNN_POINTWISE_GEN_INDEX, .x = scores, .axis = 2}, CUDNN_DATA_INT32);
    const Tensor key =
        Apply({.mode = CUDNN_POINTWISE_GEN_INDEX, .x = scores, .axis = 3}, CUDNN_DATA_INT32);
    const Tensor seen = Apply(
        {.mode = CUDNN_POINTWISE_CMP_GE, .x = query, .b = &key, .compute = CUDNN_DATA_BOOLEAN},
        CUDNN_DATA_BOOLEAN);
    return Apply({.mode = CUDNN_POINTWISE_BINARY_SELECT, .x = scores, .b = &hidden, .t = &seen});
  }

  // The whole, once all operations are in.
  Descriptor Finalize(cudnnHandle_t handle) {
    constexpr std::string_view kWhat = "the graph";
    std::vector<cudnnBackendDescriptor_t> operations;
    for (const Descriptor& operation : operations_) operations.push_back(operation.get());
    Descriptor graph = calls_->Create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, kWhat);
    calls_->Set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                static_cast<int64_t>(operations.size()), operations.data(), kWhat);
    if (handle != nullptr)
      calls_->Set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, kWhat);
    calls_->Finalize(graph, kWhat);
    return graph;
  }

 private:
  struct Kind {
    bool inner = false;
    bool by_value = false;
  };

  Tensor MakeTensor(int64_t id, cudnnDataType_t type, const Dims& dims, const Dims& strides,
                    Kind kind) {
    constexpr std::string_view kWhat = "a tensor";
    // A head of fp32 numbers begins anywhere; rows of bf16 are chosen to be aligned.
    const int64_t alignment = type == CUDNN_DATA_BFLOAT16 ? 16 : 4;
    Descriptor tensor = calls_->Create(CUDNN_BACKEND_TENSOR_DESCRIPTOR, kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data(), kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data(), kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id, kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment, kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &kind.inner, kWhat);
    calls_->Set(tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &kind.by_value,
                kWhat);
    calls_->Finalize(tensor, kWhat);
    parts_.push_back(std::move(tensor));
    return {parts_.back().get(), dims, strides};
  }

  void Add(Descriptor operation, Descriptor part, std::string_view what) {
    calls_->Finalize(operation, what);
    operations_.push_back(std::move(operation));
    parts_.push_back(std::move(part));
  }

  Calls* calls_;
  int64_t next_inner_ = kFirstInner;
  std::vector<Descriptor> operations_;
  std::vector<Descriptor> parts_;
};

}  // namespace perdure::cuda::cudnn
