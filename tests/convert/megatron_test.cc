#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "ckpt/convert/megatron_deepspeed.h"
#include "ckpt/convert/megatron_names.h"
#include "ckpt/convert/zero_partition.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

absl::StatusOr<std::unique_ptr<MegatronDeepSpeedSource>> Open(const std::string& directory,
                                                              const AtomTable& table,
                                                              const ModelConfig& model) {
  return MegatronDeepSpeedSource::Open(directory, model, table);
}

struct Fixture {
  const char* name;
  int64_t layers;
  const char* layout;
};

void PrintTo(const Fixture& fixture, std::ostream* out) { *out << fixture.name; }

class MegatronTest : public testing::TestWithParam<Fixture> {};

INSTANTIATE_TEST_SUITE_P(Layouts, MegatronTest,
                         testing::Values(Fixture{"t2p2d2", 2, "tensor 2 x pipeline 2 x data 2"},
                                         Fixture{"t1p1d3", 1, "tensor 1 x pipeline 1 x data 3"},
                                         Fixture{"t4p1d2", 1, "tensor 4 x pipeline 1 x data 2"}),
                         [](const auto& suite) { return std::string(suite.param.name); });

TEST_P(MegatronTest, MergesToWhatWasSaved) {
  for (const int64_t slices : {1, 2, 4}) {
    const AtomTable table = SmallTable(GetParam().layers, slices, slices == 2 ? 1000 : 13);
    const auto source = Open(TorchFixture(GetParam().name), table, SmallModel(GetParam().layers));
    ASSERT_TRUE(source.ok()) << source.status();
    ExpectGolden(GetParam().name, **source, table);
    EXPECT_EQ((*source)->layout(), GetParam().layout);
    EXPECT_EQ((*source)->progress().iteration, 120);
    EXPECT_EQ((*source)->progress().samples, 960);
    EXPECT_EQ((*source)->progress().tokens, 61440);
    EXPECT_EQ((*source)->progress().optimizer_step, 120);
    EXPECT_TRUE((*source)->progress().has_moments);
    uint64_t last = 0, all = 0;
    EXPECT_OK((*source)->Verify([&](uint64_t done, uint64_t total) {
      EXPECT_GE(done, last);
      last = done;
      all = total;
    }));
    EXPECT_EQ(last, all);
  }
}

class DamagedMegatronTest : public testing::Test {
 protected:
  std::string Error(const ModelConfig& model, const AtomTable& table) {
    const auto source = Open(path_, table, model);
    if (!source.ok()) return Message(source.status());
    return "none";
  }
  std::string Error() { return Error(SmallModel(2), table_); }
  std::string Model(void (*change)(ModelConfig&)) {
    ModelConfig model = SmallModel(2);
    change(model);
    return Error(model, AtomTable(ModelTensorsOf(model), 13));
  }
  static std::vector<TensorSpec> ModelTensorsOf(const ModelConfig& model);
  void Remove(const std::string& name) { ASSERT_TRUE(fs::remove(step_ + name)) << name; }
  void Rename(const std::string& name, const std::string& to) {
    fs::rename(step_ + name, step_ + to);
  }
  // Exchanges bytes of a file, and its records' CRCs with them where they are recorded.
  void Exchange(const std::string& name, const std::string& from, const std::string& to);

  TestDirectory directory_;
  const AtomTable table_ = SmallTable(2);
  const std::string path_ = CopyFixture("t2p2d2", directory_.path());
  const std::string step_ = path_ + "/global_step120/";
};

std::vector<TensorSpec> DamagedMegatronTest::ModelTensorsOf(const ModelConfig& model) {
  return ModelTensors(model, 4);
}

void DamagedMegatronTest::Exchange(const std::string& name, const std::string& from,
                                   const std::string& to) {
  ASSERT_EQ(from.size(), to.size());
  ASSERT_OK(RewritePickle(step_ + name, [&](std::string& pickle) {
    size_t count = 0;
    for (size_t at = pickle.find(from); at != pickle.npos; at = pickle.find(from, at + 1), ++count)
      pickle.replace(at, from.size(), to);
    EXPECT_GT(count, 0U) << from;
  }));
}

TEST_F(DamagedMegatronTest, TheStepsDirectoryItself) {
  const auto source = Open(step_, table_, SmallModel(2));
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectGolden("t2p2d2", **source, table_);
}

TEST_F(DamagedMegatronTest, Pointers) {
  for (const std::string name : {"../x", "", "..", "/etc"}) {
    Spill(path_ + "/latest", name);
    EXPECT_THAT(Error(), HasSubstr("latest does not name a directory")) << name;
  }
  Spill(path_ + "/latest", "global_step121\n");
  EXPECT_THAT(Error(), HasSubstr("global_step121: No such file"));
}

TEST_F(DamagedMegatronTest, FilesThatAreMissing) {
  Remove("bf16_zero_pp_rank_1_mp_rank_02_optim_states.pt");
  EXPECT_THAT(Error(),
              HasSubstr("7 optimizer files are not a whole number for each of 4 mp ranks"));
}

