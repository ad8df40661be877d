// A block per row, and a thread's columns are the vectors (i * threads + thread): it keeps the
// first of them in registers between the two passes, and reads those beyond again, from the cache.
// Sums: a thread's columns in ascending order, then the threads as BlockReduce says.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/vector.cuh"

namespace perdure::cuda {
namespace {

// --- forward

// Vectors that a thread of the forward pass keeps: a row of 4096 bf16 is 128 threads' then. With
// their weights they fill 64 registers, so eight such blocks share a multiprocessor; asking for the
// weights later made room for twelve, and was slower on an H200.
constexpr int kHeld = 4;

template <bool kWhole, bool kBeyond, typename T>
__global__ void __launch_bounds__(1024)
    Forward(RowsOf<const T> x, const T* weight, float eps, RowsOf<T> y, float* rstd, int64_t rows,
            int64_t cols) {
  constexpr int N = kVectorSize<T>;
  __shared__ float scratch[2][kWarp];
  const int64_t step = int64_t{blockDim.x} * N;
  const int64_t begin = int64_t{threadIdx.x} * N;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const T* from = x[row];
    T* to = y[row];
    Vector<T> held[kHeld], scale[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held[i] = Load<kWhole>(from, begin + i * step, cols);
      // Asked for before the reduction, so that it waits for both at once.
#pragma unroll
    for (int i = 0; i < kHeld; ++i) scale[i] = Load<kWhole>(weight, begin + i * step, cols);

    float squares = 0;
    const auto add = [&](const Vector<T>& vector) {
      float values[N];
      Unpack(vector, values);
#pragma unroll
      for (int j = 0; j < N; ++j) squares = __fmaf_rn(values[j], values[j], squares);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) add(held[i]);
    if constexpr (kBeyond) {
      for (int64_t c = begin + kHeld * step; c < cols; c += step) add(Load<kWhole>(from, c, cols));
    }
    const float mean = __fdiv_rn(BlockReduce(squares, scratch[turn]), static_cast<float>(cols));
    const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
    if (threadIdx.x == 0) rstd[row] = inverse;

    const auto write = [&](int64_t c, const Vector<T>& vector, const Vector<T>& weights) {
      float values[N], factors[N];
      Unpack(vector, values);
      Unpack(weights, factors);
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = __fmul_rn(__fmul_rn(values[j], inverse), factors[j]);
      StoreFloats<kWhole>(to, c, cols, values);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      KeepPacked(held[i]);
      write(begin + i * step, held[i], scale[i]);
    }
    if constexpr (kBeyond) {
      for (int64_t c = begin + kHeld * step; c < cols; c += step)
        write(c, Load<kWhole>(from, c, cols), Load<kWhole>(weight, c, cols));
    }
  }
}

// --- backward
//
// With u = x * rstd and g = dy * weight: dx = dresidual + rstd * (g - u * mean(g * u)), dweight =
// sum over a slice's rows of dy * u. A block walks a run of rows of one slice and keeps its sums of
// dweight; a second kernel adds up the blocks'. The runs follow from the rows of a slice alone.

// Runs of a slice at most: all of them run at once on the devices that we know, two on a
// multiprocessor, and their sums are still few.
constexpr int64_t kRunsMax = 256;
// Up to so many runs, runs stay short; beyond, 16 rows, since a run's sums are written and read
// again, which costs as much as two rows of bf16.
constexpr int64_t kRunsWanted = 128;
constexpr int64_t kRunRowsMin = 4;
constexpr int64_t kRunRowsWanted = 16;
constexpr int kBackwardThreadsMax = 512;

int64_t RunRows(int64_t slice_rows) {
  const int64_t few = std::min(DivCeil(slice_rows, kRunsWanted), kRunRowsWanted);
  return std::max({few, kRunRowsMin, DivCeil(slice_rows, kRunsMax)});
}

// The sums of one run are a row of this many floats, in whole vectors of any dtype.
int64_t PartialStride(int64_t cols) { return DivCeil(cols, 8) * 8; }

template <typename T>
struct BackwardOperands {
  RowsOf<const T> dy;
  RowsOf<const T> x;
  const T* weight;
  const float* rstd;
  RowsOf<const T> dresidual;  // Null data: zeros.
  RowsOf<T> dx;
  float* partial;  // [slices][runs, partial_stride]
  int64_t partial_stride;
  int64_t slice_rows;
  int64_t cols;
  int64_t run_rows;
  unsigned runs;  // Of a slice.
};

// One thread's vector of a row's inputs.
template <typename T>
struct Inputs {
  Vector<T> dy, x, base;
};

template <bool kWhole, typename T>
__device__ __forceinline__ Inputs<T> LoadInputs(const BackwardOperands<T>& o, int64_t row,
                                                int64_t column) {
  Inputs<T> in;
  in.dy = Load<kWhole>(o.dy[row], column, o.cols);
  in.x = Load<kWhole>(o.x[row], column, o.cols);
  in.base =
      o.dresidual.data == nullptr ? Vector<T>{} : Load<kWhole>(o.dresidual[row], column, o.cols);
  return in;
}

// Adds a vector's part to the row's dot product of g and u, and to the columns' sums of dy * u.
template <typename T, int N = kVectorSize<T>>
__device__ __forceinline__ void AddVector(const Inputs<T>& in, const Vector<T>& weights,
                                          float inverse, float& dot, float (&sums)[N]) {
  float dy[N], x[N], factors[N];
  Unpack(in.dy, dy);
  Unpack(in.x, x);
  Unpack(weights, factors);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float unit = __fmul_rn(x[j], inverse);
    dot = __fmaf_rn(__fmul_rn(dy[j], factors[j]), unit, dot);
    sums[j] = __fmaf_rn(dy[j], unit, sums[j]);
  }
}

template <bool kWhole, typename T>
__device__ __forceinline__ void WriteVector(const BackwardOperands<T>& o, int64_t row,
                                            int64_t column, const Inputs<T>& in,
                                            const Vector<T>& weights, float inverse, float mean) {
  constexpr int N = kVectorSize<T>;
  float dy[N], x[N], base[N], factors[N];
  Unpack(in.dy, dy);
  Unpack(in.x, x);
  Unpack(in.base, base);
  Unpack(weights, factors);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float unit = __fmul_rn(x[j], inverse);
    const float centred = __fmaf_rn(-unit, mean, __fmul_rn(dy[j], factors[j]));
    base[j] = __fadd_rn(base[j], __fmul_rn(centred, inverse));
  }
  StoreFloats<kWhole>(o.dx[row], column, o.cols, base);
}

