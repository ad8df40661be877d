#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

template <typename T>
struct LookupBody {
  const int32_t* tokens;
  RowsOf<const T> table;
  int64_t table_rows;
  int64_t row_begin;
  RowsOf<T> out;

  // Bits as they are in the table, so that all loads of a thread fit its registers.
  template <int N>
  struct Held {
    std::conditional_t<N == 1, T, Vector<T>> bits;
  };
  template <int N>
  __device__ void Load(int64_t t, int64_t column, Held<N>& held) const {
    const int64_t row = tokens[t] - row_begin;
    const bool exists = row >= 0 && row < table_rows;
    if constexpr (N == 1) {
      held.bits = exists ? table[row][column] : FromFloat<T>(0.0f);
    } else {
      held.bits.word[0] = make_uint4(0, 0, 0, 0);
      if (exists) held.bits.word[0] = LoadWord(table[row] + column);
    }
  }
  template <int N>
  __device__ void Store(int64_t t, int64_t column, const Held<N>& held) const {
    float values[N];
    if constexpr (N == 1) {
      values[0] = ToFloat(held.bits);
    } else {
      Unpack(held.bits, values);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = __fadd_rn(values[i], 0.0f);
    Write(out[t] + column, values);
  }
};

// The scatter-add without atomics: positions are sorted by their table row, stably, so the
// positions of one row stand side by side in token order: a run. It belongs to the blocks that have
// its first position in their part of the list, one block to a chunk of columns.

constexpr int kPlaceThreads = 256;
constexpr int kScatterThreads = 128;
constexpr int kEntries = 4;        // Of the sorted list, to a block.
constexpr int kScatterLoads = 16;  // Rows of dout under way at a time in a long run.
static_assert(kWarp % kScatterLoads == 0 && kEntries + 2 <= kWarp);

// Of a short list each entry's place is counted, all of them at once: one kernel in the time of one
// of the radix sort's many. The list is kept in shared memory, an entry as row * kRankedMax + t.
constexpr int kRankedMax = 8192;
constexpr int64_t kRankedRowsMax = (int64_t{1} << 32) / kRankedMax - 1;
constexpr int kRankThreads = 512;
constexpr int kRankEntries = 64;  // Of a block; as many threads count each in a part of the list.
constexpr int kRankParts = kRankThreads / kRankEntries;
static_assert(kRankedMax * sizeof(uint32_t) + kRankThreads * sizeof(int) <= 48 << 10);

// The entry of row `rows` where the token is not in the table.
__device__ __forceinline__ uint32_t RowOf(int32_t token, int64_t row_begin, int64_t rows) {
  const int64_t row = token - row_begin;
  return static_cast<uint32_t>(row >= 0 && row < rows ? row : rows);
}

__global__ void __launch_bounds__(kRankThreads)
    RankTokens(const int32_t* tokens, int count, int64_t row_begin, int64_t rows, uint32_t* row_of,
               int32_t* position) {
  __shared__ uint4 list[kRankedMax / 4];
  __shared__ int smaller[kRankParts][kRankEntries];
  auto* entries = reinterpret_cast<uint32_t*>(list);
  // Up to a multiple of what the parts read at a time; those that do not exist are the largest.
  const int quads = (count + 4 * kRankParts - 1) / (4 * kRankParts);
  for (int t = static_cast<int>(threadIdx.x); t < quads * kRankParts * 4; t += kRankThreads)
    entries[t] = t < count ? RowOf(tokens[t], row_begin, rows) * kRankedMax + t : ~0u;
  __syncthreads();
  const int at = static_cast<int>(threadIdx.x) % kRankEntries;
  const int part = static_cast<int>(threadIdx.x) / kRankEntries;  // One to a warp: all read alike.
  const int t = static_cast<int>(blockIdx.x) * kRankEntries + at;
  const uint32_t mine = t < count ? entries[t] : 0;
  int sum = 0;
#pragma unroll 8
  for (int q = 0; q < quads; ++q) {
    const uint4 others = list[part * quads + q];
    sum += (others.x < mine) + (others.y < mine) + (others.z < mine) + (others.w < mine);
  }
  smaller[part][at] = sum;
  __syncthreads();
  if (part > 0 || t >= count) return;
  int rank = 0;
#pragma unroll
  for (int p = 0; p < kRankParts; ++p) rank += smaller[p][at];
  row_of[rank] = mine / kRankedMax;
  position[rank] = t;
}

__global__ void __launch_bounds__(kPlaceThreads)
    PlaceTokens(const int32_t* tokens, int count, int64_t row_begin, int64_t rows, uint32_t* row_of,
                int32_t* position) {
  const int64_t t = int64_t{blockIdx.x} * kPlaceThreads + threadIdx.x;
  if (t >= count) return;
  row_of[t] = RowOf(tokens[t], row_begin, rows);
  position[t] = static_cast<int32_t>(t);
}

template <typename T>
struct Scatter {
  const uint32_t* row_of;
  const int32_t* position;
  int count;
  RowsOf<const T> dout;
  RowsOf<float> dtable;
  int64_t rows;
  int64_t cols;
};

// The run that begins at `first` of the list: as many rows of dout under way as registers hold.
template <bool kWhole, typename T>
__device__ __forceinline__ void AddRun(const Scatter<T>& o, int64_t first, int64_t column) {
  constexpr int N = kVectorSize<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint32_t row = o.row_of[first];
  float sum[N];
  LoadFloats<kWhole>(o.dtable[row], column, o.cols, sum);
  int here = kWarp;
  for (int64_t base = first; here == kWarp; base += kWarp) {
    const bool exists = base + lane < o.count;
    const int32_t mine = exists ? o.position[base + lane] : 0;
    here = __popc(__ballot_sync(kAllLanes, exists && o.row_of[base + lane] == row));
    for (int k = 0; k < here; k += kScatterLoads) {
      Vector<T> vector[kScatterLoads];
#pragma unroll
      for (int u = 0; u < kScatterLoads; ++u) {
        const int32_t t = __shfl_sync(kAllLanes, mine, k + u);
        vector[u] = Load<kWhole>(o.dout[t], column, k + u < here ? o.cols : 0);
      }
#pragma unroll
      for (int u = 0; u < kScatterLoads; ++u) {
        if (k + u >= here) break;
        float values[N];
        Unpack(vector[u], values);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] = __fadd_rn(sum[i], values[i]);
      }
    }
  }
  StoreFloats<kWhole>(o.dtable[row], column, o.cols, sum);
}

