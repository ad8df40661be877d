// What the CUDA kernels share: 16-byte vectors between memory and fp32 registers, reductions whose
// order is fixed, and the addressing of rows.
//
// Bits must not depend on addresses. So a thread's columns follow from the shape alone, and where
// they lie decides only how they travel: `kWhole` moves whole 16-byte words, without it every
// element goes by itself, into the same register. Between the two a kernel's arithmetic is the
// same instructions as long as it leaves the compiler no choice: nvcc fuses a * b + c as it
// pleases, so what mixes products and sums says __fmaf_rn, __fmul_rn and __fadd_rn.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/tensor.h"

namespace perdure::cuda {

using BFloat16 = __nv_bfloat16;

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Elements of 16 bytes.
template <typename T>
inline constexpr int kVectorSize = 16 / static_cast<int>(sizeof(T));

// --- on the host: what to launch

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls f(TypeTag<T>) with the C++ type of `dtype`.
template <typename F>
void WithType(DType dtype, F&& f) {
  if (dtype == DType::kF32) {
    f(TypeTag<float>{});
  } else {
    PERDURE_CHECK(dtype == DType::kBF16);
    f(TypeTag<BFloat16>{});
  }
}

// Calls f(std::bool_constant<value>).
template <typename F>
void WithBool(bool value, F&& f) {
  if (value) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// Whether every row of the view is whole vectors of `elements`, each word at a multiple of 16
// bytes.
template <typename Pointer>
bool WholeVectors(const MatrixView<Pointer>& view, int64_t elements) {
  const int64_t size = static_cast<int64_t>(SizeOf(view.dtype));
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.cols % elements == 0 &&
         (view.rows <= 1 || view.stride * size % 16 == 0);
}

inline bool Aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

constexpr int64_t DivCeil(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// A grid of up to `blocks` blocks; the kernel walks further with gridDim.x as its step.
inline unsigned GridOf(int64_t blocks) {
  return static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
}

// --- rows

template <typename T>
struct RowsOf {
  T* data;
  int64_t stride;

  explicit RowsOf(const Matrix& view) : data(static_cast<T*>(view.data)), stride(view.stride) {}
  explicit RowsOf(const ConstMatrix& view)
      : data(static_cast<T*>(view.data)), stride(view.stride) {}

  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};

// --- vectors

// N elements of T as they lie in memory, in 32-bit registers: 16-byte words.
template <typename T, int N = kVectorSize<T>>
struct Vector {
  static constexpr int kWords = N * static_cast<int>(sizeof(T)) / 16;
  static_assert(kWords * 16 == N * static_cast<int>(sizeof(T)), "a vector is whole 16-byte words");
  uint4 word[kWords];
};

// One word at once. A uint4 read or written in C++ may become four accesses; nvcc has split stores
// that it could not prove aligned.
__device__ __forceinline__ uint4 LoadWord(const void* from) {
  uint4 word;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return word;
}
__device__ __forceinline__ void StoreWord(void* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
               : "memory");
}

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(BFloat16 value) { return __bfloat162float(value); }
template <typename T>
__device__ __forceinline__ T FromFloat(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return __float2bfloat16_rn(value);
  }
}

template <typename T, int N>
__device__ __forceinline__ void Unpack(const Vector<T, N>& vector, float (&values)[N]) {
#pragma unroll
  for (int w = 0; w < Vector<T, N>::kWords; ++w) {
    const unsigned parts[4] = {vector.word[w].x, vector.word[w].y, vector.word[w].z,
                               vector.word[w].w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if constexpr (std::is_same_v<T, float>) {
        values[4 * w + p] = __uint_as_float(parts[p]);
      } else {
        values[8 * w + 2 * p] = __uint_as_float(parts[p] << 16);
        values[8 * w + 2 * p + 1] = __uint_as_float(parts[p] & 0xffff0000u);
      }
    }
  }
}

// Rounds to nearest even.
template <typename T, int N>
__device__ __forceinline__ Vector<T, N> Pack(const float (&values)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int w = 0; w < Vector<T, N>::kWords; ++w) {
    unsigned parts[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if constexpr (std::is_same_v<T, float>) {
        parts[p] = __float_as_uint(values[4 * w + p]);
      } else {
        const __nv_bfloat162 pair =
            __floats2bfloat162_rn(values[8 * w + 2 * p], values[8 * w + 2 * p + 1]);
        parts[p] = static_cast<unsigned>(__bfloat16_as_ushort(pair.x)) |
                   static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16;
      }
    }
    vector.word[w] = make_uint4(parts[0], parts[1], parts[2], parts[3]);
  }
  return vector;
}

