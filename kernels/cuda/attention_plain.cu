// Attention without tensor cores, for every shape: tiled over the sequence, in fp32 whatever the
// matrices are made of, with no sequence x sequence buffer (Dao et al. 2022).
//
// Letters: S sequence, d head_dim, D head_dim rounded up to the width that a kernel is made for; i
// a query's position, j a key's. A block takes a tile of 32 positions of one head, "its rows", four
// of them to a warp, and goes over the tiles of the other side in shared memory, one of whose
// positions belongs to each lane. Sums go along a tile in order, and tile after tile.
#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/kernels.h"
#include "runtime/base/check.h"

namespace perdure::cuda {
namespace {

constexpr int kTile = 32;  // Positions of a tile: as many as lanes.
constexpr int kRowsPerWarp = 4;
constexpr int kWarps = kTile / kRowsPerWarp;
constexpr int kThreads = 32 * kWarps;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void Store(float x, float* to) { *to = x; }
__device__ void Store(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

// Lanes that read four numbers each of 32 rows meet no bank twice.
template <int D>
struct Tile {
  static constexpr int kStride = D + 4;
  float rows[kTile][kStride];
};

// Columns of a matrix that are one head, from a sample's first row.
template <typename T>
struct HeadOf {
  T* data;
  int64_t stride;
  __device__ T* Row(int64_t position) const { return data + position * stride; }
};

struct Problem {
  int sequence;
  int q_heads;
  int kv_heads;
  int d;
  float scale;

  __device__ int group() const { return q_heads / kv_heads; }
};

// A matrix as the kernels see it.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  __device__ HeadOf<T> Head(int64_t sample, int64_t head, const Problem& p) const {
    return {data + sample * p.sequence * stride + head * p.d, stride};
  }
};

// Positions [first, first + 32) of a head, times `scale`; zero beyond S and d.
template <int D, typename T>
__device__ void Load(HeadOf<const T> from, int first, const Problem& p, float scale,
                     Tile<D>& tile) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (int r = warp; r < kTile; r += kWarps) {
    const bool here = first + r < p.sequence;
    for (int k = lane; k < D; k += 32) {
      tile.rows[r][k] = here && k < p.d ? ToFloat(from.Row(first + r)[k]) * scale : 0.0f;
    }
  }
}

// dots[r] = dot(this warp's row r of `own`, this lane's row of `other`).
template <int D>
__device__ void Dots(const Tile<D>& own, const Tile<D>& other, float (&dots)[kRowsPerWarp]) {
  const int first = threadIdx.x / 32 * kRowsPerWarp;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (float& dot : dots) dot = 0;
#pragma unroll 4
  for (int k = 0; k < D; k += 4) {
    const float4 y = *reinterpret_cast<const float4*>(&other.rows[lane][k]);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const float4 x = *reinterpret_cast<const float4*>(&own.rows[first + r][k]);
      dots[r] = fmaf(x.x, y.x, dots[r]);
      dots[r] = fmaf(x.y, y.y, dots[r]);
      dots[r] = fmaf(x.z, y.z, dots[r]);
      dots[r] = fmaf(x.w, y.w, dots[r]);
    }
  }
}

// What a warp adds up: its rows, columns lane, lane + 32, ... of each.
template <int D>
struct Sums {
  float of[kRowsPerWarp][D / 32];

  __device__ void Clear() {
#pragma unroll
    for (auto& row : of) {
#pragma unroll
      for (float& x : row) x = 0;
    }
  }

  // += weights (row r's for position j in lane j) times the tile's rows.
  __device__ void Add(const float (&weights)[kRowsPerWarp], const Tile<D>& tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll 4
    for (int j = 0; j < kTile; ++j) {
      float weight[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) weight[r] = __shfl_sync(kAllLanes, weights[r], j);
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
        const float x = tile.rows[j][c * 32 + lane];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) of[r][c] = fmaf(weight[r], x, of[r][c]);
      }
    }
  }

  // Row r of this warp, times `factor`.
  template <typename T>
  __device__ void StoreRow(int r, float factor, const Problem& p, T* to) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const int k = c * 32 + lane;
      if (k < p.d) Store(of[r][c] * factor, to + k);
    }
  }
};

