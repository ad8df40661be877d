// Speed of every CPU kernel, one thread: GF/s for matmuls and attention, GB/s of the memory that an
// operation must read and write for the others.
//
// Build with `ninja kernels_bench`; run `bench/kernels_bench --benchmark_filter=Matmul`. Hold the
// result against the machine's own peak: on a Zen 4 core 117 GF/s in fp32, 234 GF/s in bf16, 25-27
// GB/s.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace perdure {
namespace {

// One backend and the memory that a benchmark takes from it.
class Bench {
 public:
  Bench() : ops_(NewCpuOps(/*threads=*/1)) {}

  Ops& ops() { return *ops_; }

  // Values in [-1, 1): whole bf16 numbers, so that they are the same in both types.
  Matrix New(DType dtype, int64_t rows, int64_t cols) {
    const Matrix x(ops_->Allocate(rows * cols * SizeOf(dtype)), dtype, rows, cols);
    for (int64_t i = 0; i < x.size(); ++i) {
      const float value = static_cast<float>(static_cast<int>(random_() % 256) - 128) / 128.0f;
      if (dtype == DType::kF32) {
        static_cast<float*>(x.data)[i] = value;
      } else {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        static_cast<uint16_t*>(x.data)[i] = static_cast<uint16_t>(bits >> 16);
      }
    }
    return x;
  }
  float* NewFloats(int64_t count) { return static_cast<float*>(New(DType::kF32, 1, count).data); }
  int32_t* NewTokens(int64_t count, int32_t vocabulary) {
    auto* tokens = static_cast<int32_t*>(ops_->Allocate(count * sizeof(int32_t)));
    for (int64_t i = 0; i < count; ++i) {
      tokens[i] = static_cast<int32_t>(random_() % static_cast<uint32_t>(vocabulary));
    }
    return tokens;
  }

