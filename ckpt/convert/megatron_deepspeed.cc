#include "ckpt/convert/megatron_deepspeed.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "ckpt/convert/megatron_names.h"
#include "ckpt/convert/megatron_run.h"
#include "ckpt/convert/torch_file.h"
#include "ckpt/convert/zero_partition.h"
#include "runtime/base/files.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// Takes a number of plain digits off the front.
std::optional<int64_t> TakeNumber(std::string_view& text) {
  int64_t value = 0;
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const auto [end, error] = std::from_chars(text.data(), text.data() + digits, value);
  if (digits == 0 || digits > 9 || error != std::errc()) return std::nullopt;
  text.remove_prefix(digits);
  return value;
}

bool TakePrefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

struct Names {
  std::map<int64_t, std::string> models;                          // By mp rank.
  std::map<std::pair<int64_t, int64_t>, std::string> partitions;  // By (mp rank, data rank).
  int64_t layer_ranks = 0;  // Tensor ranks that have a file of layer 1.
};

// Files of other names (scripts, layers' 16-bit weights) are not read.
absl::Status AddName(const std::string& name, Names& names) {
  std::string_view rest = name;
  if (TakePrefix(rest, "mp_rank_")) {
    const auto rank = TakeNumber(rest);
    if (rank.has_value() && rest == "_model_states.pt" && names.models.emplace(*rank, name).second)
      return absl::OkStatus();
    return DataLoss("{}: mp_rank_MM_model_states.pt was expected, once for each MM", name);
  }
  if (rest.starts_with("layer_01-model_")) {
    if (rest.ends_with("-model_states.pt")) ++names.layer_ranks;
    return absl::OkStatus();
  }
  if (!rest.ends_with("optim_states.pt")) return absl::OkStatus();
  if (!TakePrefix(rest, "bf16_")) TakePrefix(rest, "fp16_");
  if (TakePrefix(rest, "zero_pp_rank_")) {
    const auto data = TakeNumber(rest);
    const bool between = TakePrefix(rest, "_mp_rank_");
    const auto rank = TakeNumber(rest);
    if (data.has_value() && between && rank.has_value() && rest == "_optim_states.pt" &&
        names.partitions.emplace(std::pair(*rank, *data), name).second)
      return absl::OkStatus();
  }
  return DataLoss(
      "{}: [bf16_]zero_pp_rank_D_mp_rank_MM_optim_states.pt was expected, once for each D and MM",
      name);
}

absl::StatusOr<Names> ListNames(const std::string& directory) {
  std::error_code error;
  Names names;
  std::vector<std::string> found;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    found.push_back(it->path().filename().string());
  if (error) return NotFound("{}: {}", directory, error.message());
  std::sort(found.begin(), found.end());
  for (const std::string& name : found) {
    const absl::Status added = AddName(name, names);
    if (!added.ok()) return DataLoss("{}/{}", directory, Message(added));
  }
  if (names.models.empty() || names.partitions.empty())
    return NotFound(
        "{} has {} files mp_rank_*_model_states.pt and {} *_optim_states.pt; both are needed: name "
        "the directory of a step",
        directory, names.models.size(), names.partitions.size());
  return names;
}

}  // namespace

class MegatronDeepSpeedOpener {
 public:
  MegatronDeepSpeedOpener(std::string directory, const ModelConfig& model, const AtomTable& table)
      : directory_(std::move(directory)), model_(model), table_(table) {}

  absl::StatusOr<std::unique_ptr<MegatronDeepSpeedSource>> Open();

 private:
  std::string PathOf(const std::string& name) const {
    return (fs::path(directory_) / name).string();
  }
  absl::Status ReadRuns();
  absl::Status FindDegrees();
  absl::Status ReadPartitions();
  absl::Status Place(const MegatronParameter& parameter);
  absl::StatusOr<int64_t> StageOf(const std::string& name) const;
  absl::Status CheckNothingElse(const std::vector<MegatronParameter>& parameters) const;

  std::string directory_;
  const ModelConfig& model_;
  const AtomTable& table_;
  std::unique_ptr<MegatronDeepSpeedSource> source_;
  Names names_;
  MegatronRun run_;
  ZeroProgress optimizer_;
  int64_t tensor_ = 0, pipeline_ = 0, data_ = 0;
  std::vector<ZeroFragments> by_rank_;  // By mp rank: stage * tensor_ + tensor rank.
};