__device__ float WarpMax(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

__device__ float WarpSum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Tiles that more of the other side can see go first: tile 0 of keys, the last tile of queries.
__device__ int FirstKey() { return blockIdx.x * kTile; }
__device__ int FirstQuery() { return (gridDim.x - 1 - blockIdx.x) * kTile; }

template <int D>
struct ForwardMemory {
  Tile<D> query, key, value;
};

// Grid: tiles of queries, query heads, samples.
template <int D, typename T>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(Problem p, Rows<const T> query_rows, Rows<const T> key_rows,
                  Rows<const T> value_rows, Rows<T> out_rows, float* lse) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<ForwardMemory<D>*>(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int i0 = FirstQuery();
  const int head = blockIdx.y;
  const int sample = blockIdx.z;
  const HeadOf<const T> key = key_rows.Head(sample, head / p.group(), p);
  const HeadOf<const T> value = value_rows.Head(sample, head / p.group(), p);
  Load<D, T>(query_rows.Head(sample, head, p), i0, p, p.scale, memory.query);

  // The running softmax: the largest score and the sum of exponentials so far.
  float largest[kRowsPerWarp];
  float sum[kRowsPerWarp];
  Sums<D> out;
  out.Clear();
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    largest[r] = -INFINITY;
    sum[r] = 0;
  }
  for (int j0 = 0; j0 <= i0; j0 += kTile) {
    __syncthreads();
    Load<D, T>(key, j0, p, 1.0f, memory.key);
    Load<D, T>(value, j0, p, 1.0f, memory.value);
    __syncthreads();
    float scores[kRowsPerWarp];
    Dots(memory.query, memory.key, scores);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      // Key 0 is in the first tile and seen by all, so `next` is finite.
      const bool seen = j0 + lane <= i0 + warp * kRowsPerWarp + r && j0 + lane < p.sequence;
      const float score = seen ? scores[r] : -INFINITY;
      const float next = fmaxf(largest[r], WarpMax(score));
      const float shrink = expf(largest[r] - next);
      scores[r] = expf(score - next);
      sum[r] = sum[r] * shrink + WarpSum(scores[r]);
      largest[r] = next;
#pragma unroll
      for (float& x : out.of[r]) x *= shrink;
    }
    out.Add(scores, memory.value);
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int i = i0 + warp * kRowsPerWarp + r;
    if (i >= p.sequence) continue;
    out.StoreRow(r, 1.0f / sum[r], p, out_rows.Head(sample, head, p).Row(i));
    const int64_t at = (static_cast<int64_t>(sample) * p.q_heads + head) * p.sequence + i;
    if (lane == 0) lse[at] = largest[r] + logf(sum[r]);
  }
}

// out_dot[sample, head, i] = dot(dout, out). A warp to a query; grid: positions by warps, query
// heads, samples.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    OutDotKernel(Problem p, Rows<const T> dout_rows, Rows<const T> out_rows, float* out_dot) {
  const int i = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.y;
  const int sample = blockIdx.z;
  if (i >= p.sequence) return;
  const T* dout = dout_rows.Head(sample, head, p).Row(i);
  const T* out = out_rows.Head(sample, head, p).Row(i);
  float sum = 0;
  for (int k = lane; k < p.d; k += 32) sum = fmaf(ToFloat(dout[k]), ToFloat(out[k]), sum);
  sum = WarpSum(sum);
  const int64_t at = (static_cast<int64_t>(sample) * p.q_heads + head) * p.sequence + i;
  if (lane == 0) out_dot[at] = sum;
}

template <int D>
struct BackwardMemory {
  Tile<D> query, dout, key, value;
};

