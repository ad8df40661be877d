#include "ckpt/convert/dcp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "ckpt/atom_reader.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST(DcpTest, ShardedOverTwoRanks) {
  for (const int64_t slices : {1, 4}) {
    const AtomTable table = SmallTable(1, slices);
    const auto source = DcpSource::Open(TorchFixture("dcp"), table);
    ASSERT_TRUE(source.ok()) << source.status();
    ExpectGolden("dcp", **source, table);
    EXPECT_TRUE((*source)->progress().has_moments);
    EXPECT_EQ((*source)->progress().iteration, 120);
    EXPECT_EQ((*source)->progress().samples, -1);
    EXPECT_EQ((*source)->progress().optimizer_step, 120);
    EXPECT_EQ((*source)->type(), "float32");
    EXPECT_OK((*source)->Verify());
  }
}

TEST(DcpTest, WithoutMomentsTheyAreZeros) {
  const AtomTable table = SmallTable(1);
  const auto source = DcpSource::Open(TorchFixture("dcp_bf16"), table);
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectGolden("dcp_bf16", **source, table);
  EXPECT_FALSE((*source)->progress().has_moments);
  EXPECT_EQ((*source)->progress().optimizer_step, -1);
  EXPECT_EQ((*source)->type(), "bfloat16");
  for (const auto& tensor : ReadWhole(**source, table))
    for (size_t part = 1; part < tensor.size(); ++part)
      EXPECT_TRUE(std::all_of(tensor[part].begin(), tensor[part].end(),
                              [](float value) { return value == 0.0F; }));
}

class DamagedDcpTest : public testing::Test {
 protected:
  absl::Status Open(const std::string& path, const DcpImport& how = {}) {
    return DcpSource::Open(path, table_, how).status();
  }
  // Of the two-rank fixture, with `from` in its .metadata replaced by `to`, of equal length.
  std::string Error(const std::string& from, const std::string& to) {
    std::string bytes = pickle_;
    EXPECT_EQ(from.size(), to.size());
    size_t count = 0;
    for (size_t at = bytes.find(from); at != bytes.npos; at = bytes.find(from, at + 1), ++count)
      bytes.replace(at, from.size(), to);
    EXPECT_GT(count, 0U) << from;
    Spill(path_ + "/.metadata", bytes);
    const absl::Status status = Open(path_);
    return status.ok() ? "none" : Message(status);
  }

  TestDirectory directory_;
  const AtomTable table_ = SmallTable(1);
  const std::string path_ = CopyFixture("dcp", directory_.path());
  const std::string pickle_ = Slurp(path_ + "/.metadata");
};

TEST_F(DamagedDcpTest, Prefixes) {
  EXPECT_OK(Open(path_, {.prefix = "model."}));
  EXPECT_THAT(Message(Open(path_, {.prefix = "x."})),
              HasSubstr("there is no x.model.embed_tokens.weight"));
  EXPECT_THAT(Error("embed_tokens", "embed_tikens"),
              HasSubstr("no tensor's name ends in model.embed_tokens.weight"));
  // The optimizer's step as a second candidate.
  EXPECT_THAT(Error("optim.state.model.embed_tokens.weight.exp_avg\x94",
                    "optim.ema.x.yz.w.model.embed_tokens.weight\x94\x94\x94\x94"),
              HasSubstr("byte "));
}

TEST_F(DamagedDcpTest, NamesThatDoNotFit) {
  EXPECT_THAT(Error("model.norm.weight", "model.nurm.weight"),
              HasSubstr("model.model.nurm.weight is none of the model's tensors"));
  EXPECT_THAT(
      Error("optim.state.model.embed_tokens.weight", "optim.state.model.embed_tikens.weight"),
      HasSubstr("is a moment whose parameter is not named"));
  EXPECT_THAT(
      Error("optim.state.lm_head.weight.exp_avg_sq", "optim.state.lm_head.weight.exp_avg_qs"),
      HasSubstr("there is no optim.state.lm_head.weight.exp_avg_sq"));
}

TEST_F(DamagedDcpTest, OtherShapes) {
  const AtomTable other(SmallTable(1).tensors(), 13);
  std::vector<TensorSpec> tensors = SmallTable(1).tensors();
  tensors[0].rows = 17;
  const absl::Status status = DcpSource::Open(path_, AtomTable(tensors, 13)).status();
  EXPECT_THAT(Message(status),
              HasSubstr("model.model.embed_tokens.weight is [18, 8]; [17, 8] was expected"));
}

TEST_F(DamagedDcpTest, Places) {
  EXPECT_THAT(Error("__1_0.distcp", "../x1.distcp"), HasSubstr(".relative_path is the str"));
  EXPECT_THAT(Error("__1_0.distcp", "__2_0.distcp"), HasSubstr("__2_0.distcp is not there"));
  EXPECT_THAT(Error("_StorageInfo", "_StorageInfx"),
              HasSubstr("an object of _StorageInfo was expected"));
  EXPECT_THAT(Error("storage_data", "storage_dato"), HasSubstr("has no key storage_data"));
  EXPECT_THAT(Error("chunks", "chinks"), HasSubstr("has no key chunks"));
  EXPECT_THAT(Error("float32", "float23"), HasSubstr("torch.float23: no type that is read"));
}