// Most tokens of a batch occur once: what such entries read is under way all at once, so a block
// waits twice, for the list and for that.
template <bool kWhole, typename T>
__global__ void __launch_bounds__(kScatterThreads)
    AddRows(const Scatter<T> o, const unsigned chunks) {
  constexpr int N = kVectorSize<T>;
  const int64_t first = int64_t{blockIdx.x / chunks} * kEntries;
  const int64_t column =
      (int64_t{blockIdx.x % chunks} * kScatterThreads + static_cast<int>(threadIdx.x)) * N;
  // Lane e + 1 looks at entry first + e; its neighbours tell whether a run begins and ends there.
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t at = first - 1 + lane;
  const bool exists = at >= 0 && at < o.count && lane < kEntries + 2;
  const auto none = static_cast<uint32_t>(o.rows);
  const uint32_t row = exists ? o.row_of[at] : none;
  const int32_t position = exists ? o.position[at] : 0;
  const uint32_t before = __shfl_up_sync(kAllLanes, row, 1);
  const uint32_t after = __shfl_down_sync(kAllLanes, row, 1);
  const bool begins = row != none && row != before, ends = row != after;
  const unsigned own = ((1u << kEntries) - 1) << 1;
  const unsigned beginning = __ballot_sync(kAllLanes, begins) & own;
  const unsigned alone = __ballot_sync(kAllLanes, begins && ends) & own;

  float* to[kEntries];
  Vector<float, N> sum[kEntries];
  Vector<T> more[kEntries];
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    to[e] = o.dtable[__shfl_sync(kAllLanes, row, e + 1)];
    const T* from = o.dout[__shfl_sync(kAllLanes, position, e + 1)];
    const int64_t cols = alone >> (e + 1) & 1 ? o.cols : 0;
    sum[e] = Load<kWhole, float, N>(to[e], column, cols);
    more[e] = Load<kWhole>(from, column, cols);
  }
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    float values[N], added[N];
    Unpack(sum[e], values);
    Unpack(more[e], added);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = __fadd_rn(values[i], added[i]);
    StoreFloats<kWhole>(to[e], column, alone >> (e + 1) & 1 ? o.cols : 0, values);
  }
