#include "runtime/data/sample_order.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "tests/data/test_files.h"

namespace perdure {
namespace {

using Code = absl::StatusCode;

constexpr int64_t kVocab = 1000;

// Sources of a mixture: source k holds the tokens (7 k + i) mod 1000.
class SampleOrderTest : public testing::Test {
 protected:
  std::string Source(const std::string& name, int64_t tokens, int32_t first = 0) {
    const std::string prefix = folder_ / name;
    auto writer = *IndexedDatasetWriter::Create(prefix, kVocab);
    std::vector<int32_t> document;
    for (int64_t i = 0; i < tokens; ++i)
      document.push_back(static_cast<int32_t>((first + i) % kVocab));
    EXPECT_TRUE(writer->AddDocument(document).ok());
    EXPECT_TRUE(writer->Finish().ok());
    return prefix;
  }
  // The mixture of the nano recipe.
  std::vector<MixtureSource> Nano() {
    return {{Source("en", 5000), 0.38},
            {Source("fr", 4000, 7), 0.37},
            {Source("de", 3000, 14), 0.10},
            {Source("es", 2000, 21), 0.09},
            {Source("it", 1000, 28), 0.06}};
  }
  std::unique_ptr<SampleOrder> Open(std::span<const MixtureSource> mixture, uint64_t seed = 1234,
                                    int64_t phase = 0, int64_t context = 16) {
    auto order = SampleOrder::Open(mixture, context, kVocab, seed, phase);
    EXPECT_TRUE(order.ok()) << order.status();
    return *std::move(order);
  }

  TestFolder folder_;
};

bool Equal(const SampleAddress& a, const SampleAddress& b) {
  return a.source == b.source && a.epoch == b.epoch && a.sample == b.sample;
}

TEST_F(SampleOrderTest, IsAPureFunction) {
  const auto mixture = Nano();
  const auto once = Open(mixture), again = Open(mixture);
  for (const int64_t index : {0, 1, 65535, 65536, 1000000, 3, 0})
    EXPECT_TRUE(Equal(once->Locate(index), again->Locate(index))) << index;
  EXPECT_EQ(once->SourceNames(), (std::vector<std::string>{"en", "fr", "de", "es", "it"}));
}

// These values are in the bits of every run: a change here is a change of what all runs read.
TEST_F(SampleOrderTest, KeepsItsGoldenValues) {
  const auto order = Open(Nano());
  std::string seen;
  for (const int64_t index : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1000, 65535, 65536, 10000000}) {
    const SampleAddress address = order->Locate(index);
    seen += fmt::format("{}:{}.{}.{} ", index, address.source, address.epoch, address.sample);
  }
  EXPECT_EQ(seen,
            "0:0.0.121 1:1.0.166 2:2.0.12 3:0.0.230 4:1.0.47 5:3.0.12 6:0.0.10 7:1.0.236 8:4.0.52 "
            "9:0.0.127 1000:0.1.277 65535:0.79.279 65536:0.79.57 10000000:1.14859.20 ");
  EXPECT_EQ(order->Chain(Digest(), 0, 1000).Hex(), "71c091c9fd84b0166c6093712508ceef");
}

TEST_F(SampleOrderTest, GivesEverySourceItsExactShareOfABlock) {
  const auto order = Open(Nano());
  for (const int64_t block : {0, 1, 7}) {
    std::map<int32_t, int64_t> counts;
    for (int64_t i = 0; i < 65536; ++i) ++counts[order->Locate(block * 65536 + i).source];
    // 65536 times the weights, and the two samples left over to the greatest remainders: .68 and
    // .60.
    EXPECT_EQ(counts, (std::map<int32_t, int64_t>{
                          {0, 24904}, {1, 24248}, {2, 6554}, {3, 5898}, {4, 3932}}));
  }
}

TEST_F(SampleOrderTest, StaysCloseToTheWeightsAtEveryPrefix) {
  const auto order = Open(Nano());
  const std::vector<double> shares{24904 / 65536., 24248 / 65536., 6554 / 65536., 5898 / 65536.,
                                   3932 / 65536.};
  std::vector<int64_t> used(shares.size(), 0);
  double ahead = 0, behind = 0;
  for (int64_t i = 0; i < 2 * 65536; ++i) {
    ++used[static_cast<size_t>(order->Locate(i).source)];
    for (size_t source = 0; source < shares.size(); ++source) {
      const double error =
          static_cast<double>(used[source]) - shares[source] * static_cast<double>(i + 1);
      ahead = std::max(ahead, error);
      behind = std::min(behind, error);
    }
  }
  EXPECT_LT(ahead, 1.0);
  EXPECT_GT(behind, -1.5);
}

TEST_F(SampleOrderTest, WeightsNeedNotSumToOne) {
  const std::string a = Source("a", 500), b = Source("b", 500);
  const std::vector<MixtureSource> one{{a, 0.75}, {b, 0.25}}, four{{a, 3}, {b, 1}};
  const auto order_one = Open(one), order_four = Open(four);
  for (int64_t i = 0; i < 1000; ++i)
    EXPECT_TRUE(Equal(order_one->Locate(i), order_four->Locate(i)));
}

TEST_F(SampleOrderTest, ShufflesEachEpochAnew) {
  // 101 tokens, context 1: 100 samples.
  for (const int64_t samples : {1, 2, 3, 100, 257}) {
    const std::vector<MixtureSource> mixture{{Source(fmt::format("s{}", samples), samples + 1), 1}};
    const auto order = Open(mixture, 1, 0, 1);
    std::vector<std::vector<int64_t>> epochs;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int64_t> epoch_samples;
      for (int64_t i = 0; i < samples; ++i) {
        const SampleAddress address = order->Locate(epoch * samples + i);
        EXPECT_EQ(address.epoch, epoch);
        epoch_samples.push_back(address.sample);
      }
      const std::set<int64_t> distinct(epoch_samples.begin(), epoch_samples.end());
      EXPECT_EQ(std::ssize(distinct), samples);
      EXPECT_EQ(*distinct.begin(), 0);
      EXPECT_EQ(*distinct.rbegin(), samples - 1);
      epochs.push_back(epoch_samples);
    }
    if (samples < 100) continue;
    EXPECT_NE(epochs[0], epochs[1]);
    EXPECT_NE(epochs[1], epochs[2]);
    int64_t fixed = 0;
    for (int64_t i = 0; i < samples; ++i) fixed += epochs[0][static_cast<size_t>(i)] == i;
    EXPECT_LT(fixed, 8) << "hardly shuffled";
  }
}