// Makes the compiler forget what it has unpacked: between two uses it keeps the words, not twice
// their size in floats.
template <typename T, int N>
__device__ __forceinline__ void KeepPacked(Vector<T, N>& vector) {
#pragma unroll
  for (int w = 0; w < Vector<T, N>::kWords; ++w) {
    asm volatile(""
                 : "+r"(vector.word[w].x), "+r"(vector.word[w].y), "+r"(vector.word[w].z),
                   "+r"(vector.word[w].w));
  }
}

// Elements [column, column + N) of a row of `cols`; zeros where there are none. kWhole REQUIRES
// WholeVectors(view, N) and `column` a multiple of N.
template <bool kWhole, typename T, int N = kVectorSize<T>>
__device__ __forceinline__ Vector<T, N> Load(const T* row, int64_t column, int64_t cols) {
  Vector<T, N> vector;
  if constexpr (kWhole) {
    const T* from = row + column;
#pragma unroll
    for (int w = 0; w < Vector<T, N>::kWords; ++w) {
      vector.word[w] = make_uint4(0, 0, 0, 0);
      if (column < cols) vector.word[w] = LoadWord(from + w * kVectorSize<T>);
    }
  } else {
#pragma unroll
    for (int w = 0; w < Vector<T, N>::kWords; ++w) {
      unsigned parts[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < kVectorSize<T>; ++i) {
        const int64_t at = column + w * kVectorSize<T> + i;
        if (at >= cols) continue;
        if constexpr (std::is_same_v<T, float>) {
          parts[i] = __float_as_uint(row[at]);
        } else {
          parts[i / 2] |= static_cast<unsigned>(__bfloat16_as_ushort(row[at])) << (i % 2 * 16);
        }
      }
      vector.word[w] = make_uint4(parts[0], parts[1], parts[2], parts[3]);
    }
  }
  return vector;
}

// The counterpart of Load: what lies beyond `cols` stays as it is.
template <bool kWhole, typename T, int N>
__device__ __forceinline__ void Store(T* row, int64_t column, int64_t cols,
                                      const Vector<T, N>& vector) {
  if constexpr (kWhole) {
    if (column >= cols) return;
    T* to = row + column;
#pragma unroll
    for (int w = 0; w < Vector<T, N>::kWords; ++w)
      StoreWord(to + w * kVectorSize<T>, vector.word[w]);
  } else {
#pragma unroll
    for (int w = 0; w < Vector<T, N>::kWords; ++w) {
      const unsigned parts[4] = {vector.word[w].x, vector.word[w].y, vector.word[w].z,
                                 vector.word[w].w};
#pragma unroll
      for (int i = 0; i < kVectorSize<T>; ++i) {
        const int64_t at = column + w * kVectorSize<T> + i;
        if (at >= cols) continue;
        if constexpr (std::is_same_v<T, float>) {
          row[at] = __uint_as_float(parts[i]);
        } else {
          row[at] = __ushort_as_bfloat16(
              static_cast<unsigned short>(parts[i / 2] >> (i % 2 * 16) & 0xffffu));
        }
      }
    }
  }
}

// Load and Unpack, Pack and Store, where nothing is gained by keeping the raw words.
template <bool kWhole, typename T, int N>
__device__ __forceinline__ void LoadFloats(const T* row, int64_t column, int64_t cols,
                                           float (&values)[N]) {
  Unpack(Load<kWhole, T, N>(row, column, cols), values);
}
template <bool kWhole, typename T, int N>
__device__ __forceinline__ void StoreFloats(T* row, int64_t column, int64_t cols,
                                            const float (&values)[N]) {
  Store<kWhole>(row, column, cols, Pack<T>(values));
}

// --- reductions; each returns the same bits to every thread

struct Sum {
  template <typename V>
  static __device__ __forceinline__ V Identity() {
    return V{};
  }
  template <typename V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};
// A NaN loses against a number, as in fmaxf.
struct Maximum {
  template <typename V>
  static __device__ __forceinline__ V Identity() {
    return -static_cast<V>(__int_as_float(0x7f800000));
  }
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over the lanes of a warp, by halves: lane i with i ^ 16, then ^ 8, ... All lanes take part.
template <typename Combine = Sum, typename V>
__device__ __forceinline__ V WarpReduce(V value, Combine combine = {}) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// Over the threads of a block: within warps, then over the warps, each by halves of 32. `scratch`
// is shared memory, 32 of V, that no thread may still be reading: successive reductions alternate
// between two. REQUIRES: blockDim = {a multiple of 32, 1, 1}; all threads take part.
template <typename Combine = Sum, typename V>
__device__ __forceinline__ V BlockReduce(V value, V* scratch, Combine combine = {}) {
  value = WarpReduce(value, combine);
  const unsigned warps = blockDim.x / kWarp;
  if (warps == 1) return value;
  const unsigned lane = threadIdx.x % kWarp;
  if (lane == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  // Every warp does the same, which is cheaper than a second barrier.
  return WarpReduce(lane < warps ? scratch[lane] : Combine::template Identity<V>(), combine);
}

}  // namespace perdure::cuda
