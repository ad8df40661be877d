// Sixteen fp32 lanes, and what the CPU kernels compute with them.
//
// The lanes are explicit so that the order of every sum is written in the source: the same bits
// come out of AVX2, AVX-512, NEON or plain scalar code. Multiply-add happens where MulAdd is
// written and nowhere else (the build sets -ffp-contract=off).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace perdure::cpu {

inline constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
inline constexpr size_t kNativeBytes = 64;
#elif defined(__AVX__)
inline constexpr size_t kNativeBytes = 32;
#else
inline constexpr size_t kNativeBytes = 16;
#endif
inline constexpr int kNativeLanes = kNativeBytes / 4;
inline constexpr int kParts = kLanes / kNativeLanes;  // Registers in one set of lanes.

using NativeF32 = float __attribute__((vector_size(kNativeBytes)));
using NativeI32 = int32_t __attribute__((vector_size(kNativeBytes)));
using NativeU32 = uint32_t __attribute__((vector_size(kNativeBytes)));
using NativeU16 = uint16_t __attribute__((vector_size(kNativeBytes / 2)));
using NativeF64 = double __attribute__((vector_size(kNativeBytes)));

struct BFloat16 {
  uint16_t bits = 0;
};

inline float ToFloat(float x) { return x; }
inline float ToFloat(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

// Round to nearest even; a NaN stays one (made quiet).
inline BFloat16 ToBFloat16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <typename T>
T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return ToBFloat16(x);
  }
}

// The number of lanes in use: FullLanes in the body of a loop (known at compile time), a count in
// its tail.
using FullLanes = std::integral_constant<int64_t, kLanes>;

// The bodies of lane loops: a call per sixteen elements, with its operands behind pointers, costs
// up to four times.
#define PERDURE_INLINE __attribute__((always_inline))

// Calls f(index, FullLanes{}) for every whole group of lanes in [0, count), then f(index, rest) for
// what is left.
template <typename F>
PERDURE_INLINE inline void ForLanes(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, FullLanes{});
  if (i < count) f(i, count - i);
}

struct F16 {
  NativeF32 part[kParts];

  static F16 Broadcast(float x) {
    F16 r;
    for (int p = 0; p < kParts; ++p) r.part[p] = x - NativeF32{};  // x - 0 keeps -0.
    return r;
  }
  static F16 Zero() {
    F16 r;
    for (int p = 0; p < kParts; ++p) r.part[p] = NativeF32{};
    return r;
  }
};

#define PERDURE_LANEWISE(op)                                             \
  inline F16 operator op(F16 a, F16 b) {                                 \
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] op b.part[p]; \
    return a;                                                            \
  }                                                                      \
  inline F16 operator op(F16 a, float b) {                               \
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] op b;         \
    return a;                                                            \
  }                                                                      \
  inline F16 operator op(float a, F16 b) {                               \
    for (int p = 0; p < kParts; ++p) b.part[p] = a op b.part[p];         \
    return b;                                                            \
  }
PERDURE_LANEWISE(+)
PERDURE_LANEWISE(-)
PERDURE_LANEWISE(*)
PERDURE_LANEWISE(/)
#undef PERDURE_LANEWISE

// a * b + c, rounded once.
inline NativeF32 MulAdd(NativeF32 a, NativeF32 b, NativeF32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  for (int i = 0; i < kNativeLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
inline F16 MulAdd(F16 a, F16 b, F16 c) {
  for (int p = 0; p < kParts; ++p) c.part[p] = MulAdd(a.part[p], b.part[p], c.part[p]);
  return c;
}
inline F16 MulAdd(F16 a, float b, F16 c) { return MulAdd(a, F16::Broadcast(b), c); }

// The larger, lane by lane; b where either is a NaN.
inline NativeF32 Max(NativeF32 a, NativeF32 b) { return a > b ? a : b; }
inline F16 Max(F16 a, F16 b) {
  for (int p = 0; p < kParts; ++p) a.part[p] = Max(a.part[p], b.part[p]);
  return a;
}

// The first `count` lanes of x, `fill` in the others.
inline F16 FirstLanes(F16 x, int64_t count, float fill) {
  NativeI32 lane;
  for (int i = 0; i < kNativeLanes; ++i) lane[i] = i;
  for (int p = 0; p < kParts; ++p) {
    const int32_t here = static_cast<int32_t>(count) - p * kNativeLanes;
    x.part[p] = lane < here ? x.part[p] : NativeF32{} + fill;
  }
  return x;
}

inline NativeF32 Sqrt(NativeF32 x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX__)
  return _mm256_sqrt_ps(x);
#elif defined(__aarch64__)
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < kNativeLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline F16 Sqrt(F16 x) {
  for (int p = 0; p < kParts; ++p) x.part[p] = Sqrt(x.part[p]);
  return x;
}

// --- memory

inline F16 Load(const float* from) {
  F16 r;
  for (int p = 0; p < kParts; ++p) std::memcpy(&r.part[p], from + p * kNativeLanes, kNativeBytes);
  return r;
}
inline F16 Load(const BFloat16* from) {
  F16 r;
  for (int p = 0; p < kParts; ++p) {
    NativeU16 half;
    std::memcpy(&half, &from[p * kNativeLanes].bits, sizeof(half));
#if defined(__AVX2__) && !defined(__AVX512F__)
    const auto wide = reinterpret_cast<NativeU32>(
        _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half)));  // GCC's own takes six steps.
#else
    const NativeU32 wide = __builtin_convertvector(half, NativeU32);
#endif
    r.part[p] = reinterpret_cast<NativeF32>(wide << 16);
  }
  return r;
}
inline void Store(float* to, F16 x) {
  for (int p = 0; p < kParts; ++p) std::memcpy(to + p * kNativeLanes, &x.part[p], kNativeBytes);
}
// As ToBFloat16, the result still in 32 bits.
inline NativeU32 RoundToBFloat16(NativeF32 x) {
  const NativeU32 u = reinterpret_cast<NativeU32>(x);
  const NativeU32 high = u >> 16;
  return x == x ? (u + 0x7fffu + (high & 1u)) >> 16 : high | 0x40u;
}
inline void Store(BFloat16* to, F16 x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(RoundToBFloat16(x.part[0])),
                                             reinterpret_cast<__m256i>(RoundToBFloat16(x.part[1])));
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0b11011000);
  std::memcpy(&to->bits, &ordered, sizeof(ordered));