// dQ. Grid: tiles of queries, query heads, samples.
template <int D, typename T>
__global__ void __launch_bounds__(kThreads)
    DQueryKernel(Problem p, Rows<const T> query_rows, Rows<const T> key_rows,
                 Rows<const T> value_rows, Rows<const T> dout_rows, const float* lse,
                 const float* out_dot, Rows<T> dquery_rows) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<BackwardMemory<D>*>(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int i0 = FirstQuery();
  const int head = blockIdx.y;
  const int sample = blockIdx.z;
  const HeadOf<const T> key = key_rows.Head(sample, head / p.group(), p);
  const HeadOf<const T> value = value_rows.Head(sample, head / p.group(), p);
  Load<D, T>(query_rows.Head(sample, head, p), i0, p, p.scale, memory.query);
  Load<D, T>(dout_rows.Head(sample, head, p), i0, p, 1.0f, memory.dout);

  float row_lse[kRowsPerWarp];
  float row_dot[kRowsPerWarp];
  const int64_t numbers = (static_cast<int64_t>(sample) * p.q_heads + head) * p.sequence;
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int i = i0 + warp * kRowsPerWarp + r;
    row_lse[r] = i < p.sequence ? lse[numbers + i] : 0.0f;
    row_dot[r] = i < p.sequence ? out_dot[numbers + i] : 0.0f;
  }
  Sums<D> dquery;
  dquery.Clear();
  for (int j0 = 0; j0 <= i0; j0 += kTile) {
    __syncthreads();
    Load<D, T>(key, j0, p, 1.0f, memory.key);
    Load<D, T>(value, j0, p, 1.0f, memory.value);
    __syncthreads();
    float scores[kRowsPerWarp];
    float dscores[kRowsPerWarp];
    Dots(memory.query, memory.key, scores);
    Dots(memory.dout, memory.value, dscores);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = i0 + warp * kRowsPerWarp + r;
      const bool seen = j0 + lane <= i && i < p.sequence;
      dscores[r] = seen ? expf(scores[r] - row_lse[r]) * (dscores[r] - row_dot[r]) : 0.0f;
    }
    dquery.Add(dscores, memory.key);
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int i = i0 + warp * kRowsPerWarp + r;
    if (i < p.sequence) dquery.StoreRow(r, p.scale, p, dquery_rows.Head(sample, head, p).Row(i));
  }
}

// dK and dV, summed over the group's query heads in order. Grid: tiles of keys, key/value heads,
// samples.
template <int D, typename T>
__global__ void __launch_bounds__(kThreads)
    DKeyValueKernel(Problem p, Rows<const T> query_rows, Rows<const T> key_rows,
                    Rows<const T> value_rows, Rows<const T> dout_rows, const float* lse,
                    const float* out_dot, Rows<T> dkey_rows, Rows<T> dvalue_rows) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<BackwardMemory<D>*>(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int j0 = FirstKey();
  const int kv_head = blockIdx.y;
  const int sample = blockIdx.z;
  Load<D, T>(key_rows.Head(sample, kv_head, p), j0, p, 1.0f, memory.key);
  Load<D, T>(value_rows.Head(sample, kv_head, p), j0, p, 1.0f, memory.value);

  Sums<D> dkey;
  Sums<D> dvalue;
  dkey.Clear();
  dvalue.Clear();
  for (int head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    const HeadOf<const T> query = query_rows.Head(sample, head, p);
    const HeadOf<const T> dout = dout_rows.Head(sample, head, p);
    const int64_t numbers = (static_cast<int64_t>(sample) * p.q_heads + head) * p.sequence;
    for (int i0 = j0; i0 < p.sequence; i0 += kTile) {
      __syncthreads();
      Load<D, T>(query, i0, p, p.scale, memory.query);
      Load<D, T>(dout, i0, p, 1.0f, memory.dout);
      __syncthreads();
      const int i = i0 + lane;
      const float lane_lse = i < p.sequence ? lse[numbers + i] : 0.0f;
      const float lane_dot = i < p.sequence ? out_dot[numbers + i] : 0.0f;
      float probabilities[kRowsPerWarp];
      float dscores[kRowsPerWarp];
      Dots(memory.key, memory.query, probabilities);
      Dots(memory.value, memory.dout, dscores);
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const bool seen = j0 + warp * kRowsPerWarp + r <= i && i < p.sequence;
        probabilities[r] = seen ? expf(probabilities[r] - lane_lse) : 0.0f;
        dscores[r] = probabilities[r] * (dscores[r] - lane_dot);
      }
      dvalue.Add(probabilities, memory.dout);
      dkey.Add(dscores, memory.query);  // Queries come scaled.
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int j = j0 + warp * kRowsPerWarp + r;
    if (j >= p.sequence) continue;
    dkey.StoreRow(r, 1.0f, p, dkey_rows.Head(sample, kv_head, p).Row(j));
    dvalue.StoreRow(r, 1.0f, p, dvalue_rows.Head(sample, kv_head, p).Row(j));
  }
}

// Calls f with an integral_constant of the width that takes d.
template <typename F>
void WithWidth(int64_t d, F f) {
  PERDURE_CHECK(d > 0 && d <= 256);
  if (d <= 32) {
    f(std::integral_constant<int, 32>());
  } else if (d <= 64) {
    f(std::integral_constant<int, 64>());
  } else if (d <= 128) {
    f(std::integral_constant<int, 128>());
  } else {
    f(std::integral_constant<int, 256>());
  }
}

