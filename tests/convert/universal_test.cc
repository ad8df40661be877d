#include "ckpt/convert/universal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/megatron_deepspeed.h"
#include "ckpt/convert/torch_file.h"
#include "ckpt/convert/torch_writer.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TorchValue Str(const char* text) { return {std::string(text)}; }

class UniversalTest : public testing::Test {
 protected:
  std::string Error() {
    const auto source = UniversalSource::Open(path_, model_, table_);
    return source.ok() ? "none" : Message(source.status());
  }
  // Replaces a file by a dict with a tensor of that shape, zeros but for element 1.
  void Put(const std::string& name, std::vector<int64_t> shape, TorchDict dict = {}) {
    fs::remove(zero_ + name);
    auto file = CreateExportFile(zero_ + name);
    ASSERT_TRUE(file.ok()) << file.status();
    int64_t elements = 1;
    for (const int64_t extent : shape) elements *= extent;
    dict.emplace_back(Str("param"), TorchValue{TorchFloats{std::move(shape)}});
    auto writer = TorchWriter::Begin(*file, 0, {std::move(dict)});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_OK(writer->Write(0, 0, std::vector<float>(static_cast<size_t>(elements))));
    ASSERT_TRUE(writer->Finish().ok());
  }
  // The floats of a parameter's file.
  std::vector<float> Floats(const std::string& name) {
    const auto file = TorchFile::Open(zero_ + name);
    EXPECT_TRUE(file.ok()) << file.status();
    const auto tensor = file->Tensor(*file->root().Get("param"));
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    std::vector<float> values(static_cast<size_t>(tensor->size()));
    EXPECT_OK(ReadTorchFloats(file->file(), *tensor, 0, values));
    return values;
  }
  // Replaces a parameter's files by ones with its elements in the order of `place`.
  void Rewrite(const std::string& name, const std::vector<int64_t>& shape,
               const std::function<int64_t(int64_t)>& place);

  TestDirectory directory_;
  const ModelConfig model_ = SmallModel(1);
  const AtomTable table_ = SmallTable(1);
  const std::string path_ = CopyFixture("universal", directory_.path());
  const std::string step_ = path_ + "/global_step120/";
  const std::string zero_ = step_ + "zero/";
};

void UniversalTest::Rewrite(const std::string& name, const std::vector<int64_t>& shape,
                            const std::function<int64_t(int64_t)>& place) {
  for (const char* part : {"/fp32.pt", "/exp_avg.pt", "/exp_avg_sq.pt"}) {
    const std::vector<float> old = Floats(name + part);
    std::vector<float> values(old.size());
    for (size_t i = 0; i < old.size(); ++i)
      values[static_cast<size_t>(place(static_cast<int64_t>(i)))] = old[i];
    fs::remove(zero_ + name + part);
    auto file = CreateExportFile(zero_ + name + part);
    ASSERT_TRUE(file.ok()) << file.status();
    const TorchDict dict = {{Str("cat_dim"), {int64_t{0}}}, {Str("param"), {TorchFloats{shape}}}};
    auto writer = TorchWriter::Begin(*file, 0, {dict});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_OK(writer->Write(0, 0, values));
    ASSERT_TRUE(writer->Finish().ok());
  }
}

TEST_F(UniversalTest, WhatDeepSpeedMerged) {
  for (const std::string& path : {path_, step_}) {
    const auto source = UniversalSource::Open(path, model_, table_);
    ASSERT_TRUE(source.ok()) << source.status();
    ExpectGolden("universal", **source, table_);
    EXPECT_EQ((*source)->progress().iteration, 120);
    EXPECT_EQ((*source)->progress().samples, 960);
    EXPECT_EQ((*source)->progress().tokens, 61440);
    EXPECT_EQ((*source)->progress().optimizer_step, 120);
    EXPECT_OK((*source)->Verify());
  }
}

// A converter without the pattern for gate and up joins the tensor ranks' slices as they are.
TEST_F(UniversalTest, GateAndUpByTensorRank) {
  const int64_t share = 12 / 4 * 8, whole = 12 * 8;
  Rewrite("2.mlp.dense_h_to_4h.weight", {24, 8}, [=](int64_t i) {
    const int64_t half = i / whole, rank = i % whole / share;
    return (rank * 2 + half) * share + i % share;
  });
  const auto source = UniversalSource::Open(path_, model_, table_);
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectGolden("universal", **source, table_);
}

// A converter with the misspelt pattern joins row-parallel slices below each other.
TEST_F(UniversalTest, DenseJoinedAlongTheWrongAxis) {
  Rewrite("2.self_attention.dense.weight", {32, 4}, [](int64_t i) {
    const int64_t row = i / 16, col = i % 16;
    return (col / 4 * 8 + row) * 4 + col % 4;
  });
  const auto source = UniversalSource::Open(path_, model_, table_);
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectGolden("universal", **source, table_);
}

