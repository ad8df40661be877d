// What elementwise kernels over [rows, cols] share: which thread takes which elements, and how
// these travel.
//
// A thread takes kUnroll groups of N neighbouring columns, a block's width apart: first it loads
// all of them, then it finishes and stores one after the other, so that operands may alias element
// by element and several 16-byte loads are under way nevertheless. Neighbouring threads take
// neighbouring groups: a warp's access is whole lines. Where rows are not aligned, N is 1.
//
// A Body is an elementwise operation:
//   template <int N> using Held = ...;                   what a group carries in registers
//   template <int N> void Load(row, column, Held<N>&);   reads
//   template <int N> void Store(row, column, Held<N>&);  computes the rest, and writes
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/vector.cuh"

namespace perdure::cuda {

inline constexpr int kElementwiseThreads = 256;

// As LoadWord and StoreWord, eight bytes.
__device__ __forceinline__ uint2 LoadHalfWord(const void* from) {
  uint2 word;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(word.x), "=r"(word.y)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return word;
}
__device__ __forceinline__ void StoreHalfWord(void* to, uint2 word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y)
               : "memory");
}

// N elements at `from` to fp32: one, 8 bytes or 16 bytes. REQUIRES: aligned to N elements.
template <int N, typename T>
__device__ __forceinline__ void Read(const T* from, float (&values)[N]) {
  if constexpr (N == 1) {
    values[0] = ToFloat(*from);
  } else if constexpr (N * sizeof(T) == 8) {
    static_assert(std::is_same_v<T, BFloat16>);
    const uint2 word = LoadHalfWord(from);
    values[0] = __uint_as_float(word.x << 16);
    values[1] = __uint_as_float(word.x & 0xffff0000u);
    values[2] = __uint_as_float(word.y << 16);
    values[3] = __uint_as_float(word.y & 0xffff0000u);
  } else {
    static_assert(N * sizeof(T) == 16);
    Unpack(Vector<T, N>{{LoadWord(from)}}, values);
  }
}

// The counterpart, rounding to nearest even.
template <int N, typename T>
__device__ __forceinline__ void Write(T* to, const float (&values)[N]) {
  if constexpr (N == 1) {
    *to = FromFloat<T>(values[0]);
  } else if constexpr (N * sizeof(T) == 8) {
    static_assert(std::is_same_v<T, BFloat16>);
    unsigned bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
    StoreHalfWord(to, make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16));
  } else {
    static_assert(N * sizeof(T) == 16);
    StoreWord(to, Pack<T>(values).word[0]);
  }
}

// The block's threads are {lanes, rows}: a block takes `lanes` * kUnroll groups of each of its
// rows, and `chunks` blocks stand side by side.
struct ElementwiseExtent {
  int64_t rows = 0;
  int64_t cols = 0;
  unsigned chunks = 1;
};

template <int N, int kUnroll, typename Body>
__global__ void __launch_bounds__(kElementwiseThreads)
    Elementwise(const Body body, const ElementwiseExtent extent) {
  const int64_t row = int64_t{blockIdx.x / extent.chunks} * blockDim.y + threadIdx.y;
  if (row >= extent.rows) return;
  const int64_t first =
      (int64_t{blockIdx.x % extent.chunks} * kUnroll * blockDim.x + threadIdx.x) * N;
  const int64_t step = int64_t{N} * blockDim.x;
  // Not one condition per group: loads between branches do not run ahead of each other.
  if (first + (kUnroll - 1) * step + N <= extent.cols) {
    typename Body::template Held<N> held[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) body.template Load<N>(row, first + u * step, held[u]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) body.template Store<N>(row, first + u * step, held[u]);
    return;
  }
#pragma unroll 1
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t column = first + u * step;
    if (column + N <= extent.cols) {
      typename Body::template Held<N> held;
      body.template Load<N>(row, column, held);
      body.template Store<N>(row, column, held);
    } else if constexpr (N > 1) {  // The last columns of a row, when they are no whole group.
#pragma unroll 1
      for (int64_t c = column; c < extent.cols; ++c) {
        typename Body::template Held<1> held;
        body.template Load<1>(row, c, held);
        body.template Store<1>(row, c, held);
      }
    }
  }
}

// Whether groups of N columns travel as wholes: every row begins at a multiple of their size.
template <int N, typename Pointer>
bool GroupsAligned(const MatrixView<Pointer>& view) {
  const size_t bytes = N * SizeOf(view.dtype);
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         (view.rows <= 1 || view.stride % N == 0);
}

template <typename Pointer>
bool WithoutGaps(const MatrixView<Pointer>& view) {
  return view.contiguous() || view.rows <= 1;
}
template <typename Pointer>
void MakeOneRow(MatrixView<Pointer>& view) {
  view.cols = view.stride = view.size();
  view.rows = 1;
}
// Views of one shape, none of which has gaps between its rows, become one row each.
template <typename... Views>
void JoinRows(Views&... views) {
  if ((WithoutGaps(views) && ...)) (MakeOneRow(views), ...);
}

// Runs `body` over [rows, cols]. `aligned`: GroupsAligned<N> of every operand.
template <int N, int kUnroll, typename Body>
void LaunchElementwise(const Stream& stream, const char* name, const Body& body, int64_t rows,
                       int64_t cols, bool aligned) {
  if (rows == 0 || cols == 0) return;
  const int64_t groups = aligned ? DivCeil(cols, N) : cols;
  unsigned lanes = 1;
  while (lanes < kElementwiseThreads && int64_t{lanes} * kUnroll < groups) lanes *= 2;
  const dim3 block(lanes, kElementwiseThreads / lanes);
  const int64_t chunks = DivCeil(groups, int64_t{lanes} * kUnroll);
  const int64_t blocks = chunks * DivCeil(rows, int64_t{block.y});
  PERDURE_CHECK(blocks <= INT32_MAX);
  const ElementwiseExtent extent{rows, cols, static_cast<unsigned>(chunks)};
  const auto grid = static_cast<unsigned>(blocks);
  if (aligned) {
    Elementwise<N, kUnroll><<<grid, block, 0, stream.stream>>>(body, extent);
  } else {
    Elementwise<1, kUnroll><<<grid, block, 0, stream.stream>>>(body, extent);
  }
  stream.Launched(name);
}

}  // namespace perdure::cuda