TEST_F(SampleOrderTest, DependsOnSeedPhaseAndSource) {
  const std::string a = Source("a", 1601), b = Source("b", 1601);
  const std::vector<MixtureSource> mixture{{a, 1}, {b, 1}};
  const auto base = Open(mixture), seed = Open(mixture, 1235), phase = Open(mixture, 1234, 1);
  std::vector<std::vector<int64_t>> orders(4);
  for (int64_t i = 0; i < 100; ++i) {
    orders[0].push_back(base->Locate(2 * i).sample);
    orders[1].push_back(base->Locate(2 * i + 1).sample);
    orders[2].push_back(seed->Locate(2 * i).sample);
    orders[3].push_back(phase->Locate(2 * i).sample);
  }
  EXPECT_EQ(std::set(orders.begin(), orders.end()).size(), 4u);
}

TEST_F(SampleOrderTest, ReadsConsecutiveTokensThatShareOne) {
  const std::vector<MixtureSource> mixture{{Source("a", 35, 500), 1}};
  const auto order = Open(mixture, 1, 0, 16);
  std::vector<int32_t> tokens(17);
  for (int64_t sample = 0; sample < 2; ++sample) {
    ASSERT_TRUE(order->Read({.source = 0, .epoch = 3, .sample = sample}, tokens).ok());
    for (int32_t i = 0; i < 17; ++i)
      EXPECT_EQ(tokens[static_cast<size_t>(i)], 500 + 16 * sample + i);
  }
  for (int64_t i = 0; i < 10; ++i) EXPECT_LT(order->Locate(i).sample, 2);
}

TEST_F(SampleOrderTest, ChainsCompose) {
  const auto order = Open(Nano());
  const Digest whole = order->Chain(Digest(), 0, 500);
  for (const int64_t cut : {0, 1, 250, 499, 500})
    EXPECT_EQ(order->Chain(order->Chain(Digest(), 0, cut), cut, 500), whole) << cut;
  EXPECT_NE(order->Chain(Digest(), 1, 501), whole);
  EXPECT_NE(order->Chain(Digest(), 0, 501), whole);
  EXPECT_NE(order->Chain(DigestOf("other"), 0, 500), whole);
  EXPECT_EQ(order->Chain(whole, 7, 7), whole);
}

