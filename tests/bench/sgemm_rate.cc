// sgemm_rate [SECONDS]: the best rate in GFLOP/s of oneDNN's own sgemm over square and model-like
// shapes, one thread (run it with OMP_NUM_THREADS=1).
#include <dnnl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.5;
  struct Shape {
    dnnl_dim_t m, n, k;
  };
  double best = 0;
  for (const Shape& s : {Shape{1024, 1024, 1024}, Shape{1024, 1536, 512}, Shape{1024, 512, 1536},
                         Shape{512, 512, 512}, Shape{1024, 3072, 512}, Shape{2048, 2048, 2048}}) {
    std::vector<float> a(static_cast<size_t>(s.m * s.k), 0.5F),
        b(static_cast<size_t>(s.k * s.n), 0.25F), c(static_cast<size_t>(s.m * s.n));
    const auto began = std::chrono::steady_clock::now();
    double spent = 0;
    while (spent < seconds) {
      const auto start = std::chrono::steady_clock::now();
      dnnl_sgemm('N', 'N', s.m, s.n, s.k, 1.0F, a.data(), s.k, b.data(), s.n, 0.0F, c.data(), s.n);
      const auto end = std::chrono::steady_clock::now();
      const double once = std::chrono::duration<double>(end - start).count();
      const double rate = 2e-9 * static_cast<double>(s.m * s.n * s.k) / once;
      if (rate > best) best = rate;
      spent = std::chrono::duration<double>(end - began).count();
    }
  }
  std::printf("%.2f\n", best);
  return 0;
}
