// Speed of the CUDA backend at Lucie's shapes: GB/s of the bytes that an operation must move,
// beside what a copy reaches; TFLOP/s of matmuls and attention, beside the device's peak; tokens/s
// of blocks and of a whole model.
//
// Build with `ninja gpu_bench`; run `bench/gpu_bench [--quick] [--filter REGEX] [--json FILE]`.
//
// Bytes: each input read once and each output written once, whatever the kernel really does. FLOP:
// 2 m n k for a matmul; attention counts the half of the square that is not masked.
#include "tests/bench/gpu_bench.h"

#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <cstdio>
#include <set>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kRows = 8192;  // A micro-batch: two samples of 4096 tokens.

// ---- what memory bounds

void Moves(Bench& bench) {
  constexpr size_t kBytes = size_t{1} << 30;
  // The other end is pinned host memory: what a frozen state goes through.
  for (const bool up : {false, true})
    bench.Run(up ? "upload 1 GiB" : "download 1 GiB", [&](Bench& b) {
      const Matrix device = b.New(DType::kF32, 1, kBytes / 4);
      const std::shared_ptr<void> host(b.ops().AllocateHost(kBytes),
                                       [&b](void* memory) { b.ops().FreeHost(memory); });
      return Case{.bytes = Real(kBytes), .run = [=, &b](int64_t) {
                    if (up)
                      b.ops().Upload(host.get(), kBytes, device.data);
                    else
                      b.ops().Download(device.data, kBytes, host.get());
                  }};
    });
  bench.Run("zero, 1 GiB", [&](Bench& b) {
    const Matrix x = b.New(DType::kF32, 1, kBytes / 4);
    return Case{.bytes = Real(x.bytes()), .run = [=, &b](int64_t) { b.ops().Zero(x); }};
  });
  // As few bytes as the smallest cases below: what a launch costs, beside the large copy.
  for (const int64_t rows : {kRows / 4, kRows})
    bench.Run(fmt::format("copy bf16, {} rows", rows), [&](Bench& b) {
      const double bytes = 2 * 2.0 * Real(rows * kHidden);
      const auto sets = Several(SetsOf(bytes), [&] {
        return std::pair(b.New(DType::kBF16, rows, kHidden), b.New(DType::kBF16, rows, kHidden));
      });
      return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                    b.ops().Copy(At(sets, i).first, At(sets, i).second);
                  }};
    });
  bench.Run("copy fp32 to bf16", [&](Bench& b) {
    const Matrix src = b.New(DType::kF32, 4 * kRows, kHidden);
    const Matrix dst = b.New(DType::kBF16, 4 * kRows, kHidden);
    return Case{.bytes = Real(src.bytes() + dst.bytes()),
                .run = [=, &b](int64_t) { b.ops().Copy(src, dst); }};
  });
  bench.Run("add fp32", [&](Bench& b) {
    const Matrix x = b.New(DType::kF32, 4 * kRows, kHidden);
    const Matrix acc = b.New(DType::kF32, 4 * kRows, kHidden);
    return Case{.bytes = Real(3 * x.bytes()), .run = [=, &b](int64_t) { b.ops().Add(x, acc); }};
  });
}

void Norms(Bench& bench) {
  struct Set {
    Matrix x, y, residual, out;
    float* rstd;
  };
  // V = 4: all sequence slices in one call, or one of them on a rank.
  const std::pair<int64_t, int64_t> shapes[] = {{kRows, 1}, {kRows, 4}, {kRows / 4, 1}};
  for (const auto& [rows, slices] : shapes)
    for (const bool backward : {false, true}) {
      if (!backward && slices > 1) continue;
      bench.Run(fmt::format("rms norm {} {}{}", backward ? "backward" : "forward", rows,
                            slices > 1 ? fmt::format(" of {} slices", slices) : ""),
                [rows = rows, slices = slices, backward](Bench& b) {
                  // Forward x, y; backward dy, x, dresidual, dx; and rstd.
                  const double bytes =
                      (backward ? 4 : 2) * 2.0 * Real(rows * kHidden) + 4 * Real(rows);
                  const auto sets = Several(SetsOf(bytes), [&] {
                    const auto part = [&] { return b.New(DType::kBF16, rows, kHidden); };
                    return Set{part(), part(), part(), part(), b.NewFloats(rows, Values::kSquares)};
                  });
                  const Matrix weight = b.New(DType::kBF16, 1, kHidden);
                  const Matrix dweight = b.New(DType::kF32, slices, kHidden);
                  return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                                const Set& s = At(sets, i);
                                if (backward)
                                  b.ops().RmsNormBackward(s.y, s.x, weight, s.rstd, s.residual,
                                                          s.out, dweight);
                                else
                                  b.ops().RmsNormForward(s.x, weight, 1e-5F, s.y, s.rstd);
                              }};
                });
    }
}