TEST_F(DamagedDcpTest, WithoutMetadataItIsNone) {
  fs::remove(path_ + "/.metadata");
  EXPECT_EQ(Open(path_).code(), absl::StatusCode::kNotFound);
}

TEST_F(DamagedDcpTest, EveryTruncationOfTheMetadataIsAnError) {
  for (size_t length = 0; length < pickle_.size(); length += 13) {
    Spill(path_ + "/.metadata", pickle_.substr(0, length));
    ASSERT_THAT(Message(Open(path_)), HasSubstr(".metadata: byte ")) << length;
  }
}

TEST_F(DamagedDcpTest, MutationsOfTheMetadataEndInAnAnswer) {
  TestRandom random(11);
  std::vector<float> floats(39);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = pickle_;
    bytes[random.Below(bytes.size())] = static_cast<char>(random.Next());
    Spill(path_ + "/.metadata", bytes);
    const auto source = DcpSource::Open(path_, table_);
    if (!source.ok()) continue;
    const AtomState state{.atom = static_cast<int64_t>(random.Below(table_.atoms().size())),
                          .parts = {&floats[0], &floats[13], &floats[26]}};
    (*source)->Read({&state, 1}).IgnoreError();
  }
}

TEST_F(DamagedDcpTest, ATruncatedFileOfChunks) {
  const std::string name = path_ + "/__0_0.distcp", bytes = Slurp(name);
  Spill(name, bytes.substr(0, bytes.size() / 2));
  const auto source = DcpSource::Open(path_, table_);
  const absl::Status status = source.ok() ? (*source)->Verify() : source.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("__0_0.distcp"));
}

class DcpRoundTripTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Files, DcpRoundTripTest, testing::Values(1, 3, 100));

TEST_P(DcpRoundTripTest, IsTheSame) {
  const TestDirectory directory;
  const AtomTable table = SmallTable(2, 4, 11);
  TestState state(table, 5);
  const Manifest manifest = WriteCheckpoint(directory.Make("from"), table, state, 3);
  const auto reader = AtomReader::Open(directory.path() + "/from", manifest, table);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const std::string to = directory.path() + "/to";
  uint64_t last = 0;
  ASSERT_OK(ExportDcp(**reader, table,
                      {.step = 120, .samples = 960, .tokens = 7680, .files = GetParam()}, to,
                      [&](uint64_t done, uint64_t) { last = done; }));
  EXPECT_EQ(last, static_cast<uint64_t>(table.parameters()) * 12);
  const AtomTable other = SmallTable(2, 2, 100);
  const auto source = DcpSource::Open(to, other);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_OK((*source)->Verify());
  EXPECT_TRUE(SameBits(ReadWhole(**source, other), ReadWhole(**reader, table)));
  EXPECT_EQ((*source)->progress().iteration, 120);
  EXPECT_EQ((*source)->progress().samples, 960);
  EXPECT_EQ((*source)->progress().tokens, 7680);
  EXPECT_EQ((*source)->progress().optimizer_step, 120);
  EXPECT_EQ(ExportDcp(**reader, table, {}, to).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ExportDcp(**reader, table, {.model_prefix = "x"}, to + "2").code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AssembledStateTest, BlocksThatDoNotTile) {
  const AtomTable table({{.name = "m", .rows = 4, .cols = 6}}, 100);
  const auto zeros = std::make_shared<ZeroSource>(100);
  const auto set = [&](const std::vector<std::array<int64_t, 4>>& extents) {
    std::vector<StateBlock> blocks;
    for (const auto& [row, col, rows, cols] : extents)
      blocks.push_back(
          {.row = row, .col = col, .rows = rows, .cols = cols, .source = zeros, .stride = cols});
    AssembledState state(table);
    return Message(state.Set(0, 0, std::move(blocks), "w"));
  };
  EXPECT_EQ(set({{0, 0, 4, 6}}), "");
  EXPECT_EQ(set({{2, 0, 2, 6}, {0, 3, 2, 3}, {0, 0, 2, 3}}), "");
  EXPECT_THAT(set({}), HasSubstr("w: its pieces end at row 0 of 4"));
  EXPECT_THAT(set({{0, 0, 3, 6}}), HasSubstr("end at row 3 of 4"));
  EXPECT_THAT(set({{1, 0, 3, 6}}), HasSubstr("begins at row 1 where row 0 is the next"));
  EXPECT_THAT(set({{0, 0, 2, 6}, {1, 0, 3, 6}}), HasSubstr("begins at row 1 where row 2"));
  EXPECT_THAT(set({{0, 0, 4, 6}, {0, 0, 4, 6}}), HasSubstr("hole or an overlap"));
  EXPECT_THAT(set({{0, 0, 4, 3}}), HasSubstr("end at column 3 of 6"));
  EXPECT_THAT(set({{0, 0, 4, 3}, {0, 2, 4, 4}}), HasSubstr("overlap at column 3"));
  EXPECT_THAT(set({{0, 0, 4, 7}}), HasSubstr("overlap at column 0"));
  EXPECT_THAT(set({{0, 0, 5, 6}}), HasSubstr("a piece of 5 rows"));
  AssembledState state(table);
  EXPECT_THAT(Message(state.CheckComplete()), HasSubstr("param of m is nowhere"));
}

}  // namespace
}  // namespace perdure