TEST_F(DamagedMegatronTest, AModelFileIsMissing) {
  Remove("mp_rank_02_model_states.pt");
  EXPECT_THAT(Error(), HasSubstr("3 files mp_rank_*, the last of them mp_rank_03_model_states.pt"));
}

TEST_F(DamagedMegatronTest, AllPartitionsOfADataRankAreMissing) {
  for (int rank = 0; rank < 4; ++rank)
    Remove("bf16_zero_pp_rank_1_mp_rank_0" + std::to_string(rank) + "_optim_states.pt");
  EXPECT_THAT(Error(),
              HasSubstr("optimizer_state_dict.partition_count has 2, and there are files of 1"));
}

TEST_F(DamagedMegatronTest, NamesThatAreNotKnown) {
  Rename("mp_rank_03_model_states.pt", "mp_rank_3x_model_states.pt");
  EXPECT_THAT(Error(),
              HasSubstr("mp_rank_3x_model_states.pt: mp_rank_MM_model_states.pt was expected"));
  Rename("mp_rank_3x_model_states.pt", "mp_rank_03_model_states.pt");
  Rename("bf16_zero_pp_rank_1_mp_rank_02_optim_states.pt",
         "expp_rank_1_mp_rank_02_optim_states.pt");
  EXPECT_THAT(Error(), HasSubstr("expp_rank_1_mp_rank_02_optim_states.pt: [bf16_]zero_pp_rank_D"));
}

TEST_F(DamagedMegatronTest, ALayersFileTooMany) {
  fs::copy(step_ + "layer_01-model_00-model_states.pt",
           step_ + "layer_01-model_02-model_states.pt");
  EXPECT_THAT(Error(), HasSubstr("4 files mp_rank_*, 3 of layer 1, and 2 tensor ranks contradict"));
}

TEST_F(DamagedMegatronTest, AnotherModel) {
  const auto model = [this](void (*change)(ModelConfig&)) { return Model(change); };
  EXPECT_THAT(model([](ModelConfig& m) { m.layers = 1; }),
              HasSubstr("mp_rank_00_model_states.pt.args.num_layers = 2, and model.layers = 1"));
  EXPECT_THAT(model([](ModelConfig& m) { m.hidden = 16; }), HasSubstr("args.hidden_size = 8"));
  EXPECT_THAT(model([](ModelConfig& m) { m.heads = 4; }),
              HasSubstr("args.num_attention_heads = 8"));
  EXPECT_THAT(model([](ModelConfig& m) { m.kv_heads = 2; }),
              HasSubstr("args.num_key_value_heads = 4"));
  EXPECT_THAT(model([](ModelConfig& m) { m.head_dim = 4; }), HasSubstr("args.kv_channels = 2"));
  EXPECT_THAT(model([](ModelConfig& m) { m.ffn = 16; }), HasSubstr("args.ffn_hidden_size = 12"));
  EXPECT_THAT(model([](ModelConfig& m) { m.norm_eps = 1e-6; }),
              HasSubstr("layernorm_epsilon = 1e-05"));
  EXPECT_THAT(model([](ModelConfig& m) { m.vocab = 17; }), HasSubstr("original_vocab_size = 18"));
  EXPECT_THAT(model([](ModelConfig& m) { m.position = "none"; }),
              HasSubstr("use_rotary_position_embeddings = true"));
  EXPECT_THAT(model([](ModelConfig& m) { m.tied_embeddings = true; }), HasSubstr("tied models"));
  EXPECT_THAT(Error(SmallModel(2), SmallTable(1)),
              HasSubstr("the table has 12 tensors, the model 21"));
}

TEST_F(DamagedMegatronTest, ArgumentsThatPerdureDoesNotHave) {
  const std::string name = "mp_rank_00_model_states.pt";
  Exchange(name, "rmsnorm", "mvpnorm");
  EXPECT_THAT(Error(),
              HasSubstr("args.normalization = \"mvpnorm\": Perdure's model has rmsnorm only"));
  Exchange(name, "mvpnorm", "rmsnorm");
  Exchange(name, "checkpoint_version", "checkpoint_varsion");
  EXPECT_THAT(Error(), HasSubstr("has no key checkpoint_version"));
  Exchange(name, "checkpoint_varsion", "checkpoint_version");
  Exchange(name, std::string("G\x40\x08\0\0\0\0\0\0", 9), std::string("G\x3f\xf0\0\0\0\0\0\0", 9));
  EXPECT_THAT(Error(), HasSubstr("checkpoint_version = 1: key and value stand in another order"));
}

TEST_F(DamagedMegatronTest, FilesOfDifferentSteps) {
  Exchange("mp_rank_01_model_states.pt", "Kx", "Ky");  // 120, 121.
  EXPECT_THAT(Error(), HasSubstr("mp_rank_01_model_states.pt: iteration 121"));
}

