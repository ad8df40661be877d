// Weights of a model's directory as the states of atoms.
#include <algorithm>
#include <set>
#include <utility>

#include "ckpt/convert/huggingface.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kNamesInMessage = 4;

std::string NameSome(const std::vector<std::string>& names) {
  const std::vector<std::string> some(names.begin(),
                                      names.begin() + std::min(names.size(), kNamesInMessage));
  const size_t more = names.size() - some.size();
  return fmt::format("{}{}", fmt::join(some, ", "),
                     more == 0 ? "" : fmt::format(" and {} more", more));
}

// A table of frequencies that older writers saved; it follows from rope_theta.
bool IsObsolete(std::string_view name) { return name.ends_with(".self_attn.rotary_emb.inv_freq"); }

std::vector<uint64_t> ShapeOf(const TensorSpec& spec) {
  const uint64_t rows = static_cast<uint64_t>(spec.rows), cols = static_cast<uint64_t>(spec.cols);
  // Vectors are the tensors that no axis slices.
  if (spec.rows == 1 && spec.axis == SliceAxis::kNone) return {cols};
  return {rows, cols};
}

absl::Status CheckNames(const std::string& directory, const SafetensorsModel& model,
                        const AtomTable& table) {
  std::vector<std::string> missing, extra;
  std::set<std::string_view> known;
  for (const TensorSpec& spec : table.tensors()) {
    known.insert(spec.name);
    if (!model.tensors().contains(spec.name)) missing.push_back(spec.name);
  }
  for (const auto& [name, place] : model.tensors())
    if (!known.contains(name) && !IsObsolete(name)) extra.push_back(name);
  if (missing.size() == 1 && missing[0] == "lm_head.weight" && extra.empty())
    return InvalidArgument(
        "{} has no lm_head.weight: its embeddings are tied (tie_word_embeddings = true), which "
        "Perdure does not train yet; untie the model first",
        directory);
  if (!missing.empty())
    return InvalidArgument("{} lacks {} of the model's tensors: {}{}: another [model]?", directory,
                           missing.size(), NameSome(missing),
                           extra.empty() ? "" : "; it has besides: " + NameSome(extra));
  if (!extra.empty())
    return InvalidArgument("{} has {} tensors that the model has not: {}: another [model]?",
                           directory, extra.size(), NameSome(extra));
  return absl::OkStatus();
}

absl::Status CheckTensor(const SafetensorsModel::Place& place, const TensorSpec& spec) {
  const SafetensorsTensor& tensor = *place.tensor;
  const std::vector<uint64_t> shape = ShapeOf(spec);
  const bool vocabulary = spec.name == "model.embed_tokens.weight" || spec.name == "lm_head.weight";
  if (vocabulary && tensor.shape.size() == 2 && tensor.shape[0] > shape[0])
    return InvalidArgument(
        "{}: {} has {} rows, more than model.vocab = {}: set vocab to {} to keep the rest, or cut "
        "the rows that are padding first",
        place.file->path(), spec.name, tensor.shape[0], shape[0], tensor.shape[0]);
  if (tensor.shape != shape)
    return InvalidArgument("{}: {} has shape {}; the model's is {}: another [model]?",
                           place.file->path(), spec.name, ShapeName(tensor.shape),
                           ShapeName(shape));
  return place.file->Read(tensor, 0, {});  // Of a dtype that can be read.
}

}  // namespace

HuggingFaceSource::HuggingFaceSource(SafetensorsModel model, const AtomTable& table)
    : model_(std::move(model)), table_(table) {}

absl::StatusOr<std::unique_ptr<HuggingFaceSource>> HuggingFaceSource::Open(
    const std::string& directory, const AtomTable& table) {
  ASSIGN_OR_RETURN(SafetensorsModel model, SafetensorsModel::Open(directory));
  RETURN_IF_ERROR(CheckNames(directory, model, table));
  std::unique_ptr<HuggingFaceSource> source(new HuggingFaceSource(std::move(model), table));
  for (const TensorSpec& spec : table.tensors()) {
    const SafetensorsModel::Place& place = source->model_.tensors().at(spec.name);
    RETURN_IF_ERROR(CheckTensor(place, spec));
    source->places_.push_back(place);
  }
  return source;
}

absl::Status HuggingFaceSource::Read(std::span<const AtomState> wanted) {
  for (const AtomState& state : wanted) {
    PERDURE_CHECK(state.atom >= 0 && state.atom < static_cast<int64_t>(table_.atoms().size()));
    const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
    RETURN_IF_ERROR(ReadParameters(atom, {state.parts[0], static_cast<size_t>(atom.count)}));
    for (size_t part = 1; part < state.parts.size(); ++part)
      std::fill_n(state.parts[part], atom.count, 0.0F);
  }
  return absl::OkStatus();
}

// The atom row by row of its slice; where the slice has the tensor's whole rows, that is one piece.
absl::Status HuggingFaceSource::ReadParameters(const Atom& atom, std::span<float> out) const {
  const TensorSpec& spec = table_.tensors()[static_cast<size_t>(atom.tensor)];
  const SafetensorsModel::Place& place = places_[static_cast<size_t>(atom.tensor)];
  const int64_t slice_cols = spec.SliceCols(atom.slice);
  for (int64_t done = 0; done < atom.count;) {
    const AtomTable::Place at = table_.Locate(atom, done);
    int64_t count = atom.count - done;
    if (slice_cols != spec.cols)
      count = std::min(count, slice_cols - (atom.begin + done) % slice_cols);
    RETURN_IF_ERROR(
        place.file->Read(*place.tensor, static_cast<uint64_t>(at.row * spec.cols + at.col),
                         out.subspan(static_cast<size_t>(done), static_cast<size_t>(count))));
    done += count;
  }
  return absl::OkStatus();
}

}  // namespace perdure