AttentionShape ShapeOf(int64_t shards, int64_t batch, int64_t sequence) {
  return {.batch = batch,
          .sequence = sequence,
          .q_heads = kHeads / shards,
          .kv_heads = kKvHeads / shards,
          .head_dim = kHeadDim};
}

void Activations(Bench& bench) {
  for (const int64_t shards : {1, 4}) {
    bench.Run(fmt::format("rope V{}", shards), [&](Bench& b) {
      const AttentionShape shape = ShapeOf(shards, 2, kRows / 2);
      // The q and k heads both ways, and a table of cosines and sines.
      const double bytes =
          2 * 2.0 * Real(shape.rows() * (shape.q_heads + shape.kv_heads) * kHeadDim) +
          4 * Real(shape.sequence * kHeadDim);
      const auto sets =
          Several(SetsOf(bytes), [&] { return b.New(DType::kBF16, kRows, shape.qkv_cols()); });
      const float* cos = b.NewFloats(shape.sequence * kHeadDim / 2);
      const float* sin = b.NewFloats(shape.sequence * kHeadDim / 2);
      return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                    b.ops().Rope(At(sets, i), shape, cos, sin, i % 2 == 0);
                  }};
    });
    for (const bool backward : {false, true})
      bench.Run(
          fmt::format("swiglu {} V{}", backward ? "backward" : "forward", shards), [&](Bench& b) {
            struct Set {
              Matrix gate_up, out, dgate_up, dout;
            };
            const int64_t f = kFfn / shards;
            // Forward gate_up, out; backward dout, gate_up, dgate_up, out.
            const double bytes = (backward ? 6 : 3) * 2.0 * Real(kRows * f);
            const auto sets = Several(SetsOf(bytes), [&] {
              const auto part = [&](int64_t cols) { return b.New(DType::kBF16, kRows, cols); };
              return Set{part(2 * f), part(f), part(2 * f), part(f)};
            });
            return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                          const Set& s = At(sets, i);
                          if (backward)
                            b.ops().SwiGluBackward(s.dout, s.gate_up, s.dgate_up, s.out);
                          else
                            b.ops().SwiGluForward(s.gate_up, s.out);
                        }};
          });
  }
}

void Sums(Bench& bench) {
  for (const int64_t count : {1, 2, 4})
    bench.Run(fmt::format("tree sum of {}, residual", count), [&](Bench& b) {
      struct Set {
        std::vector<ConstMatrix> parts;
        Matrix residual, out;
      };
      const double bytes = Real(kRows * kHidden) * (4 * Real(count) + 2 + 2);
      const auto sets = Several(SetsOf(bytes), [&] {
        Set set{{}, b.New(DType::kBF16, kRows, kHidden), b.New(DType::kBF16, kRows, kHidden)};
        for (int64_t p = 0; p < count; ++p)
          set.parts.emplace_back(b.New(DType::kF32, kRows, kHidden));
        return set;
      });
      return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                    const Set& s = At(sets, i);
                    b.ops().TreeSum(s.parts, s.residual, s.out);
                  }};
    });
  bench.Run("sums of squares, 1 GiB", [&](Bench& b) {
    constexpr int64_t kRun = 262144, kRuns = 1024;  // The runs are atoms.
    const float* x = b.NewFloats(kRun * kRuns);
    std::vector<ElementRun> runs;
    for (int64_t r = 0; r < kRuns; ++r) runs.push_back({r * kRun, kRun});
    double* sums = b.NewDoubles(kRuns);
    return Case{.bytes = 4.0 * Real(kRun * kRuns),
                .run = [=, &b](int64_t) { b.ops().SumsOfSquares(x, runs, sums); }};
  });
}

void Embeddings(Bench& bench) {
  struct Set {
    const int32_t* tokens;
    Matrix x;
  };
  for (const bool skewed : {false, true})
    for (const bool backward : {false, true})
      bench.Run(
          fmt::format("embedding {}{}", backward ? "backward" : "forward",
                      skewed ? ", skewed" : ""),
          [&](Bench& b) {
            std::vector<Set> sets;
            double rows = 0;  // Of the table, that occur; mean of the sets.
            for (uint32_t seed = 0; seed < 4; ++seed) {
              const std::vector<int32_t> tokens = Tokens(kRows, skewed, seed);
              rows += Real(std::set<int32_t>(tokens.begin(), tokens.end()).size()) / 4;
              sets.push_back({b.NewTokens(tokens), b.New(DType::kBF16, kRows, kHidden)});
            }
            const Matrix table = b.New(backward ? DType::kF32 : DType::kBF16, kVocab, kHidden);
            // One row a token, and those of the table: read, or in fp32 read and written.
            const double bytes = 2 * Real(kRows * kHidden) + (backward ? 8 : 2) * rows * kHidden;
            return Case{.bytes = bytes, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                          const Set& s = At(sets, i);
                          if (backward)
                            b.ops().EmbeddingBackward(s.tokens, s.x, 0, table);
                          else
                            b.ops().EmbeddingForward(s.tokens, table, 0, s.x);
                        }};
          });
}

