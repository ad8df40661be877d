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

  template <int N>
  struct Held {
    float value[N];
  };
  template <int N>
  __device__ void Load(int64_t t, int64_t column, Held<N>& held) const {
    const int64_t row = tokens[t] - row_begin;
    if (row >= 0 && row < table_rows) {
      Read(table[row] + column, held.value);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) held.value[i] = 0.0f;
    }
  }
  template <int N>
  __device__ void Store(int64_t t, int64_t column, Held<N>& held) const {
#pragma unroll
    for (int i = 0; i < N; ++i) held.value[i] = __fadd_rn(held.value[i], 0.0f);
    Write(out[t] + column, held.value);
  }
};

// The scatter-add without atomics: positions are sorted by their table row, stably, so the
// positions of one row stand side by side in token order. A row belongs to the blocks of the first
// of them, one block to a chunk of columns.

constexpr int kPlaceThreads = 256;
constexpr int kScatterThreads = 128;
constexpr int kScatterLoads = 8;  // Rows of dout under way at a time.
static_assert(kWarp % kScatterLoads == 0);

// row_of[t] is `rows` where the token is not in the table.
__global__ void __launch_bounds__(kPlaceThreads)
    PlaceTokens(const int32_t* tokens, int count, int64_t row_begin, int64_t rows, uint32_t* row_of,
                int32_t* position) {
  const int64_t t = int64_t{blockIdx.x} * kPlaceThreads + threadIdx.x;
  if (t >= count) return;
  const int64_t row = tokens[t] - row_begin;
  row_of[t] = static_cast<uint32_t>(row >= 0 && row < rows ? row : rows);
  position[t] = static_cast<int32_t>(t);
}

template <typename T, bool kWhole>
__global__ void __launch_bounds__(kScatterThreads)
    AddRows(const uint32_t* row_of, const int32_t* position, const int count,
            const RowsOf<const T> dout, const RowsOf<float> dtable, const int64_t rows,
            const int64_t cols, const unsigned chunks) {
  constexpr int N = kVectorSize<T>;
  const int64_t first = blockIdx.x / chunks;
  const uint32_t row = row_of[first];
  if (row >= rows || (first > 0 && row_of[first - 1] == row)) return;
  const int64_t column =
      (int64_t{blockIdx.x % chunks} * kScatterThreads + static_cast<int>(threadIdx.x)) * N;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sum[N];
  LoadFloats<kWhole>(dtable[row], column, cols, sum);
  int here = kWarp;
  for (int64_t base = first; here == kWarp; base += kWarp) {
    const bool same = base + lane < count && row_of[base + lane] == row;
    const int32_t mine = same ? position[base + lane] : 0;
    here = __popc(__ballot_sync(kAllLanes, same));
    for (int k = 0; k < here; k += kScatterLoads) {
      Vector<T> vector[kScatterLoads];
#pragma unroll
      for (int u = 0; u < kScatterLoads; ++u) {
        const int32_t t = __shfl_sync(kAllLanes, mine, k + u);
        vector[u] = Load<kWhole>(dout[t], column, k + u < here ? cols : 0);
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
  StoreFloats<kWhole>(dtable[row], column, cols, sum);
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
    LaunchElementwise<N, 2>(stream, "EmbeddingForward", body, out.rows, out.cols,
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
  sort(nullptr, sort_bytes, row_of, position);
  const size_t list_bytes = RoundUp(static_cast<size_t>(count) * sizeof(int32_t));
  auto* memory = static_cast<char*>(work.Reserve(4 * list_bytes + sort_bytes));
  for (size_t i = 0; i < 2; ++i) {
    row_of[i] = reinterpret_cast<uint32_t*>(memory + i * list_bytes);
    position[i] = reinterpret_cast<int32_t*>(memory + (2 + i) * list_bytes);
  }
  PlaceTokens<<<GridOf(DivCeil(count, kPlaceThreads)), kPlaceThreads, 0, stream.stream>>>(
      tokens, count, row_begin, dtable.rows, row_of[0], position[0]);
  stream.Launched("EmbeddingBackward: PlaceTokens");
  sort(memory + 4 * list_bytes, sort_bytes, row_of, position);

  WithType(dout.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const int64_t chunks = DivCeil(dout.cols, int64_t{N} * kScatterThreads);
    PERDURE_CHECK(chunks * count <= INT32_MAX);
    WithBool(WholeVectors(dout, N) && WholeVectors(dtable, N),
             [&]<bool kWhole>(std::bool_constant<kWhole>) {
               AddRows<T, kWhole>
                   <<<static_cast<unsigned>(chunks * count), kScatterThreads, 0, stream.stream>>>(
                       row_of[1], position[1], count, RowsOf<const T>(dout), RowsOf<float>(dtable),
                       dtable.rows, dtable.cols, static_cast<unsigned>(chunks));
             });
  });
  stream.Launched("EmbeddingBackward: AddRows");
}

}  // namespace perdure::cuda