#pragma unroll 1
  for (unsigned left = beginning & ~alone; left != 0; left &= left - 1)
    AddRun<kWhole>(o, first - 2 + __ffs(static_cast<int>(left)), column);
}

constexpr size_t RoundUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void EmbeddingForward(const Stream& stream, const int32_t* tokens, ConstMatrix table,
                      int64_t row_begin, Matrix out) {
  PERDURE_CHECK(table.cols == out.cols);
  PERDURE_CHECK(table.dtype == out.dtype);
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const LookupBody<T> body{tokens, RowsOf<const T>(table), table.rows, row_begin, RowsOf<T>(out)};
    LaunchElementwise<N, 4>(stream, "EmbeddingForward", body, out.rows, out.cols,
                            GroupsAligned<N>(table) && GroupsAligned<N>(out));
  });
}

void EmbeddingBackward(const Stream& stream, Workspace& work, const int32_t* tokens,
                       ConstMatrix dout, int64_t row_begin, Matrix dtable) {
  PERDURE_CHECK(dtable.cols == dout.cols);
  PERDURE_CHECK(dtable.dtype == DType::kF32);
  if (dout.size() == 0 || dtable.rows == 0) return;
  PERDURE_CHECK(dout.rows <= INT32_MAX / 2 && dtable.rows < INT32_MAX);
  const auto count = static_cast<int>(dout.rows);
  const bool ranked = count <= kRankedMax && dtable.rows < kRankedRowsMax;
  const int key_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(dtable.rows)));

  const auto sort = [&](void* memory, size_t& bytes, uint32_t* const row_of[2],
                        int32_t* const position[2]) {
    stream.errors->Note(
        cub::DeviceRadixSort::SortPairs(memory, bytes, row_of[0], row_of[1], position[0],
                                        position[1], count, 0, key_bits, stream.stream),
        "cub::DeviceRadixSort");
  };
  uint32_t* row_of[2] = {};
  int32_t* position[2] = {};
  size_t sort_bytes = 0;
  if (!ranked) sort(nullptr, sort_bytes, row_of, position);
  const size_t list_bytes = RoundUp(static_cast<size_t>(count) * sizeof(int32_t));
  auto* memory = static_cast<char*>(work.Reserve(4 * list_bytes + sort_bytes));
  for (size_t i = 0; i < 2; ++i) {
    row_of[i] = reinterpret_cast<uint32_t*>(memory + i * list_bytes);
    position[i] = reinterpret_cast<int32_t*>(memory + (2 + i) * list_bytes);
  }
  if (ranked) {
    RankTokens<<<GridOf(DivCeil(count, kRankEntries)), kRankThreads, 0, stream.stream>>>(
        tokens, count, row_begin, dtable.rows, row_of[1], position[1]);
    stream.Launched("EmbeddingBackward: RankTokens");
  } else {
    PlaceTokens<<<GridOf(DivCeil(count, kPlaceThreads)), kPlaceThreads, 0, stream.stream>>>(
        tokens, count, row_begin, dtable.rows, row_of[0], position[0]);
    stream.Launched("EmbeddingBackward: PlaceTokens");
    sort(memory + 4 * list_bytes, sort_bytes, row_of, position);
  }

  WithType(dout.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const int64_t chunks = DivCeil(dout.cols, int64_t{N} * kScatterThreads);
    const int64_t blocks = chunks * DivCeil(count, kEntries);
    PERDURE_CHECK(blocks <= INT32_MAX);
    const Scatter<T> operands{.row_of = row_of[1],
                              .position = position[1],
                              .count = count,
                              .dout = RowsOf<const T>(dout),
                              .dtable = RowsOf<float>(dtable),
                              .rows = dtable.rows,
                              .cols = dtable.cols};
    WithBool(WholeVectors(dout, N) && WholeVectors(dtable, N), [&]<bool kWhole>(
                                                                   std::bool_constant<kWhole>) {
      AddRows<kWhole><<<static_cast<unsigned>(blocks), kScatterThreads, 0, stream.stream>>>(
          operands, static_cast<unsigned>(chunks));
    });
  });
  stream.Launched("EmbeddingBackward: AddRows");
}

}  // namespace perdure::cuda
