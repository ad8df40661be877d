#include "kernels/adamw_factors.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

// The arithmetic is the CPU's, operation by operation. rounded may be master: no pointer is
// __restrict__.
template <typename T>
struct AdamWBody {
  AdamWFactors f;
  const float* gradient;
  float* master;
  float* exp_avg;
  float* exp_avg_sq;
  T* rounded;

  template <int N>
  struct Held {
    float g[N], m[N], v[N], value[N];
  };
  template <int N>
  __device__ void Load(int64_t /*row*/, int64_t i, Held<N>& held) const {
    Read(gradient + i, held.g);
    Read(exp_avg + i, held.m);
    Read(exp_avg_sq + i, held.v);
    Read(master + i, held.value);
  }
  template <int N>
  __device__ void Store(int64_t /*row*/, int64_t i, Held<N>& held) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = __fmul_rn(held.g[k], f.gradient_scale);
      const float m = __fmaf_rn(__fsub_rn(g, held.m[k]), f.gradient1, held.m[k]);
      const float v =
          __fadd_rn(__fmul_rn(held.v[k], f.beta2), __fmul_rn(__fmul_rn(f.gradient2, g), g));
      const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.correction2), f.eps);
      held.value[k] = __fadd_rn(__fmul_rn(held.value[k], f.decay),
                                __fdiv_rn(__fmul_rn(f.minus_rate, m), denominator));
      held.m[k] = m;
      held.v[k] = v;
    }
    Write(exp_avg + i, held.m);
    Write(exp_avg_sq + i, held.v);
    Write(master + i, held.value);
    Write(rounded + i, held.value);
  }
};

}  // namespace

void AdamW(const Stream& stream, const AdamWStep& step, const float* gradient, float* master,
           float* exp_avg, float* exp_avg_sq, Matrix param) {
  PERDURE_CHECK(step.step >= 1);
  PERDURE_CHECK(param.contiguous());
  const AdamWFactors f = FactorsOf(step);
  JoinRows(param);
  const bool aligned = Aligned16(gradient) && Aligned16(master) && Aligned16(exp_avg) &&
                       Aligned16(exp_avg_sq) && GroupsAligned<4>(param);
  WithType(param.dtype, [&]<typename T>(TypeTag<T>) {
    const AdamWBody<T> body{f, gradient, master, exp_avg, exp_avg_sq, static_cast<T*>(param.data)};
    LaunchElementwise<4, 2>(stream, "AdamW", body, param.rows, param.cols, aligned);
  });
}

}  // namespace perdure::cuda
