// Weights of a directory as atoms: values, kinds of numbers, refusals.
#include <gmock/gmock.h>

#include <bit>
#include <cstring>
#include <filesystem>

#include "ckpt/atom_reader.h"
#include "ckpt/float_bits.h"
#include "ckpt/convert/safetensors_header.h"
#include "runtime/base/status.h"
#include "tests/convert/small_model.h"

namespace perdure {
namespace {

using testing::HasSubstr;

// A directory with one file of tensors whose elements count up, as bits, from the tensor's number.
class SourceTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const TensorSpec& spec : table_.tensors()) {
      const auto rows = static_cast<uint64_t>(spec.rows), cols = static_cast<uint64_t>(spec.cols);
      tensors_.push_back(
          {.name = spec.name,
           .shape = spec.axis == SliceAxis::kNone ? std::vector{cols} : std::vector{rows, cols}});
    }
  }

  SafetensorsTensor& Tensor(const std::string& name) {
    for (SafetensorsTensor& tensor : tensors_)
      if (tensor.name == name) return tensor;
    ADD_FAILURE() << name;
    return tensors_.front();
  }
  void Remove(const std::string& name) {
    std::erase_if(tensors_, [&](const auto& tensor) { return tensor.name == name; });
  }

  // Element i of tensor t is the 16-bit pattern 911 t + i, F32 the float of that bfloat16.
  absl::StatusOr<std::unique_ptr<HuggingFaceSource>> Open() {
    std::string data;
    for (size_t t = 0; t < tensors_.size(); ++t) {
      SafetensorsTensor& tensor = tensors_[t];
      uint64_t bytes = 0;
      EXPECT_TRUE(TensorBytes(tensor.shape, tensor.dtype, &bytes));
      tensor.begin = data.size();
      tensor.end = tensor.begin + bytes;
      data.resize(tensor.end);
      const uint64_t width = DTypeBytes(tensor.dtype);
      for (uint64_t i = 0; i < tensor.elements() && width >= 2 && width <= 4; ++i) {
        const uint32_t bits = Pattern(t, i);
        const uint32_t value = width == 2 ? bits : bits << 16;
        std::memcpy(data.data() + tensor.begin + i * width, &value, width);
      }
    }
    Spill(directory_.path() + "/model.safetensors", PrintSafetensorsHeader(tensors_) + data);
    return HuggingFaceSource::Open(directory_.path(), table_);
  }
  static uint16_t Pattern(size_t tensor, uint64_t element) {
    return static_cast<uint16_t>(911 * tensor + element);
  }

  void ExpectValues(SafetensorsDType dtype) {
    for (SafetensorsTensor& tensor : tensors_) tensor.dtype = dtype;
    const auto source = Open();
    ASSERT_OK(source.status());
    int64_t seen = 0;
    const IndexRange all{0, static_cast<int64_t>(table_.atoms().size())};
    ASSERT_OK(ForEachAtom(**source, table_, all, [&](const AtomState& state, int64_t count) {
      const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
      const auto t = static_cast<size_t>(atom.tensor);
      for (int64_t i = 0; i < count; ++i) {
        const AtomTable::Place place = table_.Locate(atom, i);
        const uint16_t bits =
            Pattern(t, static_cast<uint64_t>(place.row * table_.tensors()[t].cols + place.col));
        const float expected =
            dtype == SafetensorsDType::kF16 ? FloatOfF16(bits) : FloatOfBF16(bits);
        ASSERT_EQ(std::bit_cast<uint32_t>(state.parts[0][i]), std::bit_cast<uint32_t>(expected))
            << table_.tensors()[t].name << ", row " << place.row << ", column " << place.col;
        ASSERT_EQ(std::bit_cast<uint32_t>(state.parts[1][i]), 0U);
        ASSERT_EQ(std::bit_cast<uint32_t>(state.parts[2][i]), 0U);
      }
      seen += count;
    }));
    EXPECT_EQ(seen, table_.parameters());
  }

  void ExpectRefused(const std::string& words) {
    const absl::Status status = Open().status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status << " for " << words;
    EXPECT_THAT(Message(status), HasSubstr(directory_.path()));
    EXPECT_THAT(Message(status), HasSubstr(words));
  }

  TestDirectory directory_;
  AtomTable table_ = SmallTable(4, 77);
  std::vector<SafetensorsTensor> tensors_;
};

