// The library is column-major: it sees our row-major c as c^T = op(b)^T op(a)^T. A row-major matrix
// read by columns is its own transpose, so b comes first, a second, each with its own `transpose`,
// and nothing is moved.
#include "kernels/cuda/matmul.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <compare>
#include <map>
#include <string>

#include "kernels/cuda/kernels.h"
#include "runtime/base/check.h"

namespace perdure::cuda {
namespace {

// What an algorithm may use; Hopper's want 32 MiB.
constexpr uint64_t kWorkBytes = uint64_t{64} << 20;

// What is promised to the library of every operand's address; see Aligned.
constexpr uint32_t kAlignment = 16;

// Reductions of a split k: none, or of fp32 partial sums in a step of its own. The others round
// them to c's type, or add in c.
constexpr uint32_t kReductions =
    CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

// One product's shape: op(a) [m, k] times op(b) [k, n] into c [m, n]. Whether something is added is
// not of it: that is to be the same product, and then one addition.
struct Problem {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  DType dtype = DType::kF32, c_dtype = DType::kF32;

  auto operator<=>(const Problem&) const = default;
};

std::string Text(const Problem& p) {
  const auto name = [](DType dtype) { return dtype == DType::kF32 ? "fp32" : "bf16"; };
  const auto mark = [](Transpose transpose) { return transpose == Transpose::kYes ? "^T" : ""; };
  return fmt::format("m {} n {} k {}, a{} {} stride {}, b{} stride {}, c {} stride {}", p.m, p.n,
                     p.k, mark(p.transpose_a), name(p.dtype), p.a_stride, mark(p.transpose_b),
                     p.b_stride, name(p.c_dtype), p.c_stride);
}

cudaDataType_t LibraryType(DType dtype) { return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

cublasOperation_t LibraryTranspose(Transpose transpose) {
  return transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

// Everything of a call but the addresses. The descriptors are the library's structs themselves, not
// handles, and stay where they were initialised.
struct Plan {
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  cublasStatus_t status = CUBLAS_STATUS_NOT_INITIALIZED;  // Of making the plan.
  cublasLtMatmulDescOpaque_t product{};
  cublasLtMatrixLayoutOpaque_t a{}, b{}, c{};
  cublasLtMatmulAlgo_t algorithm{};
};

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlignment == 0; }

void CopyRows(const Stream& stream, ConstMatrix from, Matrix to) {
  const size_t size = SizeOf(from.dtype);
  stream.errors->Note(
      cudaMemcpy2DAsync(to.data, to.stride * size, from.data, from.stride * size, from.cols * size,
                        from.rows, cudaMemcpyDeviceToDevice, stream.stream),
      "cudaMemcpy2D of a matmul's operand");
}

// `view` in memory of ours with the same stride; its elements are whatever was there.
Matrix Elsewhere(Workspace& work, ConstMatrix view) {
  Matrix copy(nullptr, view.dtype, view.rows, view.cols);
  copy.stride = view.stride;
  copy.data = work.Reserve(((view.rows - 1) * view.stride + view.cols) * SizeOf(view.dtype));
  return copy;
}

}  // namespace

struct MatmulLibrary::Impl {
  explicit Impl(const Stream* on) : stream(on), work(on), a_copy(on), b_copy(on), c_copy(on) {
    Note(cublasLtCreate(&handle), "cublasLtCreate");
  }
  ~Impl() {
    if (handle != nullptr) (void)cublasLtDestroy(handle);
  }

  void Note(cublasStatus_t status, const char* what) const {
    if (status != CUBLAS_STATUS_SUCCESS)
      stream->errors->Note(static_cast<int>(status), cublasLtGetStatusString(status), what);
  }

  Plan& PlanFor(const Problem& problem) {
    const auto [found, is_new] = plans.try_emplace(problem);
    Plan& plan = found->second;
    if (is_new) {
      plan.status = Prepare(problem, plan);
      if (plan.status != CUBLAS_STATUS_SUCCESS)
        Note(plan.status, fmt::format("the choice of a matmul for {}", Text(problem)).c_str());
    }
    return plan;
  }

  cublasStatus_t Prepare(const Problem& p, Plan& plan) const;
  cublasStatus_t ChooseAlgorithm(Plan& plan) const;
  ConstMatrix Aligned(ConstMatrix view, Workspace& copy) const;
  // addend: null, or in c's layout.
  void Run(const Problem& problem, const void* a, const void* b, const void* addend, void* c);

