#include "ckpt/convert/megatron_names.h"

#include <algorithm>
#include <utility>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

class ParameterList {
 public:
  explicit ParameterList(const AtomTable& table) : table_(table) {}

  void Add(std::string name, MegatronKind kind, const std::vector<std::string>& tensors,
           int64_t head_dim = 0) {
    MegatronParameter parameter{.name = std::move(name), .kind = kind, .head_dim = head_dim};
    for (const std::string& tensor : tensors) {
      const int64_t index = table_.FindTensor(tensor);
      PERDURE_CHECK(index >= 0);
      const TensorSpec& spec = table_.tensors()[static_cast<size_t>(index)];
      parameter.tensors.push_back(index);
      parameter.rows += spec.rows;
      parameter.cols = spec.cols;
    }
    parameters_.push_back(std::move(parameter));
  }
  std::vector<MegatronParameter> Take() { return std::move(parameters_); }

 private:
  const AtomTable& table_;
  std::vector<MegatronParameter> parameters_;
};

absl::Status CheckTable(const ModelConfig& model, const AtomTable& table) {
  const std::vector<TensorSpec> expected = ModelTensors(model, 1);
  if (expected.size() != table.tensors().size())
    return InvalidArgument("the table has {} tensors, the model {}: another [model]?",
                           table.tensors().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const TensorSpec& have = table.tensors()[i];
    if (have.name != expected[i].name || have.rows != expected[i].rows ||
        have.cols != expected[i].cols)
      return InvalidArgument("tensor {} is {} ({} x {}), the model has {} ({} x {})", i, have.name,
                             have.rows, have.cols, expected[i].name, expected[i].rows,
                             expected[i].cols);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<MegatronParameter>> MegatronParameters(const ModelConfig& config,
                                                                  const AtomTable& table) {
  const ModelConfig model = ResolveModel(config);
  if (model.tied_embeddings)
    return InvalidArgument("model.tied_embeddings = true: tied models are not imported");
  RETURN_IF_ERROR(CheckTable(model, table));
  ParameterList list(table);
  list.Add("1.word_embeddings.weight", MegatronKind::kVocabulary, {"model.embed_tokens.weight"});
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const auto name = [layer](const char* what) {
      return fmt::format("{}.{}.weight", layer + 2, what);
    };
    const auto tensor = [layer](const char* what) {
      return fmt::format("model.layers.{}.{}.weight", layer, what);
    };
    list.Add(name("input_layernorm"), MegatronKind::kReplicated, {tensor("input_layernorm")});
    list.Add(name("self_attention.query"), MegatronKind::kRows, {tensor("self_attn.q_proj")});
    list.Add(name("self_attention.key_value"), MegatronKind::kKeyValue,
             {tensor("self_attn.k_proj"), tensor("self_attn.v_proj")}, model.head_dim);
    list.Add(name("self_attention.dense"), MegatronKind::kCols, {tensor("self_attn.o_proj")});
    list.Add(name("post_attention_layernorm"), MegatronKind::kReplicated,
             {tensor("post_attention_layernorm")});
    list.Add(name("mlp.dense_h_to_4h"), MegatronKind::kGateUp,
             {tensor("mlp.gate_proj"), tensor("mlp.up_proj")});
    list.Add(name("mlp.dense_4h_to_h"), MegatronKind::kCols, {tensor("mlp.down_proj")});
  }
  list.Add(fmt::format("{}.weight", model.layers + 2), MegatronKind::kReplicated,
           {"model.norm.weight"});
  list.Add(fmt::format("{}.lm_head.weight", model.layers + 3), MegatronKind::kVocabulary,
           {"lm_head.weight"});
  return list.Take();
}

absl::Status CheckMegatronRanks(const MegatronParameter& parameter, int64_t ranks) {
  int64_t units = ranks;  // What must divide evenly.
  if (parameter.kind == MegatronKind::kRows) units = parameter.rows;
  if (parameter.kind == MegatronKind::kCols) units = parameter.cols;
  if (parameter.kind == MegatronKind::kGateUp) units = parameter.rows / 2;
  if (parameter.kind == MegatronKind::kKeyValue) units = parameter.rows / 2 / parameter.head_dim;
  if (units % ranks == 0) return absl::OkStatus();
  return InvalidArgument("{}: {} {} cannot be cut over {} tensor ranks", parameter.name, units,
                         parameter.kind == MegatronKind::kKeyValue ? "heads" : "rows or columns",
                         ranks);
}

std::vector<MegatronPiece> MegatronPieces(const MegatronParameter& parameter, int64_t rank,
                                          int64_t ranks) {
  const int64_t rows = parameter.rows, cols = parameter.cols;
  const int64_t first_tensor = parameter.tensors[0];
  switch (parameter.kind) {
    case MegatronKind::kReplicated:
      return {{.tensor = first_tensor, .rows = rows, .cols = cols, .stride = cols}};
    case MegatronKind::kRows:
      return {{.tensor = first_tensor,
               .row = rank * (rows / ranks),
               .rows = rows / ranks,
               .cols = cols,
               .stride = cols}};
    case MegatronKind::kCols:
      return {{.tensor = first_tensor,
               .col = rank * (cols / ranks),
               .rows = rows,
               .cols = cols / ranks,
               .stride = cols / ranks}};
    case MegatronKind::kVocabulary:
      break;
    case MegatronKind::kKeyValue:
    case MegatronKind::kGateUp: {
      // Chunks of both tensors in turn: one head's rows, or a rank's whole share.
      const int64_t share = rows / 2 / ranks;
      const int64_t chunk = parameter.kind == MegatronKind::kGateUp ? share : parameter.head_dim;
      std::vector<MegatronPiece> pieces;
      for (int64_t row = 0; row < share; row += chunk)
        for (int64_t half = 0; half < 2; ++half)
          pieces.push_back({.tensor = parameter.tensors[static_cast<size_t>(half)],
                            .row = rank * share + row,
                            .rows = chunk,
                            .cols = cols,
                            .first = (2 * row + half * chunk) * cols,
                            .stride = cols});
      return pieces;
    }
  }
  PERDURE_CHECK(false);
}

namespace {

absl::StatusOr<std::vector<MegatronPiece>> VocabularyPieces(const MegatronParameter& parameter,
                                                            int64_t elements, int64_t rank,
                                                            int64_t ranks,
                                                            const std::string& where) {
  const int64_t local = elements / parameter.cols;
  if (elements % parameter.cols != 0 || local * ranks < parameter.rows)
    return DataLoss(
        "{}: {} elements on each of {} tensor ranks; a vocabulary of {} x {} needs more", where,
        elements, ranks, parameter.rows, parameter.cols);
  const int64_t begin = std::min(rank * local, parameter.rows);
  const int64_t end = std::min(begin + local, parameter.rows);
  if (begin == end) return std::vector<MegatronPiece>{};  // Nothing but padding.
  return std::vector<MegatronPiece>{{.tensor = parameter.tensors[0],
                                     .row = begin,
                                     .rows = end - begin,
                                     .cols = parameter.cols,
                                     .stride = parameter.cols}};
}

}  // namespace

absl::Status PlaceMegatron(const MegatronParameter& parameter, const AtomTable& table, int part,
                           std::span<const std::shared_ptr<FloatSource>> by_rank,
                           const std::string& where, AssembledState& state) {
  const auto ranks = static_cast<int64_t>(by_rank.size());
  RETURN_IF_ERROR(CheckMegatronRanks(parameter, ranks));
  const bool replicated = parameter.kind == MegatronKind::kReplicated;
  const bool vocabulary = parameter.kind == MegatronKind::kVocabulary;
  const int64_t elements = parameter.rows * parameter.cols / (replicated ? 1 : ranks);
  std::vector<std::vector<StateBlock>> blocks(parameter.tensors.size());
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const std::shared_ptr<FloatSource>& source = by_rank[static_cast<size_t>(rank)];
    const int64_t expected = vocabulary ? by_rank[0]->size() : elements;
    if (source->size() != expected)
      return DataLoss("{}: {} elements on tensor rank {}; {} were expected: another [model]?",
                      where, source->size(), rank, expected);
    if (replicated && rank > 0) continue;
    std::vector<MegatronPiece> pieces;
    if (vocabulary) {
      ASSIGN_OR_RETURN(pieces, VocabularyPieces(parameter, source->size(), rank, ranks, where));
    } else {
      pieces = MegatronPieces(parameter, rank, ranks);
    }
    for (const MegatronPiece& piece : pieces)
      blocks[piece.tensor == parameter.tensors[0] ? 0 : 1].push_back({.row = piece.row,
                                                                      .col = piece.col,
                                                                      .rows = piece.rows,
                                                                      .cols = piece.cols,
                                                                      .source = source,
                                                                      .first = piece.first,
                                                                      .stride = piece.stride});
  }
  if (replicated)
    blocks[0][0].source = std::make_shared<ReplicatedSource>(
        std::vector<std::shared_ptr<FloatSource>>(by_rank.begin(), by_rank.end()), where);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t tensor = parameter.tensors[i];
    const std::string& name = table.tensors()[static_cast<size_t>(tensor)].name;
    RETURN_IF_ERROR(
        state.Set(tensor, part, std::move(blocks[i]), fmt::format("{} ({})", where, name)));
  }
  return absl::OkStatus();
}

}  // namespace perdure
