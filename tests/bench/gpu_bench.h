// What gpu_bench measures with: a case says what a call must do, Bench times it and reports.
//
// Time is the host's clock around so many enqueued calls that they fill it, and the median of five.
// Calls rotate among buffers that together are many times the L2 cache; values are random, because
// zeros run faster.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace perdure {

// Lucie-7B's block.
inline constexpr int64_t kHidden = 4096;
inline constexpr int64_t kHeads = 32;
inline constexpr int64_t kKvHeads = 8;
inline constexpr int64_t kHeadDim = 128;
inline constexpr int64_t kFfn = 12288;
inline constexpr int64_t kVocab = 65024;

struct BenchOptions {
  bool quick = false;
  std::string filter;
  std::string json;
  int64_t layers = 4;
  int device = 0;
};

enum class Values { kNormal, kSmall, kSquares };  // Of deviation 1; of 0.02; squares of the first.

// One thing to measure: what a call of `run` must do, and the calls, each on one of `sets` buffers.
struct Case {
  double bytes = 0;
  double flop = 0;
  int64_t sets = 1;
  std::function<void(int64_t set)> run;
  double tokens = 0;       // Of a call, where it is a model's.
  double square_flop = 0;  // With attention counted as if nothing were masked.
};

// The backend, the memory of the case at hand, and the report. One thread.
class Bench {
 public:
  Bench(std::unique_ptr<Ops> ops, const BenchOptions& options);
  ~Bench();
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  Ops& ops() { return *ops_; }
  const BenchOptions& options() const { return options_; }
  int failures() const { return failures_; }

  // Memory of this case, freed behind it.
  Matrix New(DType dtype, int64_t rows, int64_t cols, Values values = Values::kNormal);
  float* NewFloats(int64_t count, Values values = Values::kNormal);
  double* NewDoubles(int64_t count);  // Zeros.
  const int32_t* NewTokens(const std::vector<int32_t>& tokens);
  void Fill(Matrix x, Values values);
  // Keeps the first error of the case.
  void Note(const absl::Status& status);

  // Makes, measures and reports a case, if its name is asked for.
  void Run(const std::string& name, const std::function<Case(Bench&)>& make);
  // The line that the others are held against: it is always measured.
  void RunCopy();

 private:
  void* Allocate(size_t bytes);
  const void* Block(DType dtype, Values values);
  double Timed(const Case& c, int64_t count);
  double Measure(const Case& c);
  void Tell(const std::string& name, const Case& c, double seconds);
  void TellFailure(const std::string& name);
  void Print(const std::string& name, const std::string& text, const nlohmann::ordered_json& line);

  std::unique_ptr<Ops> ops_;
  BenchOptions options_;
  std::regex filter_;
  std::ofstream json_;
  std::map<std::pair<DType, Values>, void*> blocks_;  // Random values in host memory.
  std::vector<void*> memory_;                         // Of the case.
  absl::Status status_;                               // Likewise.
  int64_t turn_ = 0;
  double copy_rate_ = 0;
  int failures_ = 0;
};

inline double Real(int64_t value) { return static_cast<double>(value); }
inline double Real(size_t value) { return static_cast<double>(value); }

uint16_t ToBF16(float value);
// Buffers that calls must go through, so that none is still in a cache when its turn comes again.
int64_t SetsOf(double bytes);
// Token ids of Lucie's vocabulary: all alike, or by Zipf's law, as text has them.
std::vector<int32_t> Tokens(int64_t count, bool skewed, uint32_t seed);

// `sets` of what `make` makes.
template <typename Make>
auto Several(int64_t sets, const Make& make) {
  std::vector<decltype(make())> all;
  for (int64_t i = 0; i < sets; ++i) all.push_back(make());
  return all;
}
template <typename T>
const T& At(const std::vector<T>& all, int64_t i) {
  return all[static_cast<size_t>(i)];
}

void BenchModels(Bench& bench);  // gpu_bench_model.cc

}  // namespace perdure
