#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>

#include "runtime/base/status.h"
#include "tests/bench/gpu_bench.h"

namespace perdure {
namespace {

constexpr double kPeak = 989.4e12;   // Dense bf16 of an H100 or H200 (SXM), FLOP/s.
constexpr double kRotation = 768e6;  // Bytes that calls go through before they return to a buffer.
constexpr size_t kBlock = 4194301;   // Elements; odd, so that no two rows are the same.

}  // namespace

uint16_t ToBF16(float value) {  // Round to nearest even; no NaN comes here.
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

int64_t SetsOf(double bytes) {
  return std::clamp(static_cast<int64_t>(std::ceil(kRotation / bytes)), int64_t{1}, int64_t{64});
}

std::vector<int32_t> Tokens(int64_t count, bool skewed, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> weights(static_cast<size_t>(kVocab), 1.0);
  if (skewed)  // Zipf's law, as text has it.
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 1 / (Real(i) + 3);
  std::discrete_distribution<int32_t> token(weights.begin(), weights.end());
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& t : tokens) t = token(random);
  return tokens;
}

Bench::Bench(std::unique_ptr<Ops> ops, const BenchOptions& options)
    : ops_(std::move(ops)), options_(options), filter_(options.filter) {
  if (!options.json.empty()) json_.open(options.json, std::ios::trunc);
}

Bench::~Bench() {
  for (const auto& [_, block] : blocks_) ops_->FreeHost(block);
}

Matrix Bench::New(DType dtype, int64_t rows, int64_t cols, Values values) {
  const Matrix x(Allocate(static_cast<size_t>(rows * cols) * SizeOf(dtype)), dtype, rows, cols);
  Fill(x, values);
  return x;
}

float* Bench::NewFloats(int64_t count, Values values) {
  return static_cast<float*>(New(DType::kF32, 1, count, values).data);
}

double* Bench::NewDoubles(int64_t count) {
  return static_cast<double*>(Allocate(static_cast<size_t>(count) * sizeof(double)));
}

const int32_t* Bench::NewTokens(const std::vector<int32_t>& tokens) {
  const size_t bytes = tokens.size() * sizeof(int32_t);
  void* memory = Allocate(bytes);
  ops_->Upload(tokens.data(), bytes, memory);
  Note(ops_->Sync());
  return static_cast<int32_t*>(memory);
}

void Bench::Fill(Matrix x, Values values) {
  const size_t step = kBlock * SizeOf(x.dtype);
  const void* block = Block(x.dtype, values);
  for (size_t at = 0; at < x.bytes(); at += step)
    ops_->Upload(block, std::min(step, x.bytes() - at), static_cast<char*>(x.data) + at);
  Note(ops_->Sync());
}

void Bench::Note(const absl::Status& status) {
  if (status_.ok()) status_ = status;
}

void Bench::Run(const std::string& name, const std::function<Case(Bench&)>& make) {
  if (!std::regex_search(name, filter_)) return;
  status_ = absl::OkStatus();
  {
    const Case c = make(*this);
    const double seconds = status_.ok() ? Measure(c) : 0;
    if (status_.ok())
      Tell(name, c, seconds);
    else
      TellFailure(name);
  }
  for (void* memory : memory_) ops_->Free(memory);
  memory_.clear();
}

void Bench::RunCopy() {
  const std::regex filter = std::exchange(filter_, std::regex(""));  // Finds any name.
  const int64_t rows = (int64_t{1} << 29) / kHidden;                 // 1 GiB of bf16.
  Run("copy bf16, 1 GiB", [&](Bench& b) {
    const Matrix src = b.New(DType::kBF16, rows, kHidden), dst = b.New(DType::kBF16, rows, kHidden);
    return Case{.bytes = Real(2 * src.bytes()),
                .run = [=, &b](int64_t) { b.ops().Copy(src, dst); }};
  });
  filter_ = filter;
}

void* Bench::Allocate(size_t bytes) {
  memory_.push_back(ops_->Allocate(bytes));
  return memory_.back();
}

const void* Bench::Block(DType dtype, Values values) {
  void*& block = blocks_[{dtype, values}];
  if (block != nullptr) return block;
  block = ops_->AllocateHost(kBlock * SizeOf(dtype));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < kBlock; ++i) {
    float value = normal(random);
    if (values == Values::kSmall) value *= 0.02F;
    if (values == Values::kSquares) value *= value;
    if (dtype == DType::kF32)
      static_cast<float*>(block)[i] = value;
    else
      static_cast<uint16_t*>(block)[i] = ToBF16(value);
  }
  return block;
}

double Bench::Timed(const Case& c, int64_t count) {
  const auto began = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) c.run(turn_++ % c.sets);
  Note(ops_->Sync());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// Seconds of one call.
double Bench::Measure(const Case& c) {
  const double least = options_.quick ? 5e-3 : 20e-3;
  turn_ = 0;
  Timed(c, std::max<int64_t>(c.sets, 2));  // Plans, workspaces, and every buffer once.
  int64_t count = 1;
  for (double seconds = Timed(c, count); seconds < least && status_.ok(); seconds = Timed(c, count))
    count = std::min(10 * count, 1 + static_cast<int64_t>(1.2 * least / seconds * Real(count)));
  std::vector<double> samples(options_.quick ? 3 : 5);
  for (double& sample : samples) sample = Timed(c, count) / Real(count);
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

void Bench::Tell(const std::string& name, const Case& c, double seconds) {
  nlohmann::ordered_json line = {{"name", name}, {"seconds", seconds}};
  std::string text;
  if (c.flop > 0) {
    const double rate = c.flop / seconds;
    line.update({{"flop", c.flop}, {"tflops", rate * 1e-12}, {"of_peak", rate / kPeak}});
    text = fmt::format("{:8.1f} TFLOP/s {:5.1f} % of peak", rate * 1e-12, 100 * rate / kPeak);
  } else {
    const double rate = c.bytes / seconds;
    if (copy_rate_ == 0) copy_rate_ = rate;
    line.update({{"bytes", c.bytes}, {"gbs", rate * 1e-9}, {"of_copy", rate / copy_rate_}});
    text = fmt::format("{:8.0f} GB/s    {:5.1f} % of copy", rate * 1e-9, 100 * rate / copy_rate_);
  }
  if (c.tokens > 0) {
    const double square = c.square_flop / seconds / kPeak;
    line.update({{"tokens_per_second", c.tokens / seconds}, {"mfu_non_causal", square}});
    text +=
        fmt::format(" (non-causal {:.1f} %), {:.0f} tokens/s", 100 * square, c.tokens / seconds);
  }
  Print(name, fmt::format("{:10.1f} us {}", 1e6 * seconds, text), line);
}

void Bench::TellFailure(const std::string& name) {
  ++failures_;
  Print(name, "FAILED: " + std::string(status_.message()),
        {{"name", name}, {"error", std::string(status_.message())}});
}

void Bench::Print(const std::string& name, const std::string& text,
                  const nlohmann::ordered_json& line) {
  std::printf("%-34s %s\n", name.c_str(), text.c_str());
  std::fflush(stdout);
  if (json_.is_open()) json_ << line.dump() << std::endl;  // A crash loses no line.
}

}  // namespace perdure
