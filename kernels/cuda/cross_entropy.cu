#include <cmath>

#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

// A row of logits belongs to one block. Its columns are groups of four, and group g to thread g mod
// kRowThreads: a thread's sums, and their fold, follow from the width alone.
constexpr int kRowThreads = 512;
constexpr int kRowLoads = 4;  // 16-byte loads of a thread that are under way at a time.
constexpr int64_t kRowStep = 4 * kRowThreads;

// Calls f(column, values) for the thread's groups in their order; beyond `cols` a value is
// -infinity. kWhole REQUIRES rows of whole vectors.
template <bool kWhole, typename F>
__device__ __forceinline__ void ForGroups(const float* row, int64_t cols, F&& f) {
  int64_t column = int64_t{threadIdx.x} * 4;
  float values[4];
  if constexpr (kWhole) {
    for (; column + (kRowLoads - 1) * kRowStep < cols; column += kRowLoads * kRowStep) {
      uint4 word[kRowLoads];
#pragma unroll
      for (int u = 0; u < kRowLoads; ++u) word[u] = LoadWord(row + column + u * kRowStep);
#pragma unroll
      for (int u = 0; u < kRowLoads; ++u) {
        Unpack(Vector<float>{{word[u]}}, values);
        f(column + u * kRowStep, values);
      }
    }
  }
#pragma unroll 1
  for (; column < cols; column += kRowStep) {
    LoadFloats<kWhole>(row, column, cols, values);
    if constexpr (!kWhole) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = column + i < cols ? values[i] : -INFINITY;
    }
    f(column, values);
  }
}

template <bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    MaxOfRows(const RowsOf<const float> logits, const int64_t cols, float* row_max) {
  __shared__ float scratch[kRowThreads / kWarp];
  float largest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  ForGroups<kWhole>(logits[blockIdx.x], cols, [&](int64_t /*column*/, const float(&values)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i] = fmaxf(largest[i], values[i]);
  });
  const float result = BlockReduce<Maximum>(
      fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3])), scratch);
  if (threadIdx.x == 0) row_max[blockIdx.x] = result;
}

template <bool kWhole>
__global__ void __launch_bounds__(kRowThreads)
    SumOfRows(const RowsOf<float> logits, const int64_t cols, const float* row_max,
              const int32_t* targets, const int64_t column_begin, float* row_sum,
              float* target_logit) {
  __shared__ float scratch[kRowThreads / kWarp];
  float* row = logits[blockIdx.x];
  const float largest = row_max[blockIdx.x];
  // The thread that will overwrite the target's logit reads it first.
  const int64_t target = targets[blockIdx.x] - column_begin;
  const bool here = target >= 0 && target < cols;
  if (threadIdx.x == (here ? target / 4 % kRowThreads : 0))
    target_logit[blockIdx.x] = here ? row[target] - largest : 0.0f;

  float sums[4] = {};
  ForGroups<kWhole>(row, cols, [&](int64_t column, float(&values)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = expf(values[i] - largest);
      sums[i] = __fadd_rn(sums[i], values[i]);  // Beyond the row it is 0.
    }
    if constexpr (kWhole) {
      Write(row + column, values);
    } else {
      StoreFloats<false>(row, column, cols, values);
    }
  });
  const float sum =
      BlockReduce(__fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3])), scratch);
  if (threadIdx.x == 0) row_sum[blockIdx.x] = sum;
}

constexpr int kLossThreads = 1024;

// Row r belongs to thread r mod kLossThreads.
__global__ void __launch_bounds__(kLossThreads)
    LossOfRows(const float* row_sum, const float* target_logit, const int64_t rows, double* loss) {
  __shared__ double scratch[kLossThreads / kWarp];
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kLossThreads)
    sum += log(static_cast<double>(row_sum[r])) - static_cast<double>(target_logit[r]);
  sum = BlockReduce(sum, scratch);
  if (threadIdx.x == 0) *loss += sum;
}

// In place, where dlogits is exp_logits: an element is read and written by one thread.
template <typename T>
struct GradientBody {
  RowsOf<const float> exp_logits;
  RowsOf<T> dlogits;
  const float* row_sum;
  const int32_t* targets;
  int64_t column_begin;
  float scale;

  template <int N>
  struct Held {
    float value[N];
    float sum;
    int64_t target;  // Counted from the first value.
  };
  template <int N>
  __device__ void Load(int64_t row, int64_t column, Held<N>& held) const {
    Read(exp_logits[row] + column, held.value);
    held.sum = row_sum[row];
    held.target = targets[row] - column_begin - column;
  }
  template <int N>
  __device__ void Store(int64_t row, int64_t column, Held<N>& held) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float share = __fdiv_rn(held.value[i], held.sum);
      held.value[i] = __fmul_rn(i == held.target ? __fsub_rn(share, 1.0f) : share, scale);
    }
    Write(dlogits[row] + column, held.value);
  }
};

unsigned BlockPerRow(int64_t rows) {
  PERDURE_CHECK(rows <= INT32_MAX);
  return static_cast<unsigned>(rows);
}

}  // namespace

void CrossEntropyMax(const Stream& stream, ConstMatrix logits, float* row_max) {
  PERDURE_CHECK(logits.dtype == DType::kF32);
  if (logits.rows == 0) return;
  WithBool(WholeVectors(logits, 4), [&]<bool kWhole>(std::bool_constant<kWhole>) {
    MaxOfRows<kWhole><<<BlockPerRow(logits.rows), kRowThreads, 0, stream.stream>>>(
        RowsOf<const float>(logits), logits.cols, row_max);
  });
  stream.Launched("CrossEntropyMax");
}

void CrossEntropySum(const Stream& stream, Matrix logits, const float* row_max,
                     const int32_t* targets, int64_t column_begin, float* row_sum,
                     float* target_logit) {
  PERDURE_CHECK(logits.dtype == DType::kF32);
  if (logits.rows == 0) return;
  WithBool(WholeVectors(logits, 4), [&]<bool kWhole>(std::bool_constant<kWhole>) {
    SumOfRows<kWhole><<<BlockPerRow(logits.rows), kRowThreads, 0, stream.stream>>>(
        RowsOf<float>(logits), logits.cols, row_max, targets, column_begin, row_sum, target_logit);
  });
  stream.Launched("CrossEntropySum");
}

void CrossEntropyLoss(const Stream& stream, const float* row_sum, const float* target_logit,
                      int64_t rows, double* loss) {
  LossOfRows<<<1, kLossThreads, 0, stream.stream>>>(row_sum, target_logit, rows, loss);
  stream.Launched("CrossEntropyLoss");
}

void CrossEntropyGradient(const Stream& stream, ConstMatrix exp_logits, const float* row_sum,
                          const int32_t* targets, int64_t column_begin, float scale,
                          Matrix dlogits) {
  PERDURE_CHECK(exp_logits.dtype == DType::kF32);
  PERDURE_CHECK(SameShape(exp_logits, dlogits));
  WithType(dlogits.dtype, [&]<typename T>(TypeTag<T>) {
    const GradientBody<T> body{
        RowsOf<const float>(exp_logits), RowsOf<T>(dlogits), row_sum, targets, column_begin, scale};
    LaunchElementwise<4, 4>(stream, "CrossEntropyGradient", body, dlogits.rows, dlogits.cols,
                            GroupsAligned<4>(exp_logits) && GroupsAligned<4>(dlogits));
  });
}

}  // namespace perdure::cuda