// Calls f with a null pointer to the elements' type.
template <typename F>
void WithElements(DType dtype, F f) {
  if (dtype == DType::kF32) {
    f(static_cast<float*>(nullptr));
  } else {
    f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

Problem MakeProblem(const AttentionShape& shape) {
  // Grids and positions are counted in int.
  PERDURE_CHECK(shape.sequence < (int64_t{1} << 30));
  PERDURE_CHECK(shape.batch <= 65535 && shape.q_heads <= 65535);
  return {.sequence = static_cast<int>(shape.sequence),
          .q_heads = static_cast<int>(shape.q_heads),
          .kv_heads = static_cast<int>(shape.kv_heads),
          .d = static_cast<int>(shape.head_dim),
          .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim))};
}

// A matrix from column `first` on.
template <typename T>
Rows<const T> From(ConstMatrix x, int64_t first) {
  return {static_cast<const T*>(x.data) + first, x.stride};
}
template <typename T>
Rows<T> From(Matrix x, int64_t first) {
  return {static_cast<T*>(x.data) + first, x.stride};
}

dim3 Grid(const AttentionShape& shape, int64_t positions, int64_t heads) {
  return dim3(static_cast<unsigned>((shape.sequence + positions - 1) / positions),
              static_cast<unsigned>(heads), static_cast<unsigned>(shape.batch));
}

// Launches with `bytes` of shared memory, which a kernel must be allowed to have beyond 48 KiB.
template <typename... Parameters, typename... Arguments>
void Launch(const Stream& stream, const char* name, void (*kernel)(Parameters...), dim3 grid,
            size_t bytes, const Arguments&... arguments) {
  stream.errors->Note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(bytes)),
                      name);
  kernel<<<grid, kThreads, bytes, stream.stream>>>(arguments...);
  stream.Launched(name);
}

}  // namespace

void PlainAttentionForward(const Stream& stream, ConstMatrix qkv, const AttentionShape& shape,
                           Matrix out, float* lse) {
  const Problem problem = MakeProblem(shape);
  const int64_t key = shape.q_heads * shape.head_dim;
  const int64_t value = key + shape.kv_heads * shape.head_dim;
  WithElements(qkv.dtype, [&]<typename T>(T*) {
    WithWidth(shape.head_dim, [&]<int D>(std::integral_constant<int, D>) {
      Launch(stream, "plain attention forward", ForwardKernel<D, T>,
             Grid(shape, kTile, shape.q_heads), sizeof(ForwardMemory<D>), problem, From<T>(qkv, 0),
             From<T>(qkv, key), From<T>(qkv, value), From<T>(out, 0), lse);
    });
  });
}

void PlainAttentionBackward(const Stream& stream, Workspace& work, ConstMatrix dout,
                            ConstMatrix qkv, ConstMatrix out, const float* lse,
                            const AttentionShape& shape, Matrix dqkv) {
  const Problem problem = MakeProblem(shape);
  const int64_t key = shape.q_heads * shape.head_dim;
  const int64_t value = key + shape.kv_heads * shape.head_dim;
  auto* out_dot = static_cast<float*>(
      work.Reserve(static_cast<size_t>(shape.rows() * shape.q_heads) * sizeof(float)));
  WithElements(qkv.dtype, [&]<typename T>(T*) {
    Launch(stream, "plain attention backward, dot", OutDotKernel<T>,
           Grid(shape, kWarps, shape.q_heads), 0, problem, From<T>(dout, 0), From<T>(out, 0),
           out_dot);
    WithWidth(shape.head_dim, [&]<int D>(std::integral_constant<int, D>) {
      Launch(stream, "plain attention backward, dQ", DQueryKernel<D, T>,
             Grid(shape, kTile, shape.q_heads), sizeof(BackwardMemory<D>), problem, From<T>(qkv, 0),
             From<T>(qkv, key), From<T>(qkv, value), From<T>(dout, 0), lse, out_dot,
             From<T>(dqkv, 0));
      Launch(stream, "plain attention backward, dK and dV", DKeyValueKernel<D, T>,
             Grid(shape, kTile, shape.kv_heads), sizeof(BackwardMemory<D>), problem,
             From<T>(qkv, 0), From<T>(qkv, key), From<T>(qkv, value), From<T>(dout, 0), lse,
             out_dot, From<T>(dqkv, key), From<T>(dqkv, value));
    });
  });
}

}  // namespace perdure::cuda
