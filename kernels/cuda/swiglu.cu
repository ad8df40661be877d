// A thread takes one vector of a row's columns, at the same place in gate, up and the results.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/vector.cuh"

namespace perdure::cuda {
namespace {

constexpr int kThreadsMax = 256;
constexpr int64_t kRowBlocksMax = 65535;  // What a grid's second dimension holds.

// 1 / (1 + exp(-x)): finite for every finite x, 0 where the exponential overflows. The fast
// functions are off by 2^-17 at most, far below the rounding to bf16.
template <typename T>
__device__ __forceinline__ float Sigmoid(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
  } else {
    return __fdividef(1.0f, __fadd_rn(1.0f, __expf(-x)));
  }
}

template <bool kWhole, typename T>
__global__ void __launch_bounds__(kThreadsMax)
    Forward(RowsOf<const T> gate_up, RowsOf<T> out, int64_t rows, int64_t width) {
  constexpr int N = kVectorSize<T>;
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float gate[N], up[N];
    const Vector<T> gates = Load<kWhole>(gate_up[row], column, width);
    const Vector<T> ups = Load<kWhole>(gate_up[row] + width, column, width);
    Unpack(gates, gate);
    Unpack(ups, up);
#pragma unroll
    for (int j = 0; j < N; ++j) up[j] = __fmul_rn(__fmul_rn(gate[j], Sigmoid<T>(gate[j])), up[j]);
    StoreFloats<kWhole>(out[row], column, width, up);
  }
}

// With s = sigmoid(gate): d silu / d gate = s * (1 + gate * (1 - s)).
template <bool kWhole, typename T>
__global__ void __launch_bounds__(kThreadsMax)
    Backward(RowsOf<const T> dout, RowsOf<const T> gate_up, RowsOf<T> dgate_up, RowsOf<T> out,
             int64_t rows, int64_t width) {
  constexpr int N = kVectorSize<T>;
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float grad[N], gate[N], up[N];
    // All of them before the first use: dgate_up may be gate_up.
    const Vector<T> grads = Load<kWhole>(dout[row], column, width);
    const Vector<T> gates = Load<kWhole>(gate_up[row], column, width);
    const Vector<T> ups = Load<kWhole>(gate_up[row] + width, column, width);
    Unpack(grads, grad);
    Unpack(gates, gate);
    Unpack(ups, up);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float s = Sigmoid<T>(gate[j]);
      const float silu = __fmul_rn(gate[j], s);
      const float slope = __fmaf_rn(gate[j], __fsub_rn(1.0f, s), 1.0f);
      gate[j] = __fmul_rn(__fmul_rn(__fmul_rn(grad[j], up[j]), s), slope);
      grad[j] = __fmul_rn(grad[j], silu);
      up[j] = __fmul_rn(silu, up[j]);
    }
    StoreFloats<kWhole>(dgate_up[row], column, width, gate);
    StoreFloats<kWhole>(dgate_up[row] + width, column, width, grad);
    StoreFloats<kWhole>(out[row], column, width, up);
  }
}

struct Shape {
  dim3 grid;
  unsigned threads = 0;
};

// A row's vectors, spread evenly over as few blocks as hold them.
Shape ShapeFor(int64_t rows, int64_t width, int64_t elements) {
  const int64_t vectors = DivCeil(width, elements);
  const int64_t blocks = DivCeil(vectors, kThreadsMax);
  PERDURE_CHECK(blocks <= INT32_MAX);
  return {.grid = dim3(static_cast<unsigned>(blocks),
                       static_cast<unsigned>(std::min(rows, kRowBlocksMax))),
          .threads = static_cast<unsigned>(DivCeil(DivCeil(vectors, blocks), kWarp) * kWarp)};
}

}  // namespace

void SwiGluForward(const Stream& stream, ConstMatrix gate_up, Matrix out) {
  PERDURE_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols);
  PERDURE_CHECK(gate_up.dtype == out.dtype);
  if (out.size() == 0) return;
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const Shape shape = ShapeFor(out.rows, out.cols, N);
    const bool whole = WholeVectors(gate_up, N) && WholeVectors(out, N);
    const auto kernel = whole ? Forward<true, T> : Forward<false, T>;
    kernel<<<shape.grid, shape.threads, 0, stream.stream>>>(RowsOf<const T>(gate_up),
                                                            RowsOf<T>(out), out.rows, out.cols);
  });
  stream.Launched("SwiGluForward");
}

void SwiGluBackward(const Stream& stream, ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up,
                    Matrix out) {
  PERDURE_CHECK(SameShape(dout, out) && SameShape(gate_up, dgate_up));
  PERDURE_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols);
  PERDURE_CHECK(dout.dtype == out.dtype && gate_up.dtype == out.dtype);
  PERDURE_CHECK(dgate_up.dtype == out.dtype);
  if (out.size() == 0) return;
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    constexpr int N = kVectorSize<T>;
    const Shape shape = ShapeFor(out.rows, out.cols, N);
    const bool whole = WholeVectors(dout, N) && WholeVectors(gate_up, N) &&
                       WholeVectors(dgate_up, N) && WholeVectors(out, N);
    const auto kernel = whole ? Backward<true, T> : Backward<false, T>;
    kernel<<<shape.grid, shape.threads, 0, stream.stream>>>(
        RowsOf<const T>(dout), RowsOf<const T>(gate_up), RowsOf<T>(dgate_up), RowsOf<T>(out),
        out.rows, out.cols);
  });
  stream.Launched("SwiGluBackward");
}

}  // namespace perdure::cuda