// A thread keeps V vectors of a row; with few of them also the next row's, asked for while the
// block still waits for the sum of this one's. (A ring of asynchronous copies in shared memory,
// four rows deep, was 7 % slower on an H200.)
template <bool kWhole, bool kBeyond, typename T, int V>
__global__ void __launch_bounds__(kBackwardThreadsMax, V == 1 ? 2 : 1)
    Backward(const BackwardOperands<T> o) {
  constexpr int N = kVectorSize<T>;
  constexpr bool kAhead = V <= 2;
  __shared__ float scratch[2][kWarp];
  const int64_t step = int64_t{blockDim.x} * N;
  const int64_t begin = int64_t{threadIdx.x} * N;
  const int64_t beyond = begin + V * step;
  const int64_t slice = blockIdx.x / o.runs;
  const int64_t row_begin = slice * o.slice_rows + blockIdx.x % o.runs * o.run_rows;
  const int64_t row_end = min(row_begin + o.run_rows, (slice + 1) * o.slice_rows);
  float* partial = o.partial + blockIdx.x * o.partial_stride;

  Vector<T> weights[V];
  float sums[V][N];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    weights[i] = Load<kWhole>(o.weight, begin + i * step, o.cols);
#pragma unroll
    for (int j = 0; j < N; ++j) sums[i][j] = 0;
  }
  // The sums of columns that no register has are kept where they will end anyway.
  if constexpr (kBeyond) {
    for (int64_t c = beyond; c < o.cols; c += step) {
      const float zeros[N] = {};
      StoreFloats<true>(partial, c, o.partial_stride, zeros);
    }
  }

  Inputs<T> next[V];
  float next_inverse = 0;
  const auto fetch = [&](int64_t row) {
    next_inverse = o.rstd[row];
#pragma unroll
    for (int i = 0; i < V; ++i) next[i] = LoadInputs<kWhole>(o, row, begin + i * step);
  };
  if (kAhead) fetch(row_begin);
  int turn = 0;
  for (int64_t row = row_begin; row < row_end; ++row, turn ^= 1) {
    if (!kAhead) fetch(row);
    Inputs<T> now[V];
#pragma unroll
    for (int i = 0; i < V; ++i) now[i] = next[i];
    const float inverse = next_inverse;
    if (kAhead && row + 1 < row_end) fetch(row + 1);

    float dot = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) AddVector(now[i], weights[i], inverse, dot, sums[i]);
    if constexpr (kBeyond) {
      for (int64_t c = beyond; c < o.cols; c += step) {
        float kept[N];
        LoadFloats<true>(partial, c, o.partial_stride, kept);
        AddVector(LoadInputs<kWhole>(o, row, c), Load<kWhole>(o.weight, c, o.cols), inverse, dot,
                  kept);
        StoreFloats<true>(partial, c, o.partial_stride, kept);
      }
    }
    const float mean = __fdiv_rn(BlockReduce(dot, scratch[turn]), static_cast<float>(o.cols));
