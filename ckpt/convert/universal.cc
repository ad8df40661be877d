#include "ckpt/convert/universal.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "ckpt/convert/megatron_deepspeed.h"
#include "ckpt/convert/megatron_names.h"
#include "ckpt/convert/megatron_run.h"
#include "ckpt/convert/torch_file.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, kStatePartCount> kFiles = {"fp32.pt", "exp_avg.pt",
                                                             "exp_avg_sq.pt"};

using Sources = std::vector<std::shared_ptr<FloatSource>>;

// A whole parameter, cut into what each tensor rank had.
Sources CutRanks(const std::shared_ptr<FloatSource>& whole, int64_t ranks) {
  Sources sources;
  const int64_t share = whole->size() / ranks;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    auto piece = std::make_shared<ChainSource>();
    piece->Add(whole, rank * share, share);
    sources.push_back(std::move(piece));
  }
  return sources;
}

}  // namespace

class UniversalOpener {
 public:
  UniversalOpener(std::string directory, const ModelConfig& model, const AtomTable& table)
      : directory_(std::move(directory)), model_(model), table_(table) {}

  absl::StatusOr<std::unique_ptr<UniversalSource>> Open();

 private:
  struct Part {
    TorchTensor tensor;
    int64_t cat_dim = -1;         // -1: the file does not say.
    bool two_parameters = false;  // [gate; up], each whole.
    bool vocabulary = false;      // Padding was cut.
  };
  std::string PathOf(const std::string& name) const {
    return (fs::path(directory_) / name).string();
  }
  absl::Status CheckNames(const std::vector<MegatronParameter>& parameters) const;
  absl::StatusOr<Part> ReadPart(const std::string& path) const;
  // How many tensor ranks' pieces stand one behind the other in the file: 1 where it is whole.
  absl::StatusOr<int64_t> RanksInside(const MegatronParameter& parameter, const Part& part,
                                      const std::string& path) const;
  absl::Status Place(const MegatronParameter& parameter);
  absl::Status AgreeOnStep(const TorchFile& file, const PickleView& value);
  absl::Status ReadStep(const std::string& parameter);
  absl::Status ReadOptimizer();

  std::string directory_;
  const ModelConfig& model_;
  const AtomTable& table_;
  std::unique_ptr<UniversalSource> source_;
  MegatronRun run_;
  int64_t step_ = -1;
};

absl::Status UniversalOpener::CheckNames(const std::vector<MegatronParameter>& parameters) const {
  std::set<std::string> expected = {"optimizer_state.pt"};
  for (const MegatronParameter& parameter : parameters) expected.insert(parameter.name);
  std::error_code error;
  const std::string zero = PathOf("zero");
  for (fs::directory_iterator it(zero, error), end; !error && it != end; it.increment(error))
    if (!expected.contains(it->path().filename().string()))
      return InvalidArgument(
          "{}: {} is none of a Llama of {} layers: another [model], or a fused or tied form that "
          "is "
          "not imported",
          zero, it->path().filename().string(), model_.layers);
  if (error)
    return NotFound("{}: {}; name the directory of a universal checkpoint", zero, error.message());
  return absl::OkStatus();
}

absl::StatusOr<UniversalOpener::Part> UniversalOpener::ReadPart(const std::string& path) const {
  ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
  const PickleView root = file.root();
  ASSIGN_OR_RETURN(const std::vector<PickleView::Pair> pairs, root.Pairs());
  std::optional<PickleView> found;
  Part part;
  for (const auto& [key, value] : pairs) {
    ASSIGN_OR_RETURN(const std::string name, key.String());
    if (name == "param") {
      found = value;
    } else if (name == "cat_dim") {
      ASSIGN_OR_RETURN(part.cat_dim, value.Int());
    } else if (name == "vocab_tensor") {
      ASSIGN_OR_RETURN(part.vocabulary, value.Bool());
    } else if (name == "param_n_sub_params") {
      ASSIGN_OR_RETURN(const int64_t count, value.Int());
      if (count != 2) return value.Unexpected("2 parameters in one are read");
      part.two_parameters = true;
    } else {
      return value.Unexpected("this key is not read: a form of parameter that is not imported");
    }
  }
  if (!found.has_value()) return DataLoss("{} has no key param", root.where());
  ASSIGN_OR_RETURN(part.tensor, file.Tensor(*found));
  if (part.tensor.type != TorchType::kFloat32)
    return InvalidArgument("{} is of {}: float32 is read", found->where(),
                           TorchTypeName(part.tensor.type));
  return part;
}

