#include <utility>
#include <vector>

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

// --- acc = combine(acc, x)

template <typename Combine>
struct CombineBody {
  RowsOf<const float> x;
  RowsOf<float> acc;

  template <int N>
  struct Held {
    float x[N], acc[N];
  };
  template <int N>
  __device__ void Load(int64_t row, int64_t column, Held<N>& held) const {
    Read(x[row] + column, held.x);
    Read(acc[row] + column, held.acc);
  }
  template <int N>
  __device__ void Store(int64_t row, int64_t column, Held<N>& held) const {
#pragma unroll
    for (int i = 0; i < N; ++i) held.acc[i] = Combine()(held.acc[i], held.x[i]);
    Write(acc[row] + column, held.acc);
  }
};

// As std::max, also where one is a NaN: then acc stays.
struct Larger {
  __device__ float operator()(float acc, float x) const { return acc < x ? x : acc; }
};

template <typename Combine>
void LaunchCombine(const Stream& stream, const char* name, ConstMatrix x, Matrix acc) {
  PERDURE_CHECK(SameShape(x, acc));
  PERDURE_CHECK(x.dtype == DType::kF32 && acc.dtype == DType::kF32);
  JoinRows(x, acc);
  LaunchElementwise<4, 2>(stream, name,
                          CombineBody<Combine>{RowsOf<const float>(x), RowsOf<float>(acc)},
                          acc.rows, acc.cols, GroupsAligned<4>(x) && GroupsAligned<4>(acc));
}

// --- trees

constexpr size_t kPartsMax = 64;

// All of it is a kernel's parameter: 64 parts are 1 KiB of the 4 KiB that there may be.
template <int kCount, typename Residual, typename Out>
struct TreeBody {
  const float* part[kCount];
  int64_t part_stride[kCount];
  RowsOf<const Residual> residual;  // Its data may be null.
  RowsOf<Out> out;

  template <int N>
  struct Held {
    float sum[N];
  };
  // The balanced tree over parts [kFirst, kFirst + kParts). Compile-time recursion, so partial sums
  // stay in registers and parts in the constant bank.
  template <int kFirst, int kParts, int N>
  __device__ __forceinline__ void Tree(int64_t row, int64_t column, float (&sum)[N]) const {
    if constexpr (kParts == 1) {
      Read(part[kFirst] + row * part_stride[kFirst] + column, sum);
    } else {
      float right[N];
      Tree<kFirst, kParts / 2>(row, column, sum);
      Tree<kFirst + kParts / 2, kParts / 2>(row, column, right);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] = __fadd_rn(sum[i], right[i]);
    }
  }
  template <int N>
  __device__ __forceinline__ void Load(int64_t row, int64_t column, Held<N>& held) const {
    float base[N];
    if (residual.data != nullptr) Read(residual[row] + column, base);
    Tree<0, kCount>(row, column, held.sum);
    if (residual.data == nullptr) return;
#pragma unroll
    for (int i = 0; i < N; ++i) held.sum[i] = __fadd_rn(base[i], held.sum[i]);
  }
  template <int N>
  __device__ __forceinline__ void Store(int64_t row, int64_t column, const Held<N>& held) const {
    Write(out[row] + column, held.sum);
  }
};

template <int kCount, typename Residual, typename Out>
void LaunchTree(const Stream& stream, std::span<const ConstMatrix> parts, ConstMatrix residual,
                Matrix out) {
  const bool has_residual = residual.data != nullptr;
  bool joined = WithoutGaps(out) && (!has_residual || WithoutGaps(residual));
  for (const ConstMatrix& part : parts) joined = joined && WithoutGaps(part);
  if (joined) MakeOneRow(out);
  if (joined && has_residual) MakeOneRow(residual);
  TreeBody<kCount, Residual, Out> body{.part = {},
                                       .part_stride = {},
                                       .residual = RowsOf<const Residual>(residual),
                                       .out = RowsOf<Out>(out)};
  bool aligned = GroupsAligned<4>(out) && (!has_residual || GroupsAligned<4>(residual));
  for (int p = 0; p < kCount; ++p) {
    ConstMatrix part = parts[static_cast<size_t>(p)];
    if (joined) MakeOneRow(part);
    aligned = aligned && GroupsAligned<4>(part);
    body.part[p] = static_cast<const float*>(part.data);
    body.part_stride[p] = part.stride;
  }
  // Many parts are many loads under way by themselves.
  constexpr int kUnroll = kCount <= 4 ? 2 : 1;
  LaunchElementwise<4, kUnroll>(stream, "TreeSum", body, out.rows, out.cols, aligned);
}

