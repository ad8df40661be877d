#include "runtime/train/health.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Clock = std::chrono::steady_clock;
using Memory = std::unique_ptr<void, std::function<void(void*)>>;

constexpr uint64_t kSeed = 0x4845414c5448;
// Factors lie in [-kFactor, kFactor): with up to 4096 terms no sum leaves what fp32 holds exactly.
constexpr int64_t kFactor = 64;
constexpr int64_t kMatmulSizeMax = 4096;
constexpr int kPlaces = 3;  // A product is computed at so many addresses.
constexpr int kLinkTrials = 8;
constexpr auto kRateTime = std::chrono::milliseconds(30);
constexpr int kRateGroup = 4;   // Products enqueued between two looks at the clock.
constexpr size_t kShift = 64;   // Neighbouring chunks hold the pattern shifted by so many bytes,
constexpr size_t kShifts = 64;  // so that one chunk in another's place is noticed.
constexpr size_t kAlign = 256;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// bf16 of a whole number below 256, which it holds exactly: the upper half of the fp32.
uint16_t WholeToBF16(int8_t x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16);
}

// The two factors and what shows whether a product is right: C x = A (B x) for a random x costs
// n^2 where C costs n^3, and a wrong row passes with a chance of 2^-15.
struct Factors {
  explicit Factors(int64_t size) : n(size), a(Random(1)), b(Random(2)), x(n), product_x(n) {
    for (int64_t j = 0; j < n; ++j)
      x[j] = 1 + RandomBits(kSeed, RandomPurpose::kTest, 3, j)[0] % 32768;
    std::vector<int64_t> b_x(n);
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < n; ++j) b_x[k] += b[k * n + j] * x[j];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k) product_x[i] += a[i * n + k] * b_x[k];
  }
  std::vector<int8_t> Random(uint64_t stream) const {
    std::vector<int8_t> values(n * n);
    for (size_t i = 0; i < values.size(); i += 16) {
      const auto bits = RandomBits(kSeed, RandomPurpose::kTest, stream, i / 16);
      std::memcpy(&values[i], bits.data(), std::min<size_t>(16, values.size() - i));
    }
    for (int8_t& value : values) value = static_cast<int8_t>((value & (2 * kFactor - 1)) - kFactor);
    return values;
  }
  int64_t Element(int64_t i, int64_t j) const {
    int64_t sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += a[i * n + k] * b[k * n + j];
    return sum;
  }

  const int64_t n;
  const std::vector<int8_t> a, b;
  std::vector<int64_t> x, product_x;
};

class Check {
 public:
  Check(Ops& ops, const HealthOptions& options)
      : ops_(ops),
        options_(options),
        device_(ops.Allocate(options.memory_bytes), [&ops](void* p) { ops.Free(p); }),
        pattern_(ops.AllocateHost(options.chunk_bytes + kShifts * kShift),
                 [&ops](void* p) { ops.FreeHost(p); }),
        back_(ops.AllocateHost(options.chunk_bytes), [&ops](void* p) { ops.FreeHost(p); }) {}

  absl::Status Run(HealthReport& report) {
    FillPattern();
    RETURN_IF_ERROR(Link(report));
    RETURN_IF_ERROR(MemoryKeeps(report));
    return Products(report);
  }

 private:
  template <typename... Args>
  absl::Status Wrong(fmt::format_string<Args...> format, Args&&... args) const {
    return DataLoss(
        "{}: {}. This device must not train: exclude its node from the job and have it tested",
        options_.device, fmt::format(format, std::forward<Args>(args)...));
  }
  absl::Status Sync() {
    const absl::Status status = ops_.Sync();
    if (status.ok()) return status;
    return ErrorStatus(status.code(), "{}, in the health check: {}", options_.device,
                       Message(status));
  }
  char* device(size_t offset) const { return static_cast<char*>(device_.get()) + offset; }
  const char* PatternOf(size_t chunk) const {
    return static_cast<const char*>(pattern_.get()) + chunk % kShifts * kShift;
  }

  void FillPattern() {
    const size_t bytes = options_.chunk_bytes + kShifts * kShift;
    for (size_t i = 0; i < bytes; i += 16) {
      const auto bits = RandomBits(kSeed, RandomPurpose::kTest, 4, i / 16);
      std::memcpy(static_cast<char*>(pattern_.get()) + i, bits.data(), 16);
    }
  }
  void InvertPattern() {
    auto* words = static_cast<uint64_t*>(pattern_.get());
    for (size_t i = 0; i < (options_.chunk_bytes + kShifts * kShift) / 8; ++i) words[i] = ~words[i];
  }