TEST_F(DamagedMegatronTest, ParametersThatAreNotKnown) {
  for (const std::string rank : {"00", "01"})
    Exchange("bf16_zero_pp_rank_1_mp_rank_" + rank + "_optim_states.pt",
             "post_attention_layernorm.weight", "post_attention_layernorm.factor");
  EXPECT_THAT(Error(), HasSubstr("post_attention_layernorm.factor is none of a Llama of 2 layers"));
}

TEST_F(DamagedMegatronTest, AParameterOnOneTensorRankOnly) {
  for (const std::string data : {"0", "1"})
    Exchange("bf16_zero_pp_rank_" + data + "_mp_rank_00_optim_states.pt", "fragment_address",
             "fragment_addresz");
  EXPECT_THAT(Error(), HasSubstr("a fragment_address was expected"));
}

// A changed float of a norm on one tensor rank: the copies differ.
TEST_F(DamagedMegatronTest, ReplicasThatDiffer) {
  const std::string name = step_ + "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt";
  const auto file = TorchFile::Open(name);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto groups =
      file->root().Get("optimizer_state_dict")->Get("single_partition_of_fp32_groups")->Items();
  const auto tensor = file->Tensor((*groups)[1]);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  std::string bytes = Slurp(name);
  bytes[tensor->offset + 12] = static_cast<char>(bytes[tensor->offset + 12] ^ 1);
  Spill(name, bytes);
  const auto source = Open(path_, table_, SmallModel(2));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT(Message((*source)->Verify()), HasSubstr("differs from its CRC"));
  std::vector<float> floats(3 * 13);
  const AtomState state{
      .atom = table_.TensorAtoms(table_.FindTensor("model.layers.0.input_layernorm.weight")).first,
      .parts = {&floats[0], &floats[13], &floats[26]}};
  const absl::Status read = (*source)->Read({&state, 1});
  EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(read), HasSubstr("param of 2.input_layernorm.weight: element 3 is"));
  EXPECT_THAT(Message(read), HasSubstr("on tensor rank 1; it is replicated"));
}

TEST_F(DamagedMegatronTest, EveryTruncationOfAPartitionIsAnError) {
  const std::string name = step_ + "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt";
  const std::string bytes = Slurp(name);
  for (size_t length = 0; length < bytes.size(); length += 97) {
    Spill(name, bytes.substr(0, length));
    ASSERT_THAT(Error(), HasSubstr("bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt")) << length;
  }
}

class OneFragmentTest : public testing::Test {
 protected:
  // Joins fragments of a source of ten floats: data rank, first, count, begins, ends.
  std::string Join(const std::vector<std::array<int64_t, 5>>& fragments) {
    const auto source = std::make_shared<ZeroSource>(10);
    std::vector<ZeroFragment> list;
    for (const auto& [rank, first, count, begins, ends] : fragments)
      list.push_back({.data_rank = rank,
                      .sources = {source, source, source},
                      .first = first,
                      .count = count,
                      .at_begin = begins != 0,
                      .at_end = ends != 0});
    const auto joined = JoinFragments(list, "w");
    return joined.ok() ? std::to_string((*joined)[0]->size()) : Message(joined.status());
  }
};

TEST_F(OneFragmentTest, PiecesJoinOnlyAtTheEndsOfPartitions) {
  EXPECT_EQ(Join({{0, 3, 4, 0, 0}}), "4");
  EXPECT_EQ(Join({{0, 3, 7, 0, 1}, {1, 0, 10, 1, 1}, {2, 0, 2, 1, 0}}), "19");
  EXPECT_THAT(Join({{0, 3, 6, 0, 0}, {1, 0, 10, 1, 1}}),
              HasSubstr("w: its pieces on data ranks 0 and 1"));
  EXPECT_THAT(Join({{0, 3, 7, 0, 1}, {1, 1, 9, 0, 1}}), HasSubstr("do not join"));
  EXPECT_THAT(Join({{0, 3, 7, 0, 1}, {2, 0, 9, 1, 0}}), HasSubstr("data ranks 0 and 2"));
}

TEST(MegatronNamesTest, DegreesThatDoNotDivide) {
  const AtomTable table = SmallTable(1);
  const auto parameters = MegatronParameters(SmallModel(1), table);
  ASSERT_TRUE(parameters.ok()) << parameters.status();
  EXPECT_EQ(parameters->size(), 10U);
  for (const MegatronParameter& parameter : *parameters) {
    EXPECT_OK(CheckMegatronRanks(parameter, 4));
    const bool heads = parameter.kind == MegatronKind::kKeyValue;
    EXPECT_EQ(CheckMegatronRanks(parameter, 8).ok(),
              !heads && parameter.kind != MegatronKind::kGateUp &&
                  parameter.name != "2.mlp.dense_4h_to_h.weight")
        << parameter.name;
  }
}

}  // namespace
}  // namespace perdure
