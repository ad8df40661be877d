#include <vector>

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

// A block sums a chunk of a run; its sum is added to the run's by an atomic on integers, whose
// order does not show.
constexpr int kSumThreads = 256;
constexpr int64_t kChunkWords = int64_t{32} * 4 * kSumThreads;  // 128 KiB.

__host__ __device__ constexpr int64_t WordsOf(int64_t bytes) { return (bytes + 3) / 4; }
__host__ __device__ constexpr int64_t ChunksOf(int64_t bytes) {
  return (WordsOf(bytes) + kChunkWords - 1) / kChunkWords;
}

struct PlacedRun {
  WordRun run;
  int64_t first_chunk = 0;
};

// The last run whose first chunk is <= `chunk`: runs without bytes have none.
__device__ int64_t RunOfChunk(const PlacedRun* runs, int64_t run_count, int64_t chunk) {
  int64_t low = 0, high = run_count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (runs[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Word `word` of a run: a 2-byte element alone may begin it, or be its end.
__device__ __forceinline__ uint64_t WordAt(const char* from, int64_t word, int64_t bytes) {
  const auto* halves = reinterpret_cast<const uint16_t*>(from) + 2 * word;
  const uint32_t low = halves[0];
  const uint32_t high = 4 * word + 2 < bytes ? halves[1] : 0;
  return low | high << 16;
}

__global__ void __launch_bounds__(kSumThreads)
    SumChunks(const char* data, const PlacedRun* runs, int64_t run_count,
              unsigned long long* sums) {
  __shared__ unsigned long long block_sum;
  if (threadIdx.x == 0) block_sum = 0;
  __syncthreads();
  const int64_t chunk = blockIdx.x;
  const PlacedRun placed = runs[RunOfChunk(runs, run_count, chunk)];
  const WordRun& run = placed.run;
  const char* from = data + run.begin;
  const int64_t begin = (chunk - placed.first_chunk) * kChunkWords;
  const int64_t end = min(begin + kChunkWords, WordsOf(run.bytes));
  const int64_t whole = min(end, run.bytes / 4);  // Words that are whole.
  uint64_t sum = 0;
  const auto weight = [&](int64_t word) {
    return static_cast<uint64_t>(2 * (run.first + word) + 1);
  };
  const auto address = reinterpret_cast<uintptr_t>(from + 4 * begin);
  int64_t rest = begin;  // From where on words are read one by one.
  if (address % 16 == 0) {
    const auto* vectors = reinterpret_cast<const uint4*>(from + 4 * begin);
    const int64_t count = (whole - begin) / 4;
#pragma unroll 4
    for (int64_t v = threadIdx.x; v < count; v += kSumThreads) {
      const uint4 x = LoadWord(vectors + v);
      const uint64_t w = weight(begin + 4 * v);
      sum += x.x * w + x.y * (w + 2) + x.z * (w + 4) + x.w * (w + 6);
    }
    rest = begin + 4 * max(count, int64_t{0});
  }
  for (int64_t word = rest + static_cast<int>(threadIdx.x); word < end; word += kSumThreads)
    sum += WordAt(from, word, run.bytes) * weight(word);
    // By halves of a warp first, so that few atomics meet.
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_down_sync(kAllLanes, sum, lanes);
  if (threadIdx.x % kWarp == 0) atomicAdd(&block_sum, static_cast<unsigned long long>(sum));
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&sums[run.sum], block_sum);
}

}  // namespace

void WordSums(const Stream& stream, Workspace& work, const void* data,
              std::span<const WordRun> runs, uint64_t* sums) {
  std::vector<PlacedRun> placed;
  placed.reserve(runs.size());
  int64_t chunks = 0;
  for (const WordRun& run : runs) {
    PERDURE_CHECK(run.begin % 2 == 0 && run.bytes >= 0 && run.bytes % 2 == 0);
    if (run.bytes == 0) continue;
    placed.push_back({.run = run, .first_chunk = chunks});
    chunks += ChunksOf(run.bytes);
  }
  if (placed.empty()) return;
  PERDURE_CHECK(chunks <= INT32_MAX);
  const size_t table_bytes = placed.size() * sizeof(PlacedRun);
  void* table = work.Reserve(table_bytes);
  // From pageable memory: the table has been read when this returns.
  stream.errors->Note(
      cudaMemcpyAsync(table, placed.data(), table_bytes, cudaMemcpyHostToDevice, stream.stream),
      "cudaMemcpy of the runs");
  SumChunks<<<static_cast<unsigned>(chunks), kSumThreads, 0, stream.stream>>>(
      static_cast<const char*>(data), static_cast<const PlacedRun*>(table),
      static_cast<int64_t>(placed.size()), reinterpret_cast<unsigned long long*>(sums));
  stream.Launched("SumChunks");
}

}  // namespace perdure::cuda
