#include "runtime/data/sample_order.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "runtime/base/check.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// All of these are part of a run's bits: to change one is to change what every run reads.
constexpr int64_t kBlockSamples = 65536;
constexpr int kPhaseBits = 12, kSourceBits = 12, kEpochBits = 40;

constexpr int64_t kCheckedTokens = int64_t{1} << 28;

std::string ShortName(const std::string& prefix) {
  return std::filesystem::path(prefix).filename().string();
}

absl::Status CheckArguments(std::span<const MixtureSource> mixture, int64_t context, int64_t vocab,
                            int64_t phase) {
  if (mixture.empty()) return InvalidArgument("the mixture of phase {} names no source", phase);
  if (mixture.size() >= size_t{1} << kSourceBits)
    return InvalidArgument("the mixture of phase {} names {} sources; fewer than {} are possible",
                           phase, mixture.size(), 1 << kSourceBits);
  for (const MixtureSource& source : mixture)
    if (!(source.weight > 0) || !std::isfinite(source.weight))
      return InvalidArgument("source {} has weight {}: a weight is a positive number",
                             source.prefix, source.weight);
  if (context < 1) return InvalidArgument("a context of {} tokens: at least 1 is needed", context);
  if (vocab < 1) return InvalidArgument("a vocabulary of {} ids: at least 1 is needed", vocab);
  if (phase < 0 || phase >= int64_t{1} << kPhaseBits)
    return InvalidArgument("phase {}: phases are numbered 0 to {}", phase, (1 << kPhaseBits) - 1);
  return absl::OkStatus();
}

// Tokens [begin, begin + tokens.size()) of the source, each within the vocabulary; an error has
// `code`.
absl::Status ReadTokens(const IndexedDataset& dataset, int64_t begin, int64_t vocab,
                        absl::StatusCode code, std::span<int32_t> tokens) {
  dataset.Read(begin, tokens);
  const auto [least, greatest] = std::minmax_element(tokens.begin(), tokens.end());
  if (*least >= 0 && *greatest < vocab) return absl::OkStatus();
  const auto bad = *least < 0 ? least : greatest;
  return ErrorStatus(
      code,
      "{}.bin holds token id {} (token {}), but the model's vocab is {}: raise [model] vocab "
      "(`perdure data inspect {}` shows the greatest id), or build the data with the tokenizer of "
      "this model",
      dataset.prefix(), *bad, begin + (bad - tokens.begin()), vocab, dataset.prefix());
}