 private:
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_{1};
};

void Rate(benchmark::State& state, const char* unit, double amount) {
  state.counters[unit] = benchmark::Counter(amount * 1e-9 * static_cast<double>(state.iterations()),
                                            benchmark::Counter::kIsRate);
}

enum class Kind { kNN, kNT, kTN };
const char* const kKindNames[] = {"NN", "NT", "TN+"};

// TN accumulates: it is the weight gradient.
void Matmul(benchmark::State& state, Kind kind, DType dtype, DType c_dtype, int64_t m, int64_t n,
            int64_t k) {
  Bench bench;
  const bool a_transposed = kind == Kind::kTN;
  const bool b_transposed = kind == Kind::kNT;
  const Matrix a = a_transposed ? bench.New(dtype, k, m) : bench.New(dtype, m, k);
  const Matrix b = b_transposed ? bench.New(dtype, n, k) : bench.New(dtype, k, n);
  const Matrix c = bench.New(c_dtype, m, n);
  for (auto _ : state) {
    bench.ops().Matmul(a_transposed ? Transpose::kYes : Transpose::kNo,
                       b_transposed ? Transpose::kYes : Transpose::kNo, a, b, c,
                       /*accumulate=*/a_transposed);
  }
  Rate(state, "GF/s", 2.0 * static_cast<double>(m * n * k));
}

// Causal: half of the square, two products forward and five backward.
void Attention(benchmark::State& state, DType dtype, AttentionShape shape, bool backward) {
  Bench bench;
  const Matrix qkv = bench.New(dtype, shape.rows(), shape.qkv_cols());
  const Matrix dqkv = bench.New(dtype, shape.rows(), shape.qkv_cols());
  const Matrix out = bench.New(dtype, shape.rows(), shape.out_cols());
  const Matrix dout = bench.New(dtype, shape.rows(), shape.out_cols());
  float* lse = bench.NewFloats(shape.rows() * shape.q_heads);
  bench.ops().AttentionForward(qkv, shape, out, lse);
  for (auto _ : state) {
    if (backward) {
      bench.ops().AttentionBackward(dout, qkv, out, lse, shape, dqkv);
    } else {
      bench.ops().AttentionForward(qkv, shape, out, lse);
    }
  }
  const double pairs = static_cast<double>(shape.batch * shape.q_heads * shape.sequence) *
                       static_cast<double>(shape.sequence + 1) / 2;
  Rate(state, "GF/s", (backward ? 5 : 2) * 2 * pairs * static_cast<double>(shape.head_dim));
}

void Add(benchmark::State& state) {
  Bench bench;
  const Matrix x = bench.New(DType::kF32, 4096, 2048);
  const Matrix acc = bench.New(DType::kF32, 4096, 2048);
  for (auto _ : state) bench.ops().Add(x, acc);
  Rate(state, "GB/s", 3.0 * static_cast<double>(x.bytes()));
}

void TreeSum(benchmark::State& state, DType dtype) {
  Bench bench;
  std::vector<ConstMatrix> parts;
  for (int i = 0; i < 4; ++i) parts.push_back(bench.New(DType::kF32, 2048, 1024));
  const Matrix residual = bench.New(dtype, 2048, 1024);
  const Matrix out = bench.New(dtype, 2048, 1024);
  for (auto _ : state) bench.ops().TreeSum(parts, residual, out);
  Rate(state, "GB/s", static_cast<double>(4 * parts[0].bytes() + 2 * out.bytes()));
}

void SumsOfSquares(benchmark::State& state) {
  Bench bench;
  const int64_t count = 16 << 20;
  const float* x = bench.NewFloats(count);
  std::vector<ElementRun> runs;  // Of whole atoms.
  for (int64_t begin = 0; begin < count; begin += 262144) runs.push_back({begin, 262144});
  std::vector<double> sums(runs.size());
  for (auto _ : state) bench.ops().SumsOfSquares(x, runs, sums.data());
  Rate(state, "GB/s", 4.0 * static_cast<double>(count));
}

void Copy(benchmark::State& state, DType from, DType to) {
  Bench bench;
  const Matrix src = bench.New(from, 4096, 2048);
  const Matrix dst = bench.New(to, 4096, 2048);
  for (auto _ : state) bench.ops().Copy(src, dst);
  Rate(state, "GB/s", static_cast<double>(src.bytes() + dst.bytes()));
}

void Embedding(benchmark::State& state, DType dtype, bool backward) {
  Bench bench;
  const int64_t rows = 8192, hidden = 512, vocabulary = 32768;
  const int32_t* tokens = bench.NewTokens(rows, vocabulary);
  const Matrix table = bench.New(backward ? DType::kF32 : dtype, vocabulary, hidden);
  const Matrix x = bench.New(dtype, rows, hidden);
  for (auto _ : state) {
    if (backward) {
      bench.ops().EmbeddingBackward(tokens, x, 0, table);
    } else {
      bench.ops().EmbeddingForward(tokens, table, 0, x);
    }
  }
  const double bytes = static_cast<double>(x.bytes());
  Rate(state, "GB/s", backward ? bytes + 8.0 * static_cast<double>(x.size()) : 2 * bytes);
}

void RmsNorm(benchmark::State& state, DType dtype, bool backward) {
  Bench bench;
  const int64_t rows = 8192, hidden = 512;
  const Matrix x = bench.New(dtype, rows, hidden);
  const Matrix y = bench.New(dtype, rows, hidden);
  const Matrix residual = bench.New(dtype, rows, hidden);
  const Matrix weight = bench.New(dtype, 1, hidden);
  const Matrix dweight = bench.New(DType::kF32, 1, hidden);
  float* rstd = bench.NewFloats(rows);
  bench.ops().RmsNormForward(x, weight, 1e-5f, y, rstd);
  const Matrix dx = bench.New(dtype, rows, hidden);
  for (auto _ : state) {
    if (backward) {
      bench.ops().RmsNormBackward(y, x, weight, rstd, residual, dx, dweight);
    } else {
      bench.ops().RmsNormForward(x, weight, 1e-5f, y, rstd);
    }
  }
  Rate(state, "GB/s", (backward ? 4 : 2) * static_cast<double>(x.bytes()));
}

void Rope(benchmark::State& state, DType dtype) {
  Bench bench;
  const AttentionShape shape{
      .batch = 16, .sequence = 512, .q_heads = 8, .kv_heads = 2, .head_dim = 64};
  const Matrix qkv = bench.New(dtype, shape.rows(), shape.qkv_cols());
  const float* cos = bench.NewFloats(shape.sequence * shape.head_dim / 2);
  const float* sin = bench.NewFloats(shape.sequence * shape.head_dim / 2);
  bool inverse = false;
  for (auto _ : state) {
    bench.ops().Rope(qkv, shape, cos, sin, inverse);
    inverse = !inverse;
  }
  const double rotated = static_cast<double>(qkv.bytes()) * 10 / 12;
  Rate(state, "GB/s", 2 * rotated);
}

void SwiGlu(benchmark::State& state, DType dtype, bool backward) {
  Bench bench;
  const int64_t rows = 4096, width = 1536;
  const Matrix gate_up = bench.New(dtype, rows, 2 * width);
  const Matrix dgate_up = bench.New(dtype, rows, 2 * width);
  const Matrix out = bench.New(dtype, rows, width);
  const Matrix dout = bench.New(dtype, rows, width);
  for (auto _ : state) {
    if (backward) {
      bench.ops().SwiGluBackward(dout, gate_up, dgate_up, out);
    } else {
      bench.ops().SwiGluForward(gate_up, out);
    }
  }
  Rate(state, "GB/s", (backward ? 6 : 3) * static_cast<double>(out.bytes()));
}

void CrossEntropy(benchmark::State& state, const std::string& pass) {
  Bench bench;
  const int64_t rows = 1024, width = 8192;
  const Matrix logits = bench.New(DType::kF32, rows, width);
  const int32_t* targets = bench.NewTokens(rows, static_cast<int32_t>(width));
  float* row_max = bench.NewFloats(rows);
  float* row_sum = bench.NewFloats(rows);
  float* target_logit = bench.NewFloats(rows);
  double passes = 0;
  bench.ops().CrossEntropyMax(logits, row_max);
  for (auto _ : state) {
    if (pass == "max") {
      bench.ops().CrossEntropyMax(logits, row_max);
      passes = 1;
    } else if (pass == "sum") {
      bench.ops().CrossEntropySum(logits, row_max, targets, 0, row_sum, target_logit);
      passes = 2;
    } else {
      bench.ops().CrossEntropyGradient(logits, row_max, targets, 0, 1.0f, logits);
      passes = 2;
    }
  }
  Rate(state, "GB/s", passes * static_cast<double>(logits.bytes()));
}

void AdamW(benchmark::State& state, DType dtype) {
  Bench bench;
  const int64_t count = 16 << 20;
  const float* gradient = bench.NewFloats(count);
  float* master = bench.NewFloats(count);
  float* exp_avg = bench.NewFloats(count);
  float* exp_avg_sq = static_cast<float*>(bench.ops().Allocate(4 * count));
  const Matrix param =
      dtype == DType::kF32 ? Matrix(master, dtype, 1, count) : bench.New(dtype, 1, count);
  AdamWStep step{.rate = 1e-3, .weight_decay = 0.1};
  for (auto _ : state) {
    bench.ops().AdamW(step, gradient, master, exp_avg, exp_avg_sq, param);
    ++step.step;
  }
  const int bytes =
      dtype == DType::kF32 ? 28 : 30;  // Reads g, p, m, v; writes p, m, v and the rounded p.
  Rate(state, "GB/s", static_cast<double>(bytes * count));
}

const char* Name(DType dtype) { return dtype == DType::kF32 ? "fp32" : "bf16"; }

template <typename... Args>
void Register(const std::string& name, Args&&... args) {
  benchmark::RegisterBenchmark(name.c_str(), std::forward<Args>(args)...)
      ->Unit(benchmark::kMicrosecond)
      ->MinTime(0.2);
}

// A 25 M-parameter model: hidden 512, 8 heads of 64 and 2 of keys, ffn 1536, vocabulary slice 4096.
void RegisterMatmuls() {
  struct Shape {
    int64_t m, n, k;
  };
  const Shape rows[] = {{1024, 768, 512},  {1024, 512, 512}, {1024, 512, 128},
                        {1024, 384, 512},  {1024, 512, 384}, {1024, 3072, 512},
                        {1024, 512, 1536}, {4096, 512, 512}, {1024, 4096, 512}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Shape& s : rows) {
      const auto add = [&](Kind kind, DType c, int64_t m, int64_t n, int64_t k) {
        Register("Matmul/" + std::string(kKindNames[static_cast<int>(kind)]) + "/" + Name(dtype) +
                     "/" + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k),
                 Matmul, kind, dtype, c, m, n, k);
      };
      add(Kind::kNT, dtype, s.m, s.n, s.k);        // y = x W^T
      add(Kind::kNN, dtype, s.m, s.k, s.n);        // dx = dy W
      add(Kind::kTN, DType::kF32, s.n, s.k, s.m);  // dW += dy^T x
    }
    Register(std::string("Matmul/overhead/") + Name(dtype), Matmul, Kind::kNT, dtype, dtype, 1, 16,
             16);
  }
}