absl::StatusOr<int64_t> UniversalOpener::RanksInside(const MegatronParameter& parameter,
                                                     const Part& part,
                                                     const std::string& path) const {
  const std::vector<int64_t>& shape = part.tensor.shape;
  const auto is = [&shape](int64_t rows, int64_t cols) {
    return shape == std::vector<int64_t>{rows, cols};
  };
  const int64_t rows = parameter.rows, cols = parameter.cols;
  int64_t ranks = 0;  // The shape is wrong.
  switch (parameter.kind) {
    case MegatronKind::kReplicated:
      if (shape == std::vector<int64_t>{cols}) ranks = 1;
      break;
    case MegatronKind::kRows:
    case MegatronKind::kKeyValue:
      if (is(rows, cols)) ranks = 1;
      break;
    case MegatronKind::kVocabulary:
      if (shape.size() == 2 && shape[1] == cols &&
          (part.vocabulary ? shape[0] == rows : shape[0] >= rows))
        ranks = 1;
      break;
    case MegatronKind::kCols:
      if (is(rows, cols)) {
        ranks = 1;
      } else if (shape.size() == 2 && part.cat_dim == 0 && shape[1] > 0 && cols % shape[1] == 0 &&
                 shape[0] == cols / shape[1] * rows) {
        // Megatron-DeepSpeed's list of row-parallel parameters had a misspelt pattern for a while;
        // its pieces are then joined below each other and are still all there.
        ranks = cols / shape[1];
      }
      break;
    case MegatronKind::kGateUp:
      if (!is(rows, cols)) break;
      ranks = part.two_parameters ? 1 : run_.tensor_ranks;
      if (ranks <= 0)
        return DataLoss(
            "{}: neither param_n_sub_params nor args.tensor_model_parallel_size say how gate and "
            "up "
            "stand in it",
            path);
      break;
  }
  if (ranks > 0) return ranks;
  return DataLoss("{}: shape [{}]; {} x {} was expected: another [model]?", path,
                  fmt::join(shape, ", "), rows, cols);
}

absl::Status UniversalOpener::Place(const MegatronParameter& parameter) {
  for (int part = 0; part < kStatePartCount; ++part) {
    const std::string path =
        PathOf("zero/" + parameter.name + "/" + kFiles[static_cast<size_t>(part)]);
    ASSIGN_OR_RETURN(Part content, ReadPart(path));
    ASSIGN_OR_RETURN(const int64_t ranks, RanksInside(parameter, content, path));
    source_->paths_.push_back(path);
    const auto whole =
        std::make_shared<TensorSource>(source_->files_, path, std::move(content.tensor));
    RETURN_IF_ERROR(CheckMegatronRanks(parameter, ranks));
    RETURN_IF_ERROR(
        PlaceMegatron(parameter, table_, part, CutRanks(whole, ranks), path, source_->state_));
  }
  return ReadStep(parameter.name);
}

absl::Status UniversalOpener::AgreeOnStep(const TorchFile& file, const PickleView& value) {
  ASSIGN_OR_RETURN(const int64_t step, file.Integer(value));
  if (step_ < 0 && step >= 0) step_ = step;
  if (step == step_) return absl::OkStatus();
  return DataLoss("{} = {} where others have {}: files of different steps?", value.where(), step,
                  step_);
}

absl::Status UniversalOpener::ReadStep(const std::string& parameter) {
  const std::string path = PathOf("zero/" + parameter + "/step.pt");
  std::error_code error;
  if (!fs::exists(path, error)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
  return AgreeOnStep(file, file.root());
}

absl::Status UniversalOpener::ReadOptimizer() {
  const std::string path = PathOf("zero/optimizer_state.pt");
  std::error_code error;
  if (!fs::exists(path, error)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
  ASSIGN_OR_RETURN(const PickleView list, file.root().Get("param_groups"));
  ASSIGN_OR_RETURN(const std::vector<PickleView> groups, list.Items());
  for (const PickleView& group : groups) {
    ASSIGN_OR_RETURN(const std::optional<PickleView> step, group.Find("step"));
    if (step.has_value()) RETURN_IF_ERROR(AgreeOnStep(file, *step));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<UniversalSource>> UniversalOpener::Open() {
  ASSIGN_OR_RETURN(const std::vector<MegatronParameter> parameters,
                   MegatronParameters(model_, table_));
  source_.reset(new UniversalSource(table_));
  ASSIGN_OR_RETURN(directory_, FollowPointer(directory_, "latest_universal"));
  RETURN_IF_ERROR(CheckNames(parameters));
  ASSIGN_OR_RETURN(const TorchFile model, TorchFile::Open(PathOf("mp_rank_00_model_states.pt")));
  ASSIGN_OR_RETURN(run_, ReadMegatronRun(model, model_));
  for (const MegatronParameter& parameter : parameters) RETURN_IF_ERROR(Place(parameter));
  RETURN_IF_ERROR(ReadOptimizer());
  RETURN_IF_ERROR(source_->state_.CheckComplete());
  source_->progress_ = run_.progress;
  source_->progress_.optimizer_step = step_;
  return std::move(source_);
}

absl::StatusOr<std::unique_ptr<UniversalSource>> UniversalSource::Open(const std::string& directory,
                                                                       const ModelConfig& model,
                                                                       const AtomTable& table) {
  return UniversalOpener(directory, model, table).Open();
}

absl::Status UniversalSource::Verify(const Progress& tell) const {
  return VerifyTorchFiles(paths_, tell);
}

}  // namespace perdure
