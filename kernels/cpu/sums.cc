#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {
namespace {

constexpr size_t kPartsMax = 64;

// The balanced tree over kCount parts, at element i of one row. Compile-time recursion, so partial
// sums stay in registers.
template <size_t kCount, typename Count>
inline F16 Tree(const float* const* part, int64_t i, Count count) {
  if constexpr (kCount == 1) {
    return Load(part[0] + i, count);
  } else {
    return Tree<kCount / 2>(part, i, count) + Tree<kCount / 2>(part + kCount / 2, i, count);
  }
}

template <size_t kCount, typename Residual, typename Out>
void TreeSumRows(std::span<const ConstMatrix> parts, const ConstMatrix& residual,
                 const Matrix& out) {
  for (int64_t r = 0; r < out.rows; ++r) {
    const float* part[kCount];
    for (size_t p = 0; p < kCount; ++p) part[p] = Row<float>(parts[p], r);
    const Residual* base = residual.data == nullptr ? nullptr : Row<Residual>(residual, r);
    Out* to = Row<Out>(out, r);
    ForLanes(out.cols, [&](int64_t i, auto count) PERDURE_INLINE {
      F16 sum = Tree<kCount>(part, i, count);
      if (base != nullptr) sum = Load(base + i, count) + sum;
      Store(to + i, sum, count);
    });
  }
}

template <typename Residual, typename Out>
void TreeSumOf(std::span<const ConstMatrix> parts, const ConstMatrix& residual, const Matrix& out) {
  switch (parts.size()) {
    case 1:
      return TreeSumRows<1, Residual, Out>(parts, residual, out);
    case 2:
      return TreeSumRows<2, Residual, Out>(parts, residual, out);
    case 4:
      return TreeSumRows<4, Residual, Out>(parts, residual, out);
    case 8:
      return TreeSumRows<8, Residual, Out>(parts, residual, out);
    case 16:
      return TreeSumRows<16, Residual, Out>(parts, residual, out);
    case 32:
      return TreeSumRows<32, Residual, Out>(parts, residual, out);
    case kPartsMax:
      return TreeSumRows<kPartsMax, Residual, Out>(parts, residual, out);
    default:
      CheckFailed(__FILE__, __LINE__, "TreeSum: the number of parts is a power of two <= 64");
  }
}

}  // namespace

void Add(ConstMatrix x, Matrix acc) {
  PERDURE_CHECK(SameShape(x, acc));
  PERDURE_CHECK(x.dtype == DType::kF32 && acc.dtype == DType::kF32);
  for (int64_t r = 0; r < x.rows; ++r) {
    const float* from = Row<float>(x, r);
    float* to = Row<float>(acc, r);
    ForLanes(x.cols, [&](int64_t i, auto count) PERDURE_INLINE {
      Store(to + i, Load(to + i, count) + Load(from + i, count), count);
    });
  }
}

void Max(ConstMatrix x, Matrix acc) {
  PERDURE_CHECK(SameShape(x, acc));
  PERDURE_CHECK(x.dtype == DType::kF32 && acc.dtype == DType::kF32);
  for (int64_t r = 0; r < x.rows; ++r) {
    const float* from = Row<float>(x, r);
    float* to = Row<float>(acc, r);
    for (int64_t c = 0; c < x.cols; ++c) to[c] = std::max(to[c], from[c]);
  }
}

void TreeSum(std::span<const ConstMatrix> parts, ConstMatrix residual, Matrix out) {
  for (const ConstMatrix& part : parts) {
    PERDURE_CHECK(part.dtype == DType::kF32);
    PERDURE_CHECK(SameShape(part, out));
  }
  if (residual.data == nullptr) {
    residual.dtype = out.dtype;
  } else {
    PERDURE_CHECK(SameShape(residual, out));
    PERDURE_CHECK(residual.dtype == out.dtype || out.dtype == DType::kF32);
  }
  if (out.dtype == DType::kBF16) {
    TreeSumOf<BFloat16, BFloat16>(parts, residual, out);
  } else if (residual.dtype == DType::kBF16) {
    TreeSumOf<BFloat16, float>(parts, residual, out);
  } else {
    TreeSumOf<float, float>(parts, residual, out);
  }
}

double SumOfSquares(const float* x, int64_t count) {
  D16 sum;
  ForLanes(count,
           [&](int64_t i, auto lanes) PERDURE_INLINE { sum.AddSquares(Load(x + i, lanes)); });
  return sum.SumHalves();
}

}  // namespace perdure::cpu