TEST_F(SourceTest, EveryElementComesToItsPlace) {
  ExpectValues(SafetensorsDType::kF32);
  ExpectValues(SafetensorsDType::kBF16);
  ExpectValues(SafetensorsDType::kF16);
}

TEST_F(SourceTest, ObsoleteTablesAreIgnored) {
  tensors_.push_back({.name = "model.layers.1.self_attn.rotary_emb.inv_freq", .shape = {4}});
  EXPECT_OK(Open().status());
}

TEST_F(SourceTest, MissingTensorsAreNamed) {
  Remove("model.layers.1.mlp.up_proj.weight");
  ExpectRefused("lacks 1 of the model's tensors: model.layers.1.mlp.up_proj.weight: another");
  for (const char* name :
       {"norm", "layers.0.input_layernorm", "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"})
    Remove(std::string("model.") + name + ".weight");
  ExpectRefused("lacks 5 of");
  ExpectRefused("and 1 more");
}

TEST_F(SourceTest, UnknownTensorsAreNamed) {
  tensors_.push_back({.name = "model.layers.2.input_layernorm.weight", .shape = {24}});
  ExpectRefused("has 1 tensors that the model has not: model.layers.2.input_layernorm.weight");
  Remove("lm_head.weight");
  ExpectRefused("lacks 1 of the model's tensors: lm_head.weight; it has besides: model.layers.2");
}

TEST_F(SourceTest, TiedEmbeddingsAreRefused) {
  Remove("lm_head.weight");
  ExpectRefused("its embeddings are tied (tie_word_embeddings = true), which Perdure does not");
}

TEST_F(SourceTest, ShapesAreCompared) {
  Tensor("model.layers.0.self_attn.k_proj.weight").shape = {16, 24};
  ExpectRefused("self_attn.k_proj.weight has shape [16, 24]; the model's is [32, 24]");
}

TEST_F(SourceTest, TransposedAndFlatShapesAreRefused) {
  Tensor("model.layers.0.self_attn.k_proj.weight").shape = {24, 32};
  ExpectRefused("has shape [24, 32]; the model's is [32, 24]");
  Tensor("model.layers.0.self_attn.k_proj.weight").shape = {24 * 32};
  ExpectRefused("has shape [768]");
}

TEST_F(SourceTest, VectorsHaveOneDimension) {
  Tensor("model.norm.weight").shape = {1, 24};
  ExpectRefused("model.norm.weight has shape [1, 24]; the model's is [24]");
}

TEST_F(SourceTest, PaddedVocabulariesAreRefusedWithBothNumbers) {
  Tensor("model.embed_tokens.weight").shape = {64, 24};
  ExpectRefused("model.embed_tokens.weight has 64 rows, more than model.vocab = 37");
  Tensor("model.embed_tokens.weight").shape = {36, 24};
  ExpectRefused("has shape [36, 24]; the model's is [37, 24]");
}

TEST_F(SourceTest, OtherKindsOfNumbersAreRefused) {
  Tensor("model.norm.weight").dtype = SafetensorsDType::kF64;
  ExpectRefused("model.norm.weight is of F64");
}

TEST_F(SourceTest, AFileThatShrinksIsDataLoss) {
  const auto source = Open();
  ASSERT_OK(source.status());
  const std::string path = directory_.path() + "/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  const absl::Status status =
      ForEachAtom(**source, table_, {0, static_cast<int64_t>(table_.atoms().size())},
                  [](const AtomState&, int64_t) {});
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

}  // namespace
}  // namespace perdure