#pragma unroll
    for (int i = 0; i < V; ++i) {
      KeepPacked(now[i].dy);
      KeepPacked(now[i].x);
      KeepPacked(weights[i]);
      WriteVector<kWhole>(o, row, begin + i * step, now[i], weights[i], inverse, mean);
    }
    if constexpr (kBeyond) {
      for (int64_t c = beyond; c < o.cols; c += step)
        WriteVector<kWhole>(o, row, c, LoadInputs<kWhole>(o, row, c),
                            Load<kWhole>(o.weight, c, o.cols), inverse, mean);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    StoreFloats<true>(partial, begin + i * step, o.partial_stride, sums[i]);
}

// dweight += the runs' sums: kGroups groups of consecutive runs, each in order, then the groups in
// order. A row of blocks for each slice.
constexpr int kGroups = 16;

__global__ void __launch_bounds__(kWarp* kGroups)
    AddPartials(const float* partial, int64_t partial_stride, int runs, RowsOf<float> dweight,
                int64_t cols) {
  __shared__ float group_sums[kGroups][kWarp];
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  partial += int64_t{blockIdx.y} * runs * partial_stride;
  const int count = (runs + kGroups - 1) / kGroups;
  const int begin = static_cast<int>(threadIdx.y) * count;
  const int end = min(begin + count, runs);
  float sum = 0;
  if (column < cols) {
#pragma unroll 16
    for (int run = begin; run < end; ++run)
      sum = __fadd_rn(sum, partial[run * partial_stride + column]);
  }
  group_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= cols) return;
  float& sum_of_all = dweight[blockIdx.y][column];
  float total = sum_of_all;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) total = __fadd_rn(total, group_sums[g][threadIdx.x]);
  sum_of_all = total;
}

// Threads for `count` pieces of work, in whole warps.
unsigned ThreadsFor(int64_t count, int64_t threads_max) {
  return static_cast<unsigned>(
      std::clamp(DivCeil(count, kWarp) * kWarp, int64_t{kWarp}, threads_max));
}

template <bool kWhole, typename T>
void LaunchBackward(const Stream& stream, const BackwardOperands<T>& o, unsigned blocks) {
  const int64_t vectors = DivCeil(o.cols, kVectorSize<T>);
  const int64_t each = DivCeil(vectors, kBackwardThreadsMax);
  const unsigned threads = ThreadsFor(DivCeil(vectors, each), kBackwardThreadsMax);
  // A thread's columns do not depend on how many of them it keeps, so where speed does not count
  // it keeps few.
  const auto kernel = !kWhole || each > 4 ? Backward<kWhole, true, T, 1>
                      : each == 1         ? Backward<true, false, T, 1>
                      : each == 2         ? Backward<true, false, T, 2>
                                          : Backward<true, false, T, 4>;
  kernel<<<blocks, threads, 0, stream.stream>>>(o);
  stream.Launched("RmsNormBackward");
}

}  // namespace