void RegisterAttention() {
  const AttentionShape shapes[] = {{4, 512, 8, 2, 64},  {8, 128, 8, 2, 64}, {1, 2048, 8, 2, 64},
                                   {4, 512, 8, 8, 128}, {8, 128, 8, 2, 16}, {4, 512, 8, 2, 16},
                                   {4, 512, 8, 2, 32},  {4, 500, 8, 2, 64}};
  for (const AttentionShape& s : shapes) {
    const std::string name = std::to_string(s.sequence) + "/heads:" + std::to_string(s.q_heads) +
                             "/kv:" + std::to_string(s.kv_heads) +
                             "/dim:" + std::to_string(s.head_dim);
    Register("Attention/forward/fp32/" + name, Attention, DType::kF32, s, false);
    Register("Attention/backward/fp32/" + name, Attention, DType::kF32, s, true);
  }
  Register("Attention/forward/bf16/512", Attention, DType::kBF16, shapes[0], false);
  Register("Attention/backward/bf16/512", Attention, DType::kBF16, shapes[0], true);
}

void RegisterOthers() {
  Register("Add", Add);
  Register("SumsOfSquares", SumsOfSquares);
  Register("Copy/fp32-bf16", Copy, DType::kF32, DType::kBF16);
  Register("Copy/bf16-fp32", Copy, DType::kBF16, DType::kF32);
  for (const char* pass : {"max", "sum", "gradient"}) {
    Register(std::string("CrossEntropy/") + pass, CrossEntropy, pass);
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string type = Name(dtype);
    Register("TreeSum/4/" + type, TreeSum, dtype);
    Register("Rope/" + type, Rope, dtype);
    Register("AdamW/" + type, AdamW, dtype);
    for (const bool backward : {false, true}) {
      const std::string way = backward ? "/backward/" : "/forward/";
      Register("Embedding" + way + type, Embedding, dtype, backward);
      Register("RmsNorm" + way + type, RmsNorm, dtype, backward);
      Register("SwiGlu" + way + type, SwiGlu, dtype, backward);
    }
  }
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("backend", perdure::NewCpuOps(/*threads=*/1)->Describe());
  perdure::RegisterMatmuls();
  perdure::RegisterAttention();
  perdure::RegisterOthers();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
