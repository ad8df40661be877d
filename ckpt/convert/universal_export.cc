#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/megatron_names.h"
#include "ckpt/convert/torch_writer.h"
#include "ckpt/convert/universal.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, kStatePartCount> kFiles = {"fp32.pt", "exp_avg.pt",
                                                             "exp_avg_sq.pt"};

TorchValue Str(std::string text) { return {std::move(text)}; }
TorchValue Int(int64_t value) { return {value}; }
TorchValue Real(double value) { return {value}; }

TorchValue ParameterValue(const MegatronParameter& parameter) {
  const bool replicated = parameter.kind == MegatronKind::kReplicated;
  TorchFloats floats;
  if (!replicated) floats.shape.push_back(parameter.rows);
  floats.shape.push_back(parameter.cols);
  TorchDict dict;
  if (!replicated)
    dict.emplace_back(Str("cat_dim"), Int(parameter.kind == MegatronKind::kCols ? 1 : 0));
  if (parameter.kind == MegatronKind::kGateUp) dict.emplace_back(Str("param_n_sub_params"), Int(2));
  if (parameter.kind == MegatronKind::kVocabulary)
    dict.emplace_back(Str("vocab_tensor"), TorchValue{true});
  dict.emplace_back(Str("param"), TorchValue{std::move(floats)});
  return {std::move(dict)};
}

// The piece that holds a row of a tensor. Pieces of one tensor cover its rows in order.
const MegatronPiece& PieceOf(std::span<const MegatronPiece> pieces, int64_t tensor, int64_t row) {
  for (const MegatronPiece& piece : pieces)
    if (piece.tensor == tensor && row < piece.row + piece.rows) return piece;
  PERDURE_CHECK(false);
}

std::vector<MegatronPiece> WholePieces(const MegatronParameter& parameter) {
  if (parameter.kind != MegatronKind::kVocabulary) return MegatronPieces(parameter, 0, 1);
  return {{.tensor = parameter.tensors[0],
           .rows = parameter.rows,
           .cols = parameter.cols,
           .stride = parameter.cols}};
}

class UniversalExporter {
 public:
  UniversalExporter(StateSource& source, const AtomTable& table, std::string directory,
                    const Progress& tell)
      : source_(source), table_(table), directory_(std::move(directory)), tell_(tell) {}

  absl::Status WriteParameter(const MegatronParameter& parameter, int64_t step);
  absl::Status WriteOptimizer(const UniversalExport& about);
  absl::Status WriteModel(const ModelConfig& model, const UniversalExport& about);

 private:
  std::string PathOf(const std::string& name) const {
    return (fs::path(directory_) / name).string();
  }
  absl::Status WriteAtom(std::span<const MegatronPiece> pieces, const AtomState& state,
                         std::span<TorchWriter> writers);
  absl::Status WriteStep(const std::string& path, int64_t step);

  StateSource& source_;
  const AtomTable& table_;
  std::string directory_;
  const Progress& tell_;
  uint64_t done_ = 0;
};

absl::Status UniversalExporter::WriteAtom(std::span<const MegatronPiece> pieces,
                                          const AtomState& state, std::span<TorchWriter> writers) {
  const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
  const TensorSpec& tensor = table_.tensors()[static_cast<size_t>(atom.tensor)];
  const int64_t slice_cols = tensor.SliceCols(atom.slice);
  for (int64_t done = 0; done < atom.count;) {
    const auto [row, col] = table_.Locate(atom, done);
    const MegatronPiece& piece = PieceOf(pieces, atom.tensor, row);
    int64_t count = slice_cols - (atom.begin + done) % slice_cols;
    if (slice_cols == tensor.cols && piece.stride == tensor.cols)
      count = (piece.row + piece.rows - row) * tensor.cols - col;
    count = std::min(count, atom.count - done);
    const int64_t first = piece.first + (row - piece.row) * piece.stride + col;
    for (size_t part = 0; part < writers.size(); ++part)
      RETURN_IF_ERROR(
          writers[part].Write(0, first, {state.parts[part] + done, static_cast<size_t>(count)}));
    done += count;
  }
  return absl::OkStatus();
}

absl::Status UniversalExporter::WriteStep(const std::string& path, int64_t step) {
  ASSIGN_OR_RETURN(File file, CreateExportFile(path));
  ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(file, 0, TorchValue{TorchFloats{}}));
  const float value = static_cast<float>(step);
  RETURN_IF_ERROR(writer.Write(0, 0, {&value, 1}));
  RETURN_IF_ERROR(writer.Finish().status());
  return file.Sync();
}