  // Compares what came back with chunk `chunk` of the pattern.
  absl::Status Compare(size_t chunk, size_t offset, std::string_view what) const {
    const char* expected = PatternOf(chunk);
    const auto* seen = static_cast<const char*>(back_.get());
    if (std::memcmp(expected, seen, options_.chunk_bytes) == 0) return absl::OkStatus();
    std::optional<size_t> first;
    size_t words = 0;
    for (size_t i = 0; i < options_.chunk_bytes; i += 8) {
      if (std::memcmp(expected + i, seen + i, 8) == 0) continue;
      if (!first.has_value()) first = i;
      ++words;
    }
    uint64_t want = 0, got = 0;
    std::memcpy(&want, expected + *first, 8);
    std::memcpy(&got, seen + *first, 8);
    return Wrong(
        "{}: the 8 bytes at offset {:#x} of {} MiB are {:016x}, expected {:016x} (bits {:016x} "
        "differ; {} such words in {} KiB)",
        what, offset + *first, options_.memory_bytes >> 20, got, want, got ^ want, words,
        options_.chunk_bytes >> 10);
  }

  absl::Status Link(HealthReport& report) {
    const auto bytes = static_cast<double>(options_.chunk_bytes);
    for (int trial = 0; trial < kLinkTrials; ++trial) {
      const auto chunk = static_cast<size_t>(trial);
      const auto begin = Clock::now();
      ops_.Upload(PatternOf(chunk), options_.chunk_bytes, device(0));
      RETURN_IF_ERROR(Sync());
      const double up = SecondsSince(begin);
      const auto turn = Clock::now();
      ops_.Download(device(0), options_.chunk_bytes, back_.get());
      RETURN_IF_ERROR(Sync());
      const double down = SecondsSince(turn);
      RETURN_IF_ERROR(Compare(chunk, 0, "what went over the link to the host and back is changed"));
      if (!options_.rates) continue;
      report.upload = std::max(report.upload, bytes / up);
      report.download = std::max(report.download, bytes / down);
    }
    return absl::OkStatus();
  }

  // A pattern in one half, copied to the other, both read back; then its complement the other way.
  absl::Status MemoryKeeps(HealthReport& report) {
    const size_t half = options_.memory_bytes / 2, chunks = half / options_.chunk_bytes;
    PERDURE_CHECK(chunks > 0 && chunks * options_.chunk_bytes == half);
    for (const size_t from : {size_t{0}, half}) {
      const size_t to = half - from;
      if (from != 0) InvertPattern();
      for (size_t c = 0; c < chunks; ++c)
        ops_.Upload(PatternOf(c), options_.chunk_bytes, device(from + c * options_.chunk_bytes));
      RETURN_IF_ERROR(Sync());
      const auto columns = static_cast<int64_t>(options_.chunk_bytes / sizeof(float));
      const auto rows = static_cast<int64_t>(chunks);
      const auto begin = Clock::now();
      ops_.Copy(ConstMatrix(device(from), DType::kF32, rows, columns),
                Matrix(device(to), DType::kF32, rows, columns));
      RETURN_IF_ERROR(Sync());
      if (options_.rates)
        report.memory =
            std::max(report.memory, 2.0 * static_cast<double>(half) / SecondsSince(begin));
      for (const size_t base : {from, to})
        for (size_t c = 0; c < chunks; ++c) {
          const size_t at = base + c * options_.chunk_bytes;
          ops_.Download(device(at), options_.chunk_bytes, back_.get());
          RETURN_IF_ERROR(Sync());
          RETURN_IF_ERROR(Compare(c, at,
                                  base == from
                                      ? "its memory does not keep what is written"
                                      : "a copy inside its memory is not what was copied"));
        }
    }
    return absl::OkStatus();
  }

  absl::Status UploadFactor(const std::vector<int8_t>& values, char* to) {
    auto* words = static_cast<uint16_t*>(back_.get());
    const size_t step = options_.chunk_bytes / sizeof(uint16_t);
    for (size_t begin = 0; begin < values.size(); begin += step) {
      const size_t count = std::min(step, values.size() - begin);
      for (size_t i = 0; i < count; ++i) words[i] = WholeToBF16(values[begin + i]);
      ops_.Upload(words, count * sizeof(uint16_t), to + begin * sizeof(uint16_t));
      RETURN_IF_ERROR(Sync());
    }
    return absl::OkStatus();
  }