// Samples of each source in a block: the largest remainder method, ties to the lower index.
absl::StatusOr<std::vector<int64_t>> BlockCounts(std::span<const MixtureSource> mixture) {
  double sum = 0;
  for (const MixtureSource& source : mixture) sum += source.weight;
  if (!std::isfinite(sum))
    return InvalidArgument("the weights of the mixture add up to {}: give smaller ones", sum);
  std::vector<int64_t> counts;
  std::vector<double> remainders;
  for (const MixtureSource& source : mixture) {
    const double quota = source.weight / sum * static_cast<double>(kBlockSamples);
    counts.push_back(static_cast<int64_t>(quota));
    remainders.push_back(quota - std::floor(quota));
  }
  std::vector<size_t> order(mixture.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  int64_t missing = kBlockSamples - std::accumulate(counts.begin(), counts.end(), int64_t{0});
  PERDURE_CHECK(missing >= 0 && missing <= std::ssize(counts));
  for (size_t i = 0; missing > 0; ++i, --missing) ++counts[order[i]];
  for (size_t i = 0; i < counts.size(); ++i)
    if (counts[i] == 0)
      return InvalidArgument(
          "source {} has weight {} of {}, less than one sample in {}: raise its weight or leave it "
          "out",
          mixture[i].prefix, mixture[i].weight, sum, kBlockSamples);
  return counts;
}

// Position in a block -> its source, and which of that source's uses in the block it is.
struct BlockSlot {
  int32_t source = 0;
  int32_t use = 0;
};

// Before each choice the lags sum to one sample, so the greatest is positive; no source gets ahead
// by a whole sample, and at the end of the block all have exactly their counts.
std::vector<BlockSlot> Interleave(std::span<const int64_t> counts) {
  std::vector<BlockSlot> slots;
  slots.reserve(kBlockSamples);
  std::vector<int64_t> lag(counts.size(), 0);  // In units of 1 / kBlockSamples of a sample.
  std::vector<int32_t> used(counts.size(), 0);
  for (int64_t position = 0; position < kBlockSamples; ++position) {
    for (size_t i = 0; i < counts.size(); ++i) lag[i] += counts[i];
    const auto next = std::max_element(lag.begin(), lag.end()) - lag.begin();
    lag[next] -= kBlockSamples;
    slots.push_back({static_cast<int32_t>(next), used[next]++});
  }
  return slots;
}

class MixedOrder final : public SampleOrder {
 public:
  MixedOrder(std::vector<std::unique_ptr<IndexedDataset>> datasets, std::vector<int64_t> counts,
             int64_t context, int64_t vocab, uint64_t seed, int64_t phase)
      : datasets_(std::move(datasets)),
        counts_(std::move(counts)),
        slots_(Interleave(counts_)),
        context_(context),
        vocab_(vocab),
        seed_(seed),
        phase_(phase) {}

  absl::Status CheckTokens() const override {
    std::vector<int32_t> chunk(65536);
    for (const auto& dataset : datasets_) {
      const int64_t last = std::min(dataset->tokens(), kCheckedTokens);
      for (int64_t begin = 0; begin < last; begin += std::ssize(chunk)) {
        const auto count = static_cast<size_t>(std::min<int64_t>(std::ssize(chunk), last - begin));
        RETURN_IF_ERROR(ReadTokens(*dataset, begin, vocab_, absl::StatusCode::kInvalidArgument,
                                   {chunk.data(), count}));
      }
    }
    return absl::OkStatus();
  }

  SampleAddress Locate(int64_t index) const override {
    PERDURE_CHECK(index >= 0);
    const BlockSlot slot = slots_[index % kBlockSamples];
    const int64_t use = index / kBlockSamples * counts_[slot.source] + slot.use;
    const int64_t size = Samples(slot.source);
    SampleAddress address{.source = slot.source, .epoch = use / size};
    PERDURE_CHECK(address.epoch < int64_t{1} << kEpochBits);
    const uint64_t stream = (static_cast<uint64_t>(phase_) << (kSourceBits + kEpochBits)) |
                            (static_cast<uint64_t>(slot.source) << kEpochBits) |
                            static_cast<uint64_t>(address.epoch);
    address.sample = static_cast<int64_t>(PermuteIndex(static_cast<uint64_t>(use % size),
                                                       static_cast<uint64_t>(size), seed_, stream));
    return address;
  }

  absl::Status Read(const SampleAddress& address, std::span<int32_t> tokens) const override {
    PERDURE_CHECK(address.source >= 0 && address.source < std::ssize(datasets_));
    PERDURE_CHECK(address.sample >= 0 && address.sample < Samples(address.source));
    PERDURE_CHECK(std::ssize(tokens) == context_ + 1);
    return ReadTokens(*datasets_[address.source], address.sample * context_, vocab_,
                      absl::StatusCode::kDataLoss, tokens);
  }

  Digest Chain(const Digest& chain, int64_t first, int64_t last) const override {
    PERDURE_CHECK(first >= 0 && first <= last);
    Digest result = chain;
    for (int64_t index = first; index < last; ++index) {
      const SampleAddress address = Locate(index);
      std::array<uint8_t, 16 + 3 * 8> link;
      std::copy(result.bytes.begin(), result.bytes.end(), link.begin());
      const std::array<int64_t, 3> place{address.source, address.epoch, address.sample};
      for (size_t i = 0; i < 24; ++i)
        link[16 + i] = static_cast<uint8_t>(static_cast<uint64_t>(place[i / 8]) >> (8 * (i % 8)));
      result = DigestOf(link.data(), link.size());
    }
    return result;
  }

  std::vector<std::string> SourceNames() const override {
    std::vector<std::string> names;
    for (const auto& dataset : datasets_) names.push_back(ShortName(dataset->prefix()));
    return names;
  }

 private:
  int64_t Samples(int32_t source) const { return (datasets_[source]->tokens() - 1) / context_; }

  std::vector<std::unique_ptr<IndexedDataset>> datasets_;
  std::vector<int64_t> counts_;   // Of each source, per block.
  std::vector<BlockSlot> slots_;  // One per position in a block.
  int64_t context_;
  int64_t vocab_;
  uint64_t seed_;
  int64_t phase_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SampleOrder>> SampleOrder::Open(
    std::span<const MixtureSource> mixture, int64_t context, int64_t vocab, uint64_t seed,
    int64_t phase) {
  RETURN_IF_ERROR(CheckArguments(mixture, context, vocab, phase));
  ASSIGN_OR_RETURN(std::vector<int64_t> counts, BlockCounts(mixture));
  std::vector<std::unique_ptr<IndexedDataset>> datasets;
  for (const MixtureSource& source : mixture) {
    ASSIGN_OR_RETURN(std::unique_ptr<IndexedDataset> dataset, IndexedDataset::Open(source.prefix));
    if (dataset->tokens() <= context)
      return InvalidArgument(
          "source {} has {} tokens; a single sample of context {} needs {}: give more text, or a "
          "shorter context",
          source.prefix, dataset->tokens(), context, context + 1);
    datasets.push_back(std::move(dataset));
  }
  return std::unique_ptr<SampleOrder>(std::make_unique<MixedOrder>(
      std::move(datasets), std::move(counts), context, vocab, seed, phase));
}

}  // namespace perdure
