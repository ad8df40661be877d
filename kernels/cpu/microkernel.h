// c[rows x 16] = (or +=) a[rows x depth] * b[depth x 16] in registers: the inner loop of attention.
#pragma once

#include <utility>

#include "kernels/cpu/vector_math.h"
#include "runtime/base/check.h"

namespace perdure::cpu {

// Six rows of two AVX2 registers are 12 accumulators: enough to hide the latency of two FMA units,
// and 16 registers hold them with two of b and one of a.
inline constexpr int64_t kBlockRows = 6;

// How a is stored: row by row (a[r * stride + k]) or column by column (a[k * stride + r]).
enum class Order : uint8_t { kRows, kColumns };
enum class Into : uint8_t { kOverwrite, kAdd };

struct Strides {
  int64_t a = 0;
  int64_t b = 0;
  int64_t c = 0;
};

template <Order kOrder, Into kInto, size_t... kRow>
inline void MultiplyRows(const float* a, const float* b, float* c, int64_t depth, Strides stride,
                         std::index_sequence<kRow...>) {
  F16 sum[sizeof...(kRow)];
  if constexpr (kInto == Into::kAdd) {
    ((sum[kRow] = Load(c + static_cast<int64_t>(kRow) * stride.c)), ...);
  } else {
    ((sum[kRow] = F16::Zero()), ...);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const F16 row = Load(b);
    b += stride.b;
    if constexpr (kOrder == Order::kRows) {
      ((sum[kRow] = MulAdd(row, a[static_cast<int64_t>(kRow) * stride.a], sum[kRow])), ...);
      a += 1;
    } else {
      ((sum[kRow] = MulAdd(row, a[kRow], sum[kRow])), ...);
      a += stride.a;
    }
  }
  (Store(c + static_cast<int64_t>(kRow) * stride.c, sum[kRow]), ...);
}

// rows in [1, kBlockRows].
template <Order kOrder, Into kInto>
inline void MultiplyBlock(int64_t rows, const float* a, const float* b, float* c, int64_t depth,
                          Strides stride) {
  switch (rows) {
#define PERDURE_ROWS(n)                                                                 \
  case n:                                                                               \
    MultiplyRows<kOrder, kInto>(a, b, c, depth, stride, std::make_index_sequence<n>{}); \
    return;
    PERDURE_ROWS(1)
    PERDURE_ROWS(2)
    PERDURE_ROWS(3)
    PERDURE_ROWS(4)
    PERDURE_ROWS(5)
    PERDURE_ROWS(6)
#undef PERDURE_ROWS
    default:
      PERDURE_CHECK(rows >= 1 && rows <= kBlockRows);
  }
}

}  // namespace perdure::cpu