TEST_F(UniversalTest, ParametersThatAreRefused) {
  Put("2.input_layernorm.weight/fp32.pt", {9});
  EXPECT_THAT(Error(),
              HasSubstr("2.input_layernorm.weight/fp32.pt: shape [9]; 1 x 8 was expected"));
  Put("2.input_layernorm.weight/fp32.pt", {8});
  Put("1.word_embeddings.weight/exp_avg.pt", {17, 8});
  EXPECT_THAT(Error(), HasSubstr("shape [17, 8]; 18 x 8"));
  Put("1.word_embeddings.weight/exp_avg.pt", {19, 8}, {{Str("vocab_tensor"), {true}}});
  EXPECT_THAT(Error(), HasSubstr("shape [19, 8]; 18 x 8"));
  Put("1.word_embeddings.weight/exp_avg.pt", {20, 8});  // Padding that was not cut.
  EXPECT_EQ(Error(), "none");
  Put("2.self_attention.dense.weight/fp32.pt", {32, 4}, {{Str("cat_dim"), {int64_t{1}}}});
  EXPECT_THAT(Error(), HasSubstr("shape [32, 4]; 8 x 16"));
  Put("2.self_attention.dense.weight/fp32.pt", {8, 16}, {{Str("sub_param_shape"), {}}});
  EXPECT_THAT(Error(), HasSubstr("fp32.pt.sub_param_shape is None: this key is not read"));
  Put("2.self_attention.dense.weight/fp32.pt", {8, 16},
      {{Str("param_n_sub_params"), {int64_t{3}}}});
  EXPECT_THAT(Error(), HasSubstr("the int 3: 2 parameters in one are read"));
}

TEST_F(UniversalTest, FilesThatAreMissingOrTooMany) {
  fs::remove(zero_ + "2.weight/fp32.pt");
  fs::create_directory(zero_ + "2.weight");
  EXPECT_THAT(Error(), HasSubstr("2.weight is none of a Llama of 1 layers"));
  fs::remove_all(zero_ + "2.weight");
  fs::remove(zero_ + "3.weight/exp_avg_sq.pt");
  EXPECT_THAT(Error(), HasSubstr("3.weight/exp_avg_sq.pt is not there"));
  fs::remove(step_ + "mp_rank_00_model_states.pt");
  EXPECT_THAT(Error(), HasSubstr("mp_rank_00_model_states.pt is not there"));
  fs::remove_all(zero_);
  EXPECT_THAT(Error(), HasSubstr("name the directory of a universal checkpoint"));
}

TEST_F(UniversalTest, StepsThatDisagree) {
  ASSERT_OK(WriteTorchFile(zero_ + "2.self_attention.query.weight/step.pt", {int64_t{119}}));
  EXPECT_THAT(Error(),
              HasSubstr("optimizer_state.pt.param_groups[0].step = 120 where others have 119"));
}

TEST_F(UniversalTest, RoundTrip) {
  const auto megatron =
      MegatronDeepSpeedSource::Open(TorchFixture("t2p2d2"), SmallModel(2), SmallTable(2));
  for (const int64_t slices : {1, 4}) {
    const AtomTable table = SmallTable(2, slices, 11);
    TestState state(table, 5);
    const std::string from = directory_.Make("from" + std::to_string(slices));
    const Manifest manifest = WriteCheckpoint(from, table, state, 3);
    const auto reader = AtomReader::Open(from, manifest, table);
    ASSERT_TRUE(reader.ok()) << reader.status();
    const std::string parent = directory_.path() + "/to" + std::to_string(slices);
    uint64_t last = 0;
    ASSERT_OK(ExportUniversal(**reader, SmallModel(2), table,
                              {.step = 120, .samples = 960, .tokens = 7680, .rate = 3e-4}, parent,
                              "global_step120", [&](uint64_t done, uint64_t) { last = done; }));
    EXPECT_EQ(last, static_cast<uint64_t>(table.parameters()) * 12);
    const AtomTable other = SmallTable(2, 2, 100);
    const auto source = UniversalSource::Open(parent, SmallModel(2), other);
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_OK((*source)->Verify());
    EXPECT_TRUE(SameBits(ReadWhole(**source, other), ReadWhole(**reader, table)));
    EXPECT_EQ((*source)->progress().optimizer_step, 120);
    EXPECT_EQ((*source)->progress().samples, 960);
    EXPECT_EQ((*source)->progress().tokens, 7680);
    const auto optimizer = TorchFile::Open(parent + "/global_step120/zero/optimizer_state.pt");
    ASSERT_TRUE(optimizer.ok()) << optimizer.status();
    EXPECT_TRUE(optimizer->root().Get("ds_version").ok()) << "its ZeRO 1 and 2 refuse without";
    EXPECT_EQ(ExportUniversal(**reader, SmallModel(2), table, {}, parent, "global_step120").code(),
              absl::StatusCode::kAlreadyExists);
    EXPECT_EQ(ExportUniversal(**reader, SmallModel(2), table, {}, parent, "a/b").code(),
              absl::StatusCode::kInvalidArgument);
  }
}

// From one foreign form to the other, and back to what the scripts had saved.
TEST_F(UniversalTest, FromMegatronDeepSpeed) {
  const AtomTable table = SmallTable(2);
  const auto megatron = MegatronDeepSpeedSource::Open(TorchFixture("t2p2d2"), SmallModel(2), table);
  ASSERT_TRUE(megatron.ok()) << megatron.status();
  const std::string parent = directory_.path() + "/to";
  ASSERT_OK(ExportUniversal(**megatron, SmallModel(2), table, {.step = 120}, parent, "u"));
  const auto source = UniversalSource::Open(parent, SmallModel(2), table);
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectGolden("t2p2d2", **source, table);
}

}  // namespace
}  // namespace perdure