absl::Status MegatronDeepSpeedOpener::ReadRuns() {
  for (const auto& [rank, name] : names_.models) {
    ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(PathOf(name)));
    ASSIGN_OR_RETURN(const MegatronRun run, ReadMegatronRun(file, model_));
    if (rank == 0) run_ = run;
    if (run.progress.iteration != run_.progress.iteration || run.tensor_ranks != run_.tensor_ranks)
      return DataLoss(
          "{}: iteration {} and {} tensor ranks, where mp_rank_00 has {} and {}: files of "
          "different "
          "checkpoints",
          PathOf(name), run.progress.iteration, run.tensor_ranks, run_.progress.iteration,
          run_.tensor_ranks);
  }
  return absl::OkStatus();
}

absl::Status MegatronDeepSpeedOpener::FindDegrees() {
  const int64_t ranks = std::ssize(names_.models);
  if (names_.models.begin()->first != 0 || names_.models.rbegin()->first != ranks - 1)
    return DataLoss("{}: {} files mp_rank_*, the last of them {}: one is missing", directory_,
                    ranks, names_.models.rbegin()->second);
  RETURN_IF_ERROR(ReadRuns());
  tensor_ = run_.tensor_ranks;
  if (tensor_ < 0) tensor_ = names_.layer_ranks > 0 ? names_.layer_ranks : ranks == 1 ? 1 : -1;
  if (tensor_ <= 0)
    return DataLoss(
        "{}: {} model ranks, and neither args.tensor_model_parallel_size nor layer files say how "
        "many of them are tensor ranks",
        directory_, ranks);
  if (ranks % tensor_ != 0 || (names_.layer_ranks > 0 && names_.layer_ranks != tensor_))
    return DataLoss(
        "{}: {} files mp_rank_*, {} of layer 1, and {} tensor ranks contradict each other",
        directory_, ranks, names_.layer_ranks, tensor_);
  pipeline_ = ranks / tensor_;
  data_ = std::ssize(names_.partitions) / ranks;
  for (int64_t rank = 0; rank < ranks; ++rank)
    for (int64_t data = 0; data < data_; ++data)
      if (!names_.partitions.contains({rank, data}))
        return DataLoss("{}: the optimizer's file of data rank {}, mp rank {} is missing",
                        directory_, data, rank);
  if (std::ssize(names_.partitions) != ranks * data_ || data_ == 0)
    return DataLoss("{}: {} optimizer files are not a whole number for each of {} mp ranks",
                    directory_, names_.partitions.size(), ranks);
  return absl::OkStatus();
}