TEST_F(SampleOrderTest, RefusesWrongArguments) {
  const std::string a = Source("a", 100), b = Source("b", 100);
  const auto open = [](std::vector<MixtureSource> mixture, int64_t context = 16,
                       int64_t vocab = kVocab, int64_t phase = 0) {
    return SampleOrder::Open(mixture, context, vocab, 1, phase).status();
  };
  ExpectError(open({}), Code::kInvalidArgument, {"names no source"});
  for (const double weight : {0., -1., std::nan(""), std::numeric_limits<double>::infinity()})
    ExpectError(open({{a, 1}, {b, weight}}), Code::kInvalidArgument, {b, "weight", "positive"});
  ExpectError(open({{a, 1e308}, {b, 1e308}}), Code::kInvalidArgument, {"add up to inf"});
  ExpectError(open({{a, 1}, {b, 1e-6}}), Code::kInvalidArgument,
              {b, "less than one sample in 65536"});
  ExpectError(open(std::vector<MixtureSource>(4096, {a, 1})), Code::kInvalidArgument,
              {"4096 sources"});
  ExpectError(open({{a, 1}}, 0), Code::kInvalidArgument, {"context of 0"});
  ExpectError(open({{a, 1}}, 16, 0), Code::kInvalidArgument, {"vocabulary of 0"});
  ExpectError(open({{a, 1}}, 16, kVocab, -1), Code::kInvalidArgument, {"phase -1"});
  ExpectError(open({{a, 1}}, 16, kVocab, 4096), Code::kInvalidArgument, {"phase 4096"});
  ExpectError(open({{a, 1}, {folder_ / "none", 1}}), Code::kNotFound, {"none.idx"});
  EXPECT_TRUE(open({{a, 1}}, 99).ok());
  ExpectError(open({{a, 1}}, 100), Code::kInvalidArgument, {a, "100 tokens", "needs 101"});
}

TEST_F(SampleOrderTest, RefusesATokenOutsideTheVocabulary) {
  const std::string a = Source("a", 100, 900);
  const std::vector<MixtureSource> mixture{{a, 1}};
  EXPECT_TRUE((*SampleOrder::Open(mixture, 16, 1000, 1, 0))->CheckTokens().ok());
  ExpectError((*SampleOrder::Open(mixture, 16, 999, 1, 0))->CheckTokens(), Code::kInvalidArgument,
              {a + ".bin", "id 999", "token 99", "vocab is 999"});
}

// One sequence of bytes as i8 or u8.
void WriteBytesDataset(const TestFolder& folder, uint8_t dtype, int32_t tokens,
                       const std::string& bin) {
  std::string idx("MMIDIDX\0\0", 9);
  const auto put = [&idx](auto value) {
    idx.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(uint64_t{1});
  put(dtype);
  put(uint64_t{1});
  put(uint64_t{2});
  put(tokens);
  put(int64_t{0});
  put(int64_t{0});
  put(int64_t{1});
  folder.Write("d.idx", idx);
  folder.Write("d.bin", bin);
}

TEST_F(SampleOrderTest, RefusesANegativeToken) {
  WriteBytesDataset(folder_, 2, 4, "\x01\x02\xff\x03");
  const std::vector<MixtureSource> mixture{{folder_ / "d", 1}};
  ExpectError((*SampleOrder::Open(mixture, 2, 1000, 1, 0))->CheckTokens(), Code::kInvalidArgument,
              {"d.bin", "id -1", "token 2"});
}

TEST_F(SampleOrderTest, ATokenBehindTheOnesThatAreCheckedIsCaughtWhenRead) {
  constexpr int32_t kChecked = 1 << 28;
  WriteBytesDataset(folder_, 1, kChecked + 64, "");
  ASSERT_EQ(::truncate((folder_ / "d.bin").c_str(), kChecked + 64), 0);  // Sparse.
  std::fstream bin(folder_ / "d.bin", std::ios::in | std::ios::out | std::ios::binary);
  bin.seekp(kChecked + 32);
  bin.put(7);
  bin.close();
  const std::vector<MixtureSource> mixture{{folder_ / "d", 1}};
  auto order = SampleOrder::Open(mixture, 16, 5, 1, 0);
  ASSERT_TRUE(order.ok()) << order.status();
  EXPECT_TRUE((*order)->CheckTokens().ok());
  std::vector<int32_t> tokens(17);
  EXPECT_TRUE((*order)->Read({.source = 0, .epoch = 0, .sample = kChecked / 16}, tokens).ok());
  ExpectError((*order)->Read({.source = 0, .epoch = 0, .sample = kChecked / 16 + 2}, tokens),
              Code::kDataLoss, {"d.bin", "id 7", "token 268435488", "vocab is 5"});
}

}  // namespace
}  // namespace perdure