  const Stream* stream;
  cublasLtHandle_t handle = nullptr;
  std::map<Problem, Plan> plans;
  Workspace work, a_copy, b_copy, c_copy;
};

// Each call's status counts, and the first bad one is the result.
#define PERDURE_RETURN_STATUS(call)                                                     \
  do {                                                                                  \
    if (const cublasStatus_t made = (call); made != CUBLAS_STATUS_SUCCESS) return made; \
  } while (false)

cublasStatus_t MatmulLibrary::Impl::Prepare(const Problem& p, Plan& plan) const {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  // Plain fp32 for fp32 operands: no TF32.
  PERDURE_RETURN_STATUS(cublasLtMatmulDescInit(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  // The library's first operand, its "A", is our b.
  const cublasOperation_t first = LibraryTranspose(p.transpose_b);
  const cublasOperation_t second = LibraryTranspose(p.transpose_a);
  PERDURE_RETURN_STATUS(cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                       &first, sizeof(first)));
  PERDURE_RETURN_STATUS(cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSB,
                                                       &second, sizeof(second)));
  // Its rows are our columns.
  const bool a_transposed = p.transpose_a == Transpose::kYes;
  const bool b_transposed = p.transpose_b == Transpose::kYes;
  const cudaDataType_t type = LibraryType(p.dtype);
  PERDURE_RETURN_STATUS(cublasLtMatrixLayoutInit(&plan.a, type, a_transposed ? p.m : p.k,
                                                 a_transposed ? p.k : p.m, p.a_stride));
  PERDURE_RETURN_STATUS(cublasLtMatrixLayoutInit(&plan.b, type, b_transposed ? p.k : p.n,
                                                 b_transposed ? p.n : p.k, p.b_stride));
  PERDURE_RETURN_STATUS(
      cublasLtMatrixLayoutInit(&plan.c, LibraryType(p.c_dtype), p.n, p.m, p.c_stride));
  return ChooseAlgorithm(plan);
}

cublasStatus_t MatmulLibrary::Impl::ChooseAlgorithm(Plan& plan) const {
  cublasLtMatmulPreferenceOpaque_t preference{};
  PERDURE_RETURN_STATUS(cublasLtMatmulPreferenceInit(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    return cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value));
  };
  PERDURE_RETURN_STATUS(prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkBytes));
  PERDURE_RETURN_STATUS(prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, kReductions));
  for (const auto operand :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    PERDURE_RETURN_STATUS(prefer(operand, kAlignment));
  cublasLtMatmulHeuristicResult_t choice{};
  int count = 0;
  PERDURE_RETURN_STATUS(cublasLtMatmulAlgoGetHeuristic(
      handle, &plan.product, &plan.b, &plan.a, &plan.c, &plan.c, &preference, 1, &choice, &count));
  if (count < 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  PERDURE_RETURN_STATUS(choice.state);
  if (choice.workspaceSize > kWorkBytes) return CUBLAS_STATUS_NOT_SUPPORTED;
  plan.algorithm = choice.algo;
  return CUBLAS_STATUS_SUCCESS;
}

// An operand at an odd address, which training has none of, is copied to an even one: another
// algorithm would take it where it lies, and give other bits.
ConstMatrix MatmulLibrary::Impl::Aligned(ConstMatrix view, Workspace& copy) const {
  if (IsAligned(view.data)) return view;
  const Matrix to = Elsewhere(copy, view);
  CopyRows(*stream, view, to);
  return to;
}

void MatmulLibrary::Impl::Run(const Problem& problem, const void* a, const void* b,
                              const void* addend, void* c) {
  Plan& plan = PlanFor(problem);
  if (plan.status != CUBLAS_STATUS_SUCCESS) return;
  const float alpha = 1.0f;
  const float beta = addend != nullptr ? 1.0f : 0.0f;
  const cublasStatus_t status =
      cublasLtMatmul(handle, &plan.product, &alpha, b, &plan.b, a, &plan.a, &beta,
                     addend != nullptr ? addend : c, &plan.c, c, &plan.c, &plan.algorithm,
                     work.Reserve(kWorkBytes), kWorkBytes, stream->stream);
  if (status != CUBLAS_STATUS_SUCCESS)
    Note(status,
         fmt::format("cublasLtMatmul of {}{}", Text(problem), addend != nullptr ? ", adding" : "")
             .c_str());
}

#undef PERDURE_RETURN_STATUS

MatmulLibrary::MatmulLibrary(const Stream* stream) : impl_(std::make_unique<Impl>(stream)) {}
MatmulLibrary::~MatmulLibrary() = default;

void MatmulLibrary::Multiply(Transpose transpose_a, Transpose transpose_b, ConstMatrix a,
                             ConstMatrix b, ConstMatrix addend, Matrix c) {
  const bool a_transposed = transpose_a == Transpose::kYes;
  const bool b_transposed = transpose_b == Transpose::kYes;
  const int64_t k = a_transposed ? a.rows : a.cols;
  PERDURE_CHECK((a_transposed ? a.cols : a.rows) == c.rows);
  PERDURE_CHECK((b_transposed ? b.rows : b.cols) == c.cols);
  PERDURE_CHECK((b_transposed ? b.cols : b.rows) == k);
  PERDURE_CHECK(a.dtype == b.dtype && (c.dtype == DType::kF32 || c.dtype == a.dtype));
  PERDURE_CHECK(a.stride >= a.cols && b.stride >= b.cols && c.stride >= c.cols);
  if (addend.data != nullptr) PERDURE_CHECK(SameShape(addend, c) && addend.dtype == c.dtype);
  if (c.size() == 0) return;
  if (k == 0) {
    if (addend.data == nullptr) Zero(*impl_->stream, c);
    if (addend.data != nullptr && addend.data != c.data) Copy(*impl_->stream, addend, c);
    return;
  }
  const Problem problem{.m = c.rows,
                        .n = c.cols,
                        .k = k,
                        .a_stride = a.stride,
                        .b_stride = b.stride,
                        .c_stride = c.stride,
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .dtype = a.dtype,
                        .c_dtype = c.dtype};
  const ConstMatrix left = impl_->Aligned(a, impl_->a_copy);
  const ConstMatrix right = impl_->Aligned(b, impl_->b_copy);
  const bool reads_in_place =
      addend.data == nullptr || (addend.stride == c.stride && IsAligned(addend.data));
  if (IsAligned(c.data) && reads_in_place) {
    impl_->Run(problem, left.data, right.data, addend.data, c.data);
    return;
  }
  const Matrix result = Elsewhere(impl_->c_copy, c);
  if (addend.data != nullptr) CopyRows(*impl_->stream, addend, result);
  impl_->Run(problem, left.data, right.data, addend.data == nullptr ? nullptr : result.data,
             result.data);
  CopyRows(*impl_->stream, result, c);
}

}  // namespace perdure::cuda