template <typename Residual, typename Out>
void TreeSumOf(const Stream& stream, std::span<const ConstMatrix> parts, ConstMatrix residual,
               Matrix out) {
  switch (parts.size()) {
    case 1:
      return LaunchTree<1, Residual, Out>(stream, parts, residual, out);
    case 2:
      return LaunchTree<2, Residual, Out>(stream, parts, residual, out);
    case 4:
      return LaunchTree<4, Residual, Out>(stream, parts, residual, out);
    case 8:
      return LaunchTree<8, Residual, Out>(stream, parts, residual, out);
    case 16:
      return LaunchTree<16, Residual, Out>(stream, parts, residual, out);
    case 32:
      return LaunchTree<32, Residual, Out>(stream, parts, residual, out);
    case kPartsMax:
      return LaunchTree<kPartsMax, Residual, Out>(stream, parts, residual, out);
    default:
      CheckFailed(__FILE__, __LINE__, "TreeSum: the number of parts is a power of two <= 64");
  }
}

// --- sums of squares
//
// A run is cut into chunks, and a chunk is summed by one block: its element i belongs to lane i mod
// 1024, which sums its elements in their order, in fp64; four lanes are a thread's, and these are
// folded as BlockReduce does it. Chunks are summed by the 32 lanes of a warp, chunk c by lane c mod
// 32, and these are folded by halves. Nothing but the run's length decides.

constexpr int kSquareThreads = 256;
constexpr int kSquareLoads = 8;  // 16-byte loads of a thread that are under way at a time.
constexpr int kSquareStep = 4 * kSquareThreads;
constexpr int kChunk = 4 * kSquareLoads * kSquareStep;  // 128 KiB.

__host__ __device__ constexpr int64_t ChunksOf(int64_t count) {
  return (count + kChunk - 1) / kChunk;
}

struct PlacedRun {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t first_chunk = 0;
};

// The index of the last run whose first chunk is <= `chunk`: the one that has it, for runs without
// elements have no chunk. A warp probes 32 runs at a time.
__device__ int64_t RunOfChunk(const PlacedRun* runs, int64_t run_count, int64_t chunk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t low = 0;
  int64_t size = run_count;  // It is in [low, low + size).
  while (size > 1) {
    const int64_t step = (size + kWarp - 1) / kWarp;
    const int64_t probe = lane * step;
    const bool passed = probe < size && runs[low + probe].first_chunk <= chunk;
    const int64_t skipped = (__popc(__ballot_sync(kAllLanes, passed)) - 1) * step;
    low += skipped;
    size = min(step, size - skipped);
  }
  return low;
}

__device__ __forceinline__ void AddSquares(const Vector<float, 4>& vector, double (&sums)[4]) {
  float values[4];
  Unpack(vector, values);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double wide = values[i];
    sums[i] = __fma_rn(wide, wide, sums[i]);  // The square is exact anyway.
  }
}