absl::Status UniversalExporter::WriteParameter(const MegatronParameter& parameter, int64_t step) {
  const std::string folder = PathOf("zero/" + parameter.name);
  RETURN_IF_ERROR(MakeDirectories(folder));
  std::vector<File> files;
  for (const char* name : kFiles) {
    ASSIGN_OR_RETURN(File file, CreateExportFile((fs::path(folder) / name).string()));
    files.push_back(std::move(file));
  }
  std::vector<TorchWriter> writers;
  for (File& file : files) {
    ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(file, 0, ParameterValue(parameter)));
    writers.push_back(std::move(writer));
  }
  const std::vector<MegatronPiece> pieces = WholePieces(parameter);
  absl::Status status;
  const auto write = [&](const AtomState& state, int64_t count) {
    if (status.ok()) status = WriteAtom(pieces, state, writers);
    done_ += static_cast<uint64_t>(count) * sizeof(float) * kStatePartCount;
  };
  for (const int64_t tensor : parameter.tensors) {
    RETURN_IF_ERROR(ForEachAtom(source_, table_, table_.TensorAtoms(tensor), write));
    RETURN_IF_ERROR(status);
  }
  for (size_t part = 0; part < files.size(); ++part) {
    RETURN_IF_ERROR(writers[part].Finish().status());
    RETURN_IF_ERROR(files[part].Sync());
    RETURN_IF_ERROR(files[part].Close());
  }
  RETURN_IF_ERROR(WriteStep((fs::path(folder) / "step.pt").string(), step));
  if (tell_)
    tell_(done_, static_cast<uint64_t>(table_.parameters()) * sizeof(float) * kStatePartCount);
  return SyncDirectory(folder);
}

absl::Status UniversalExporter::WriteOptimizer(const UniversalExport& about) {
  TorchList groups;
  for (const bool decays : {true, false})
    groups.push_back({TorchDict{
        {Str("lr"), Real(about.rate)},
        {Str("betas"), {TorchList{Real(about.beta1), Real(about.beta2)}}},
        {Str("eps"), Real(about.eps)},
        {Str("weight_decay"), Real(decays ? about.weight_decay : 0)},
        {Str("wd_mult"), Real(decays ? 1 : 0)},
        {Str("lr_mult"), Real(1)},
        {Str("step"), Int(about.step)},
        {Str("params"), {TorchList{Int(decays ? 0 : 1)}}},
    }});
  const TorchDict root = {
      {Str("ds_version"), Str("0.15.0")},  // Without one, DeepSpeed's ZeRO optimizers refuse.
      {Str("clip_grad"), Real(about.clip_grad)},
      {Str("group_paddings"), {TorchList{Int(0), Int(0)}}},
      {Str("partition_count"), {TorchList{Int(1), Int(1)}}},
      {Str("param_groups"), {std::move(groups)}},
  };
  RETURN_IF_ERROR(WriteTorchFile(PathOf("zero/optimizer_state.pt"), {root}));
  return SyncDirectory(PathOf("zero"));
}

absl::Status UniversalExporter::WriteModel(const ModelConfig& model, const UniversalExport& about) {
  const auto patterns = [](const std::vector<const char*>& names) {
    TorchList list;
    for (const char* name : names) list.push_back(Str(name));
    return TorchValue{std::move(list)};
  };
  const TorchDict info = {
      {Str("universal_checkpoint_version"), Real(0.2)},
      {Str("vocabulary_parameter_patterns"),
       patterns({R"(\d+\.word_embeddings\.weight)", R"(\d+\.lm_head\.weight)"})},
      {Str("tp_replicated_parameter_patterns"),
       patterns({R"(\d+\.input_layernorm\.weight)", R"(\d+\.post_attention_layernorm\.weight)",
                 R"(\d+\.weight)"})},
      {Str("parameter_with_row_parallelism_patterns"),
       patterns({R"(\d+\.mlp\.dense_4h_to_h\.weight)", R"(\d+\.self_attention\.dense\.weight)"})},
      {Str("parameter_with_2_sub_params_cat_dim_0"),
       patterns({R"(\d+\.mlp\.dense_h_to_4h\.weight)"})},
      {Str("original_vocab_size"), Int(model.vocab)},
  };
  const TorchDict root = {
      {Str("iteration"), Int(about.step)},    {Str("global_steps"), Int(about.step)},
      {Str("tokens"), Int(about.tokens)},     {Str("consumed_train_samples"), Int(about.samples)},
      {Str("checkpoint_version"), Real(3.0)}, {Str("universal_checkpoint_info"), {info}},
  };
  return WriteTorchFile(PathOf("mp_rank_00_model_states.pt"), {root});
}

}  // namespace

absl::Status ExportUniversal(StateSource& source, const ModelConfig& model, const AtomTable& table,
                             const UniversalExport& about, const std::string& parent,
                             const std::string& name, const Progress& tell) {
  if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos)
    return InvalidArgument("\"{}\" is no name for a directory; global_step{} would do", name,
                           about.step);
  ASSIGN_OR_RETURN(const std::vector<MegatronParameter> parameters,
                   MegatronParameters(model, table));
  const std::string directory = (fs::path(parent) / name).string();
  RETURN_IF_ERROR(MakeExportDirectory(directory));
  UniversalExporter exporter(source, table, directory, tell);
  for (const MegatronParameter& parameter : parameters)
    RETURN_IF_ERROR(exporter.WriteParameter(parameter, about.step));
  RETURN_IF_ERROR(exporter.WriteOptimizer(about));
  RETURN_IF_ERROR(exporter.WriteModel(model, about));
  RETURN_IF_ERROR(SyncDirectory(directory));
  return ReplaceFile((fs::path(parent) / "latest_universal").string(), name);
}

}  // namespace perdure