absl::Status MegatronDeepSpeedOpener::ReadPartitions() {
  by_rank_.resize(names_.models.size());
  for (const auto& [ranks, name] : names_.partitions) {
    const auto [rank, data] = ranks;
    source_->paths_.push_back(PathOf(name));
    RETURN_IF_ERROR(ReadZeroPartition(source_->paths_.back(), data, data_, source_->files_,
                                      by_rank_[static_cast<size_t>(rank)], optimizer_));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> MegatronDeepSpeedOpener::StageOf(const std::string& name) const {
  int64_t stage = -1;
  for (size_t rank = 0; rank < by_rank_.size(); ++rank) {
    if (!by_rank_[rank].contains(name)) continue;
    const int64_t found = static_cast<int64_t>(rank) / tensor_;
    if (stage >= 0 && stage != found)
      return InvalidArgument("{}: {} is on pipeline stages {} and {}: tied models are not imported",
                             directory_, name, stage, found);
    stage = found;
  }
  if (stage >= 0) return stage;
  return DataLoss("{}: no optimizer file maps {}: another [model], or frozen parameters",
                  directory_, name);
}

absl::Status MegatronDeepSpeedOpener::Place(const MegatronParameter& parameter) {
  ASSIGN_OR_RETURN(const int64_t stage, StageOf(parameter.name));
  std::array<std::vector<std::shared_ptr<FloatSource>>, kStatePartCount> sources;
  for (int64_t rank = 0; rank < tensor_; ++rank) {
    const ZeroFragments& fragments = by_rank_[static_cast<size_t>(stage * tensor_ + rank)];
    const auto found = fragments.find(parameter.name);
    const std::string where =
        fmt::format("{}: {} on stage {}, tensor rank {}", directory_, parameter.name, stage, rank);
    if (found == fragments.end()) return DataLoss("{}: no optimizer file maps it", where);
    ASSIGN_OR_RETURN(const auto joined, JoinFragments(found->second, where));
    for (size_t part = 0; part < sources.size(); ++part) sources[part].push_back(joined[part]);
  }
  const int64_t padded = sources[0][0]->size() * tensor_;
  if (parameter.kind == MegatronKind::kVocabulary && run_.padded_vocab >= 0 &&
      (padded % parameter.cols != 0 || padded / parameter.cols != run_.padded_vocab))
    return DataLoss("{}: {} has {} elements; args.padded_vocab_size = {} rows of {} were expected",
                    directory_, parameter.name, padded, run_.padded_vocab, parameter.cols);
  for (int part = 0; part < kStatePartCount; ++part) {
    const size_t p = static_cast<size_t>(part);
    RETURN_IF_ERROR(PlaceMegatron(
        parameter, table_, part, sources[p],
        fmt::format("{}: {} of {}", directory_, kStateParts[p], parameter.name), source_->state_));
  }
  return absl::OkStatus();
}

absl::Status MegatronDeepSpeedOpener::CheckNothingElse(
    const std::vector<MegatronParameter>& parameters) const {
  for (const ZeroFragments& fragments : by_rank_)
    for (const auto& [name, unused] : fragments)
      if (std::none_of(parameters.begin(), parameters.end(),
                       [&name = name](const auto& known) { return known.name == name; }))
        return InvalidArgument(
            "{}: parameter {} is none of a Llama of {} layers: another [model], or a fused or tied "
            "form that is not imported",
            directory_, name, model_.layers);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<MegatronDeepSpeedSource>> MegatronDeepSpeedOpener::Open() {
  ASSIGN_OR_RETURN(const std::vector<MegatronParameter> parameters,
                   MegatronParameters(model_, table_));
  source_.reset(new MegatronDeepSpeedSource(table_));
  ASSIGN_OR_RETURN(directory_, FollowPointer(directory_, "latest"));
  ASSIGN_OR_RETURN(names_, ListNames(directory_));
  RETURN_IF_ERROR(FindDegrees());
  RETURN_IF_ERROR(ReadPartitions());
  RETURN_IF_ERROR(CheckNothingElse(parameters));
  for (const MegatronParameter& parameter : parameters) RETURN_IF_ERROR(Place(parameter));
  RETURN_IF_ERROR(source_->state_.CheckComplete());
  source_->progress_ = run_.progress;
  source_->progress_.optimizer_step = optimizer_.step;
  source_->progress_.rate = optimizer_.rate;
  source_->layout_ = fmt::format("tensor {} x pipeline {} x data {}", tensor_, pipeline_, data_);
  return std::move(source_);
}

absl::StatusOr<std::unique_ptr<MegatronDeepSpeedSource>> MegatronDeepSpeedSource::Open(
    const std::string& directory, const ModelConfig& model, const AtomTable& table) {
  return MegatronDeepSpeedOpener(directory, model, table).Open();
}

absl::Status MegatronDeepSpeedSource::Verify(const Progress& tell) const {
  return VerifyTorchFiles(paths_, tell);
}

namespace {

absl::Status VerifyTorchFile(const std::string& path,
                             const std::function<void(uint64_t bytes)>& tell) {
  ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path));
  for (const ZipRecord& record : file.zip().records())
    RETURN_IF_ERROR(VerifyZipRecord(file.file(), record, path, tell));
  return absl::OkStatus();
}

}  // namespace

absl::Status VerifyTorchFiles(std::span<const std::string> paths, const Progress& tell) {
  uint64_t done = 0, total = 0;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(const File file, OpenForeignFile(path));
    ASSIGN_OR_RETURN(const uint64_t bytes, file.Size());
    total += bytes;
  }
  std::mutex mutex;
  const auto count = [&](uint64_t bytes) {
    const std::lock_guard lock(mutex);
    done += bytes;
    if (tell) tell(done, total);
  };
  RETURN_IF_ERROR(
      ForEachInParallel(paths.size(), [&](size_t i) { return VerifyTorchFile(paths[i], count); }));
  if (tell) tell(total, total);
  return absl::OkStatus();
}

absl::StatusOr<std::string> FollowPointer(const std::string& directory, const char* pointer) {
  const std::string path = (fs::path(directory) / pointer).string();
  std::error_code error;
  if (!fs::exists(path, error)) return directory;
  ASSIGN_OR_RETURN(std::string name, ReadFile(path));
  while (!name.empty() && (name.back() == '\n' || name.back() == '\r' || name.back() == ' '))
    name.pop_back();
  const bool plain = !name.empty() && name.size() < 256 && name != "." && name != ".." &&
                     name.find_first_of(std::string_view("/\0\n", 3)) == std::string::npos;
  if (!plain)
    return DataLoss("{} does not name a directory beside it; name the directory yourself", path);
  return (fs::path(directory) / name).string();
}

}  // namespace perdure
