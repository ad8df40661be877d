#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

void SwiGluForward(ConstMatrix gate_up, Matrix out) {
  PERDURE_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols);
  PERDURE_CHECK(gate_up.dtype == out.dtype);
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t r = 0; r < out.rows; ++r) {
      const T* gates = Row<T>(gate_up, r);
      const T* ups = gates + out.cols;
      T* to = Row<T>(out, r);
      ForLanes(out.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        const F16 gate = Load(gates + i, count);
        Store(to + i, gate * Sigmoid(gate) * Load(ups + i, count), count);
      });
    }
  });
}

// With s = sigmoid(gate): d silu / d gate = s * (1 + gate * (1 - s)).
void SwiGluBackward(ConstMatrix dout, ConstMatrix gate_up, Matrix dgate_up, Matrix out) {
  PERDURE_CHECK(SameShape(dout, out) && SameShape(gate_up, dgate_up));
  PERDURE_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols);
  PERDURE_CHECK(dout.dtype == out.dtype && gate_up.dtype == out.dtype);
  PERDURE_CHECK(dgate_up.dtype == out.dtype);
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    const int64_t width = out.cols;
    for (int64_t r = 0; r < out.rows; ++r) {
      const T* grads = Row<T>(dout, r);
      const T* gates = Row<T>(gate_up, r);
      T* dgates = Row<T>(dgate_up, r);
      T* to = Row<T>(out, r);
      ForLanes(width, [&](int64_t i, auto count) PERDURE_INLINE {
        const F16 grad = Load(grads + i, count);
        const F16 gate = Load(gates + i, count);
        const F16 up = Load(gates + width + i, count);
        const F16 s = Sigmoid(gate);
        const F16 silu = gate * s;
        Store(dgates + i, grad * up * s * (1.0f + gate * (1.0f - s)), count);
        Store(dgates + width + i, grad * silu, count);
        Store(to + i, silu * up, count);
      });
    }
  });
}

}  // namespace perdure::cpu