__global__ void __launch_bounds__(kSquareThreads)
    ChunkSquares(const float* x, const PlacedRun* runs, int64_t run_count, double* chunk_sums) {
  __shared__ double scratch[kSquareThreads / kWarp];
  const int64_t chunk = blockIdx.x;
  const PlacedRun run = runs[RunOfChunk(runs, run_count, chunk)];
  const int64_t begin = (chunk - run.first_chunk) * kChunk;
  const auto count = static_cast<int>(min(int64_t{kChunk}, run.count - begin));
  const float* from = x + run.begin + begin;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
  double sums[4] = {};
  const int first = static_cast<int>(threadIdx.x) * 4;
  if (aligned && count == kChunk) {
#pragma unroll 1
    for (int base = first; base < kChunk; base += kSquareLoads * kSquareStep) {
      Vector<float, 4> vector[kSquareLoads];
#pragma unroll
      for (int u = 0; u < kSquareLoads; ++u)
        vector[u].word[0] = LoadWord(from + base + u * kSquareStep);
#pragma unroll
      for (int u = 0; u < kSquareLoads; ++u) AddSquares(vector[u], sums);
    }
  } else {
    // Zeros where there is nothing: they change no sum.
#pragma unroll 4
    for (int at = first; at < count; at += kSquareStep) {
      AddSquares(
          aligned && at + 4 <= count ? Load<true>(from, at, count) : Load<false>(from, at, count),
          sums);
    }
  }
  const double sum = BlockReduce((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
  if (threadIdx.x == 0) chunk_sums[chunk] = sum;
}

__global__ void __launch_bounds__(kSquareThreads)
    RunSquares(const PlacedRun* runs, int64_t run_count, const double* chunk_sums, double* sums) {
  const int64_t k = (int64_t{blockIdx.x} * kSquareThreads + static_cast<int>(threadIdx.x)) / kWarp;
  if (k >= run_count) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const PlacedRun run = runs[k];
  const int64_t chunks = ChunksOf(run.count);
  double sum = 0;
#pragma unroll 4
  for (int64_t c = lane; c < chunks; c += kWarp) sum += chunk_sums[run.first_chunk + c];
  sum = WarpReduce(sum);
  if (lane == 0) sums[k] = sum;
}

}  // namespace

void Add(const Stream& stream, ConstMatrix x, Matrix acc) {
  LaunchCombine<Sum>(stream, "Add", x, acc);
}

void Max(const Stream& stream, ConstMatrix x, Matrix acc) {
  LaunchCombine<Larger>(stream, "Max", x, acc);
}

void TreeSum(const Stream& stream, std::span<const ConstMatrix> parts, ConstMatrix residual,
             Matrix out) {
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
    TreeSumOf<BFloat16, BFloat16>(stream, parts, residual, out);
  } else if (residual.dtype == DType::kBF16) {
    TreeSumOf<BFloat16, float>(stream, parts, residual, out);
  } else {
    TreeSumOf<float, float>(stream, parts, residual, out);
  }
}

void SumsOfSquares(const Stream& stream, Workspace& work, const float* x,
                   std::span<const ElementRun> runs, double* sums) {
  if (runs.empty()) return;
  std::vector<PlacedRun> placed;
  placed.reserve(runs.size());
  int64_t chunks = 0;
  for (const ElementRun& run : runs) {
    PERDURE_CHECK(run.count >= 0);
    placed.push_back({.begin = run.begin, .count = run.count, .first_chunk = chunks});
    chunks += ChunksOf(run.count);
  }
  PERDURE_CHECK(chunks <= INT32_MAX);
  const auto run_count = static_cast<int64_t>(placed.size());
  const size_t table_bytes = placed.size() * sizeof(PlacedRun);
  static_assert(sizeof(PlacedRun) % sizeof(double) == 0);
  auto* memory =
      static_cast<char*>(work.Reserve(table_bytes + static_cast<size_t>(chunks) * sizeof(double)));
  const auto* table = reinterpret_cast<const PlacedRun*>(memory);
  auto* chunk_sums = reinterpret_cast<double*>(memory + table_bytes);
  // From pageable memory: the table has been read when this returns.
  stream.errors->Note(
      cudaMemcpyAsync(memory, placed.data(), table_bytes, cudaMemcpyHostToDevice, stream.stream),
      "cudaMemcpy of the runs");
  if (chunks > 0) {
    ChunkSquares<<<static_cast<unsigned>(chunks), kSquareThreads, 0, stream.stream>>>(
        x, table, run_count, chunk_sums);
    stream.Launched("ChunkSquares");
  }
  RunSquares<<<GridOf(DivCeil(run_count * kWarp, kSquareThreads)), kSquareThreads, 0,
               stream.stream>>>(table, run_count, chunk_sums, sums);
  stream.Launched("RunSquares");
}

}  // namespace perdure::cuda