void RmsNormForward(const Stream& stream, ConstMatrix x, ConstMatrix weight, float eps, Matrix y,
                    float* rstd) {
  PERDURE_CHECK(SameShape(x, y));
  PERDURE_CHECK(weight.rows == 1 && weight.cols == x.cols);
  PERDURE_CHECK(x.dtype == y.dtype && x.dtype == weight.dtype);
  if (x.rows == 0) return;
  WithType(x.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const bool whole = WholeVectors(x, N) && WholeVectors(weight, N) && WholeVectors(y, N);
    const unsigned threads = ThreadsFor(DivCeil(x.cols, N * kHeld), 1024);
    const bool beyond = x.cols > int64_t{threads} * N * kHeld;
    const auto kernel = !whole   ? Forward<false, true, T>
                        : beyond ? Forward<true, true, T>
                                 : Forward<true, false, T>;
    kernel<<<GridOf(x.rows), threads, 0, stream.stream>>>(RowsOf<const T>(x),
                                                          static_cast<const T*>(weight.data), eps,
                                                          RowsOf<T>(y), rstd, x.rows, x.cols);
  });
  stream.Launched("RmsNormForward");
}

void RmsNormBackward(const Stream& stream, Workspace& work, ConstMatrix dy, ConstMatrix x,
                     ConstMatrix weight, const float* rstd, ConstMatrix dresidual, Matrix dx,
                     Matrix dweight) {
  PERDURE_CHECK(SameShape(dy, x) && SameShape(dx, x));
  PERDURE_CHECK(weight.rows == 1 && weight.cols == x.cols);
  PERDURE_CHECK(dweight.cols == x.cols && dweight.rows > 0 && x.rows % dweight.rows == 0);
  PERDURE_CHECK(dy.dtype == x.dtype && weight.dtype == x.dtype && dx.dtype == x.dtype);
  PERDURE_CHECK(dweight.dtype == DType::kF32);
  const bool has_residual = dresidual.data != nullptr;
  if (has_residual) PERDURE_CHECK(SameShape(dresidual, x) && dresidual.dtype == x.dtype);
  if (x.rows == 0 || x.cols == 0) return;
  const int64_t slices = dweight.rows, slice_rows = x.rows / slices;
  const int64_t run_rows = RunRows(slice_rows);
  const int64_t runs = DivCeil(slice_rows, run_rows);
  PERDURE_CHECK(slices <= 65535);  // Blocks of a grid's second dimension.
  const int64_t partial_stride = PartialStride(x.cols);
  float* partial = static_cast<float*>(
      work.Reserve(static_cast<size_t>(slices * runs * partial_stride) * sizeof(float)));
  WithType(x.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const BackwardOperands<T> operands{.dy = RowsOf<const T>(dy),
                                       .x = RowsOf<const T>(x),
                                       .weight = static_cast<const T*>(weight.data),
                                       .rstd = rstd,
                                       .dresidual = RowsOf<const T>(dresidual),
                                       .dx = RowsOf<T>(dx),
                                       .partial = partial,
                                       .partial_stride = partial_stride,
                                       .slice_rows = slice_rows,
                                       .cols = x.cols,
                                       .run_rows = run_rows,
                                       .runs = static_cast<unsigned>(runs)};
    const bool whole = WholeVectors(dy, N) && WholeVectors(x, N) && WholeVectors(weight, N) &&
                       WholeVectors(dx, N) && (!has_residual || WholeVectors(dresidual, N));
    WithBool(whole, [&]<bool kWhole>(std::bool_constant<kWhole>) {
      LaunchBackward<kWhole>(stream, operands, static_cast<unsigned>(slices * runs));
    });
  });
  const int64_t column_blocks = DivCeil(x.cols, kWarp);
  PERDURE_CHECK(column_blocks <= INT32_MAX);
  AddPartials<<<dim3(static_cast<unsigned>(column_blocks), static_cast<unsigned>(slices)),
                dim3(kWarp, kGroups), 0, stream.stream>>>(
      partial, partial_stride, static_cast<int>(runs), RowsOf<float>(dweight), x.cols);
  stream.Launched("RmsNormBackward, adding up dweight");
}

}  // namespace perdure::cuda