void CrossEntropy(Bench& bench) {
  constexpr int64_t kChunk = 2048;  // Rows of logits at a time: a quarter of the micro-batch.
  for (const int64_t width : {kVocab, kVocab / 4})
    for (const int pass : {0, 1, 2}) {
      const char* const names[] = {"max", "sum", "gradient"};
      bench.Run(fmt::format("cross-entropy {} {}", names[pass], width), [&](Bench& b) {
        // Logits fp32 read; read and written; read, and written in bf16.
        const double bytes[] = {4.0, 8.0, 6.0};
        const double all = bytes[pass] * Real(kChunk * width);
        const auto sets = Several(SetsOf(all), [&] { return b.New(DType::kF32, kChunk, width); });
        const Matrix dlogits = b.New(DType::kBF16, kChunk, width);
        const int32_t* targets = b.NewTokens(Tokens(kChunk, true, 1));
        float* max = b.NewFloats(kChunk, Values::kSquares);
        float* sum = b.NewFloats(kChunk, Values::kSquares);
        float* target = b.NewFloats(kChunk);
        // `sum` writes exp(logits - max) in place, again and again: below 1, so it stays finite.
        b.ops().CrossEntropyMax(At(sets, 0), max);
        return Case{.bytes = all, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                      const Matrix logits = At(sets, i);
                      if (pass == 0) b.ops().CrossEntropyMax(logits, max);
                      if (pass == 1) b.ops().CrossEntropySum(logits, max, targets, 0, sum, target);
                      if (pass == 2)
                        b.ops().CrossEntropyGradient(logits, sum, targets, 0, 1e-4F, dlogits);
                    }};
      });
    }
}

void Optimizer(Bench& bench) {
  bench.Run("adamw, 256 Mi", [&](Bench& b) {
    constexpr int64_t kCount = int64_t{256} << 20;
    const float* gradient = b.NewFloats(kCount, Values::kSmall);
    float* master = b.NewFloats(kCount, Values::kSmall);
    float* first = b.NewFloats(kCount, Values::kSmall);
    float* second = b.NewFloats(kCount, Values::kSquares);
    const Matrix param = b.New(DType::kBF16, 1, kCount, Values::kSmall);
    const AdamWStep step{.step = 100, .rate = 1e-4, .weight_decay = 0.1, .gradient_scale = 0.9};
    // The gradient read; master and both moments read and written; the parameter written.
    return Case{.bytes = (4.0 + 3 * 8 + 2) * Real(kCount), .run = [=, &b](int64_t) {
                  b.ops().AdamW(step, gradient, master, first, second, param);
                }};
  });
}

// ---- what arithmetic bounds

// One linear layer: y [m, out] = x [m, in] w^T, and its two gradients.
struct Linear {
  const char* name;
  int64_t m, in, out;
  DType y;  // Partial sums and logits are fp32, for the trees behind them.
  DType dx;
};

void MatmulsOf(Bench& bench, const Linear& l, int64_t shards) {
  const double flop = 2 * Real(l.m) * Real(l.in) * Real(l.out);
  const double bytes = 2 * Real(l.m * l.in + l.m * l.out + l.in * l.out);
  const auto name = [&](const char* what) {
    return fmt::format("matmul {} {} V{}", l.name, what, shards);
  };
  struct Set {
    Matrix a, b, c;
  };
  const auto run = [&](const char* what, Transpose ta, Transpose tb, std::array<int64_t, 3> mnk,
                       DType c_type, bool accumulate) {
    bench.Run(name(what), [&](Bench& b) {
      const auto [m, n, k] = mnk;
      const bool at = ta == Transpose::kYes, bt = tb == Transpose::kYes;
      const auto sets = Several(std::min<int64_t>(SetsOf(bytes), 4), [&] {
        return Set{b.New(DType::kBF16, at ? k : m, at ? m : k),
                   b.New(DType::kBF16, bt ? n : k, bt ? k : n, Values::kSmall),
                   b.New(c_type, m, n)};
      });
      return Case{.flop = flop, .sets = std::ssize(sets), .run = [=, &b](int64_t i) {
                    const Set& s = At(sets, i);
                    b.ops().Matmul(ta, tb, s.a, s.b, s.c, accumulate);
                  }};
    });
  };
  run("forward", Transpose::kNo, Transpose::kYes, {l.m, l.out, l.in}, l.y, false);
  run("dx", Transpose::kNo, Transpose::kNo, {l.m, l.in, l.out}, l.dx, false);
  run("dw += fp32", Transpose::kYes, Transpose::kNo, {l.out, l.in, l.m}, DType::kF32, true);
}