  absl::Status Products(HealthReport& report) {
    const Factors factors(options_.matmul_size);
    const int64_t n = factors.n;
    const size_t elements = static_cast<size_t>(n * n), need = 16 * elements;
    PERDURE_CHECK(n <= kMatmulSizeMax && need <= options_.memory_bytes &&
                  static_cast<size_t>(n) * sizeof(float) <= options_.chunk_bytes);
    std::optional<Digest> digest;
    for (size_t place = 0; place < kPlaces; ++place) {
      char* at = device((options_.memory_bytes - need) / (kPlaces - 1) * place / kAlign * kAlign);
      const Matrix a16(at, DType::kBF16, n, n), b16(at + 2 * elements, DType::kBF16, n, n);
      const Matrix a32(at + 4 * elements, DType::kF32, n, n);
      const Matrix b32(at + 8 * elements, DType::kF32, n, n);
      const Matrix c(at + 12 * elements, DType::kF32, n, n);
      RETURN_IF_ERROR(UploadFactor(factors.a, static_cast<char*>(a16.data)));
      RETURN_IF_ERROR(UploadFactor(factors.b, static_cast<char*>(b16.data)));
      ops_.Copy(a16, a32);
      ops_.Copy(b16, b32);
      for (const DType dtype : {DType::kBF16, DType::kF32}) {
        const bool bf16 = dtype == DType::kBF16;
        const auto multiply = [&] {
          ops_.Matmul(Transpose::kNo, Transpose::kNo, bf16 ? a16 : a32, bf16 ? b16 : b32, c, false);
        };
        multiply();
        RETURN_IF_ERROR(CompareProduct(factors, c, bf16 ? "bf16" : "fp32", digest));
        double& rate = bf16 ? report.matmul_bf16 : report.matmul_fp32;
        if (options_.rates) RETURN_IF_ERROR(Rate(multiply, n, rate));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Rate(const std::function<void()>& multiply, int64_t n, double& rate) {
    const auto size = static_cast<double>(n);
    const auto end = Clock::now() + kRateTime / kPlaces;
    do {
      const auto begin = Clock::now();
      for (int i = 0; i < kRateGroup; ++i) multiply();
      RETURN_IF_ERROR(Sync());
      rate = std::max(rate, kRateGroup * 2 * size * size * size / SecondsSince(begin));
    } while (Clock::now() < end);
    return absl::OkStatus();
  }

  // `digest` is of the first product; both types give the same bits, because both are exact.
  absl::Status CompareProduct(const Factors& factors, const Matrix& c, std::string_view type,
                              std::optional<Digest>& digest) {
    const int64_t n = factors.n;
    const auto rows_max = static_cast<int64_t>(options_.chunk_bytes / sizeof(float)) / n;
    DigestStream stream;
    for (int64_t begin = 0; begin < n; begin += rows_max) {
      const int64_t rows = std::min(rows_max, n - begin);
      const size_t bytes = static_cast<size_t>(rows * n) * sizeof(float);
      ops_.Download(c.Rows(begin, rows).data, bytes, back_.get());
      RETURN_IF_ERROR(Sync());
      stream.Update(back_.get(), bytes);
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = static_cast<const float*>(back_.get()) + r * n;
        double sum = 0;  // Exact: below 2^51.
        for (int64_t j = 0; j < n; ++j)
          sum += static_cast<double>(row[j]) * static_cast<double>(factors.x[j]);
        const int64_t i = begin + r;
        if (sum == static_cast<double>(factors.product_x[i])) continue;
        for (int64_t j = 0; j < n; ++j) {
          const auto expected = static_cast<float>(factors.Element(i, j));
          if (row[j] == expected) continue;
          return Wrong(
              "element ({}, {}) of a {} product of {} x {} is {} ({:08x}), expected {} "
              "({:08x})",
              i, j, type, n, n, row[j], std::bit_cast<uint32_t>(row[j]), expected,
              std::bit_cast<uint32_t>(expected));
        }
      }
    }
    const Digest now = stream.Finish();
    if (digest.has_value() && now != *digest)
      return Wrong(
          "the same {} product of {} x {} at another address has other bits: digest {}, "
          "expected {}",
          type, n, n, now.Hex(), digest->Hex());
    digest = now;
    return absl::OkStatus();
  }

  Ops& ops_;
  const HealthOptions options_;
  const Memory device_, pattern_, back_;
};

}  // namespace

HealthOptions HealthOptionsOf(const RankDevice& device, const std::string& host) {
  HealthOptions options;
  options.device = fmt::format("{} of host {}", device.name, host);
  if (device.pci_bus_id.empty()) return options;
  options.rates = true;
  options.chunk_bytes = size_t{16} << 20;
  const size_t pair = 2 * options.chunk_bytes;
  options.memory_bytes = std::clamp(device.free_bytes / 20 / pair * pair, pair, size_t{1} << 30);
  options.matmul_size = kMatmulSizeMax;
  while (16 * static_cast<size_t>(options.matmul_size * options.matmul_size) > options.memory_bytes)
    options.matmul_size /= 2;
  return options;
}

HealthReport CheckHealth(Ops& ops, const HealthOptions& options) {
  HealthReport report;
  const auto begin = Clock::now();
  report.status = Check(ops, options).Run(report);
  report.seconds = SecondsSince(begin);
  return report;
}

}  // namespace perdure