#else
  for (int p = 0; p < kParts; ++p) {
    const NativeU16 half = __builtin_convertvector(RoundToBFloat16(x.part[p]), NativeU16);
    std::memcpy(&to[p * kNativeLanes].bits, &half, sizeof(half));
  }
#endif
}

// The first `count` lanes; the others are `fill`.
template <typename T>
F16 Load(const T* from, FullLanes, float /*fill*/ = 0) {
  return Load(from);
}
template <typename T>
F16 Load(const T* from, int64_t count, float fill = 0) {
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? ToFloat(from[i]) : fill;
  return Load(lanes);
}
template <typename T>
void Store(T* to, F16 x, FullLanes) {
  Store(to, x);
}
template <typename T>
void Store(T* to, F16 x, int64_t count) {
  T lanes[kLanes];
  Store(lanes, x);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// --- folds by halves: lane i with lane i + 8, then i + 4, i + 2, i + 1

using Quad = float __attribute__((vector_size(16)));

template <typename Combine>
float FoldHalves(F16 x, Combine combine) {
  Quad quad[4];
  std::memcpy(quad, x.part, sizeof(quad));
  const Quad eight[2] = {combine(quad[0], quad[2]), combine(quad[1], quad[3])};
  Quad q = combine(eight[0], eight[1]);
  q = combine(q, __builtin_shufflevector(q, q, 2, 3, 0, 1));
  q = combine(q, __builtin_shufflevector(q, q, 1, 0, 3, 2));
  return q[0];
}
inline float SumHalves(F16 x) {
  return FoldHalves(x, [](Quad a, Quad b) { return a + b; });
}
inline float MaxHalves(F16 x) {
  return FoldHalves(x, [](Quad a, Quad b) { return a > b ? a : b; });
}

// --- elementary functions

// e^x within 1.5 ulp; 0 below -87.3 (so for -inf), +inf above 88.3, NaN for NaN.
inline NativeF32 Exp(NativeF32 x) {
  // 1.5 * 2^23 + 127: adding it rounds x / ln 2 to an integer n and leaves n + 127, an exponent, in
  // the low bits.
  constexpr float kShift = 12583039.0f;
  const NativeF32 one = NativeF32{} + 1.0f;
  const NativeF32 shifted = MulAdd(x, one * 1.44269504088896341f, one * kShift);
  const NativeF32 n = shifted - kShift;
  NativeF32 r = MulAdd(n, one * -0.693359375f, x);
  r = MulAdd(n, one * 2.12194440e-4f, r);
  NativeF32 y = one * 1.9875691500e-4f;  // Cephes expf.
  y = MulAdd(y, r, one * 1.3981999507e-3f);
  y = MulAdd(y, r, one * 8.3334519073e-3f);
  y = MulAdd(y, r, one * 4.1665795894e-2f);
  y = MulAdd(y, r, one * 1.6666665459e-1f);
  y = MulAdd(y, r, one * 5.0000001201e-1f);
  y = MulAdd(y, r * r, r) + 1.0f;
  y = y * reinterpret_cast<NativeF32>(reinterpret_cast<NativeU32>(shifted) << 23);
  y = x < -87.3f ? NativeF32{} : y;
  return x > 88.3f ? one * std::numeric_limits<float>::infinity() : y;
}
inline F16 Exp(F16 x) {
  for (int p = 0; p < kParts; ++p) x.part[p] = Exp(x.part[p]);
  return x;
}

// 1 / (1 + e^-x).
inline F16 Sigmoid(F16 x) { return 1.0f / (1.0f + Exp(0.0f - x)); }

// Natural logarithm of a positive normal number, within 2 ulp (a NaN and +inf pass through); for
// one number at a time.
float Log(float x);

// --- sixteen fp64 lanes

struct D16 {
  static constexpr int kWideParts = 2 * kParts;
  NativeF64 part[kWideParts] = {};

  // Adds the square of each lane of x; the products are exact, so each lane is rounded once.
  void AddSquares(F16 x) {
    using Half = float __attribute__((vector_size(kNativeBytes / 2)));
    for (int p = 0; p < kWideParts; ++p) {
      Half half;
      std::memcpy(&half, reinterpret_cast<const char*>(&x.part[p / 2]) + (p % 2) * sizeof(half),
                  sizeof(half));
      const NativeF64 wide = __builtin_convertvector(half, NativeF64);
      part[p] = part[p] + wide * wide;
    }
  }
  double SumHalves() const {
    double lanes[kLanes];
    std::memcpy(lanes, part, sizeof(lanes));
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
  }
};

}  // namespace perdure::cpu