void Matmuls(Bench& bench) {
  bench.Run("matmul 8192 x 8192 x 8192", [&](Bench& b) {
    const Matrix x = b.New(DType::kBF16, 8192, 8192), w = b.New(DType::kBF16, 8192, 8192);
    const Matrix y = b.New(DType::kBF16, 8192, 8192);
    return Case{.flop = 2 * std::pow(8192.0, 3), .run = [=, &b](int64_t) {
                  b.ops().Matmul(Transpose::kNo, Transpose::kYes, x, w, y, false);
                }};
  });
  for (const int64_t v : {1, 4}) {
    const int64_t qkv = (kHeads + 2 * kKvHeads) * kHeadDim / v, out = kHeads * kHeadDim / v;
    for (const Linear& l : {
             Linear{"qkv", kRows, kHidden, qkv, DType::kBF16, DType::kF32},
             Linear{"o", kRows, out, kHidden, DType::kF32, DType::kBF16},
             Linear{"gate_up", kRows, kHidden, 2 * kFfn / v, DType::kBF16, DType::kF32},
             Linear{"down", kRows, kFfn / v, kHidden, DType::kF32, DType::kBF16},
             Linear{"head", kRows / v, kHidden, kVocab / v, DType::kF32, DType::kF32},
         })
      MatmulsOf(bench, l, v);
  }
}

void Attentions(Bench& bench) {
  for (const auto& [batch, context] : {std::pair<int64_t, int64_t>{2, 4096}, {1, 32000}})
    for (const int64_t shards : {1, 4})
      for (const bool backward : {false, true})
        bench.Run(
            fmt::format("attention {} {} V{}", backward ? "backward" : "forward", context, shards),
            [&](Bench& b) {
              const AttentionShape shape = ShapeOf(shards, batch, context);
              const auto matrix = [&](int64_t cols) {
                return b.New(DType::kBF16, shape.rows(), cols);
              };
              const Matrix qkv = matrix(shape.qkv_cols()), dqkv = matrix(shape.qkv_cols());
              const Matrix out = matrix(shape.out_cols()), dout = matrix(shape.out_cols());
              float* lse = b.NewFloats(shape.rows() * shape.q_heads);
              b.ops().AttentionForward(qkv, shape, out, lse);
              // Two products forward, five backward, over the unmasked half.
              const double pairs = Real(shape.rows() * shape.q_heads) * Real(context + 1) / 2;
              return Case{.flop = (backward ? 5 : 2) * 2 * pairs * kHeadDim,
                          .run = [=, &b](int64_t) {
                            if (backward)
                              b.ops().AttentionBackward(dout, qkv, out, lse, shape, dqkv);
                            else
                              b.ops().AttentionForward(qkv, shape, out, lse);
                          }};
            });
}

int Main(int argc, char** argv) {
  BenchOptions options;
  CLI::App app{"Speed of the CUDA backend at Lucie's shapes"};
  app.add_flag("--quick", options.quick, "A quarter of the time, less steady numbers");
  app.add_option("--filter", options.filter, "Only cases whose name this expression finds")
      ->check([](const std::string& text) -> std::string {
        try {
          (void)std::regex(text);
          return "";
        } catch (const std::regex_error& error) {
          return error.what();
        }
      });
  app.add_option("--json", options.json, "One JSON object a line into this file");
  app.add_option("--layers", options.layers, "Blocks of the model")->check(CLI::Range(1, 64));
  app.add_option("--device", options.device, "Which GPU");
  CLI11_PARSE(app, argc, argv);
  absl::StatusOr<std::unique_ptr<Ops>> ops = NewCudaOps(options.device);
  if (!ops.ok()) {
    std::fprintf(stderr, "gpu_bench: %s\n", std::string(ops.status().message()).c_str());
    return 2;
  }
  std::printf("%s, %s\n", (*ops)->Describe().c_str(),
              CudaIsa(options.device).value_or("unknown").c_str());
  Bench bench(*std::move(ops), options);
  bench.RunCopy();
  for (const auto group : {Moves, Norms, Activations, Sums, Embeddings, CrossEntropy, Optimizer,
                           Matmuls, Attentions, BenchModels})
    group(bench);
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) { return perdure::Main(argc, argv); }
