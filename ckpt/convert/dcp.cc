#include "ckpt/convert/dcp.h"

#include <filesystem>
#include <set>
#include <utility>

#include "ckpt/convert/float_source.h"
#include "ckpt/convert/torch_file.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<TorchFile> OpenPlace(FileCache& files, const std::string& directory,
                                    const DcpPlace& place, const std::string& what) {
  const std::string path = (fs::path(directory) / place.file).string();
  ASSIGN_OR_RETURN(std::shared_ptr<const File> file, files.Get(path));
  return TorchFile::Open(std::move(file), place.offset, place.bytes,
                         fmt::format("{}: {} at byte {}", path, what, place.offset));
}

// One chunk; its zip and pickle are read at the first touch.
class ChunkSource final : public FloatSource {
 public:
  ChunkSource(FileCache& files, const std::string& directory, const DcpChunk& chunk, TorchType type,
              std::string what)
      : files_(files), directory_(directory), chunk_(chunk), type_(type), what_(std::move(what)) {}

  int64_t size() const override {
    int64_t size = 1;
    for (const int64_t extent : chunk_.sizes) size *= extent;
    return size;
  }

  absl::Status Read(int64_t first, std::span<float> out) override {
    if (!tensor_.has_value()) RETURN_IF_ERROR(Find());
    ASSIGN_OR_RETURN(const auto file,
                     files_.Get((fs::path(directory_) / chunk_.place.file).string()));
    return ReadTorchFloats(*file, *tensor_, first, out);
  }

 private:
  absl::Status Find() {
    ASSIGN_OR_RETURN(const TorchFile file, OpenPlace(files_, directory_, chunk_.place, what_));
    ASSIGN_OR_RETURN(TorchTensor tensor, file.Tensor(file.root()));
    if (tensor.shape != chunk_.sizes || tensor.type != type_)
      return DataLoss("{}: [{}] of {}; .metadata says [{}] of {}", file.root().where(),
                      fmt::join(tensor.shape, ", "), TorchTypeName(tensor.type),
                      fmt::join(chunk_.sizes, ", "), TorchTypeName(type_));
    tensor_ = std::move(tensor);
    return absl::OkStatus();
  }

  FileCache& files_;
  const std::string& directory_;
  DcpChunk chunk_;
  TorchType type_;
  std::string what_;
  std::optional<TorchTensor> tensor_;
};

// Beginnings of names that end so, up to there: "" or what ends in a point.
std::vector<std::string> PrefixesOf(const DcpMetadata& metadata, const std::string& ending) {
  std::vector<std::string> prefixes;
  for (const auto& [name, tensor] : metadata.tensors) {
    if (!name.ends_with(ending)) continue;
    const std::string prefix = name.substr(0, name.size() - ending.size());
    if (prefix.empty() || prefix.back() == '.') prefixes.push_back(prefix);
  }
  return prefixes;
}

}  // namespace

class DcpOpener {
 public:
  DcpOpener(const std::string& directory, const AtomTable& table, const DcpImport& how)
      : directory_(directory), table_(table), how_(how) {}

  absl::StatusOr<std::unique_ptr<DcpSource>> Open();

 private:
  absl::Status FindPrefix();
  absl::Status FindMoments();
  absl::Status CheckNothingElse() const;
  absl::Status Place(int64_t tensor, int part, const std::string& name);
  absl::Status ReadStep(const std::string& name);
  absl::StatusOr<int64_t> ReadValue(const std::string& name, const DcpPlace& place);
  absl::Status ReadProgress();

  const std::string& directory_;
  const AtomTable& table_;
  const DcpImport& how_;
  DcpMetadata metadata_;
  std::unique_ptr<DcpSource> source_;
  std::string prefix_;
  std::optional<std::string> moments_;  // Their prefix.
};

absl::Status DcpOpener::FindPrefix() {
  const std::string& first = table_.tensors().front().name;
  if (how_.prefix.has_value()) {
    prefix_ = *how_.prefix;
    if (metadata_.tensors.contains(prefix_ + first)) return absl::OkStatus();
    return InvalidArgument("{}: there is no {}{}", directory_, prefix_, first);
  }
  const std::vector<std::string> prefixes = PrefixesOf(metadata_, first);
  if (prefixes.size() == 1) {
    prefix_ = prefixes.front();
    return absl::OkStatus();
  }
  if (!prefixes.empty())
    return InvalidArgument("{}: {} is there under the prefixes \"{}\": say which one to read",
                           directory_, first, fmt::join(prefixes, "\", \""));
  const std::string example =
      metadata_.tensors.empty() ? "nothing" : metadata_.tensors.begin()->first;
  return InvalidArgument(
      "{}: no tensor's name ends in {}; names of a Hugging Face Llama are read, and this "
      "checkpoint "
      "has names like {}",
      directory_, first, example);
}

absl::Status DcpOpener::FindMoments() {
  const std::string ending = table_.tensors().front().name + ".exp_avg";
  const std::vector<std::string> prefixes = PrefixesOf(metadata_, ending);
  if (prefixes.size() > 1)
    return InvalidArgument("{}: {} is there under the prefixes \"{}\": export only one optimizer",
                           directory_, ending, fmt::join(prefixes, "\", \""));
  if (prefixes.size() == 1) moments_ = prefixes.front();
  if (moments_.has_value()) return absl::OkStatus();
  for (const auto& [name, tensor] : metadata_.tensors)
    if (name.ends_with(".exp_avg") || name.ends_with(".exp_avg_sq"))
      return InvalidArgument(
          "{}: {} is a moment whose parameter is not named; save with "
          "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict",
          directory_, name);
  return absl::OkStatus();
}

// A bias or an adapter that is left behind would be another model.
absl::Status DcpOpener::CheckNothingElse() const {
  std::set<std::string> expected;
  for (const TensorSpec& tensor : table_.tensors()) expected.insert(prefix_ + tensor.name);
  for (const auto& [name, tensor] : metadata_.tensors) {
    const bool of_model =
        name.starts_with(prefix_ + "model.") || name.starts_with(prefix_ + "lm_head.");
    if (!of_model || expected.contains(name) || name.ends_with(".rotary_emb.inv_freq")) continue;
    if (moments_.has_value() && name.starts_with(*moments_) && *moments_ != prefix_) continue;
    const bool of_optimizer =
        name.ends_with(".exp_avg") || name.ends_with(".exp_avg_sq") || name.ends_with(".step");
    if (of_optimizer) continue;
    return InvalidArgument("{}: {} is none of the model's tensors: another [model]?", directory_,
                           name);
  }
  return absl::OkStatus();
}

absl::Status DcpOpener::Place(int64_t tensor, int part, const std::string& name) {
  const TensorSpec& spec = table_.tensors()[static_cast<size_t>(tensor)];
  const auto found = metadata_.tensors.find(name);
  if (found == metadata_.tensors.end()) return DataLoss("{}: there is no {}", directory_, name);
  const DcpTensor& stored = found->second;
  const bool vector = spec.rows == 1 && stored.shape.size() == 1;
  const std::vector<int64_t> expected =
      vector ? std::vector<int64_t>{spec.cols} : std::vector<int64_t>{spec.rows, spec.cols};
  if (stored.shape != expected)
    return DataLoss("{}: {} is [{}]; [{}] was expected: another [model]?", directory_, name,
                    fmt::join(stored.shape, ", "), fmt::join(expected, ", "));
  const bool is_value = part == 0;
  const bool is_float = stored.type == TorchType::kFloat32 || stored.type == TorchType::kBFloat16 ||
                        stored.type == TorchType::kFloat16;
  if (!is_float)
    return InvalidArgument("{}: {} is of {}; float32, bfloat16 and float16 are read", directory_,
                           name, TorchTypeName(stored.type));
  const std::string type(TorchTypeName(stored.type));
  if (is_value && source_->type_.empty()) source_->type_ = type;
  if (is_value && source_->type_ != type) source_->type_ = "mixed";
  std::vector<StateBlock> blocks;
  for (const DcpChunk& chunk : stored.chunks) {
    const size_t last = chunk.sizes.size() - 1;
    source_->places_.push_back(chunk.place);
    blocks.push_back({.row = vector ? 0 : chunk.offsets[0],
                      .col = chunk.offsets[last],
                      .rows = vector ? 1 : chunk.sizes[0],
                      .cols = chunk.sizes[last],
                      .source = std::make_shared<ChunkSource>(source_->files_, source_->directory_,
                                                              chunk, stored.type, name),
                      .stride = chunk.sizes[last]});
  }
  return source_->state_.Set(tensor, part, std::move(blocks),
                             fmt::format("{}: {}", directory_, name));
}

absl::StatusOr<int64_t> DcpOpener::ReadValue(const std::string& name, const DcpPlace& place) {
  ASSIGN_OR_RETURN(const TorchFile file, OpenPlace(source_->files_, directory_, place, name));
  return file.Integer(file.root());
}

absl::Status DcpOpener::ReadStep(const std::string& name) {
  const auto tensor = metadata_.tensors.find(name);
  const auto value = metadata_.values.find(name);
  const DcpPlace* place = nullptr;
  if (value != metadata_.values.end()) place = &value->second;
  if (tensor != metadata_.tensors.end() && tensor->second.chunks.size() == 1)
    place = &tensor->second.chunks[0].place;
  if (place == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t step, ReadValue(name, *place));
  int64_t& known = source_->progress_.optimizer_step;
  if (known < 0 && step >= 0) known = step;
  if (step == known) return absl::OkStatus();
  return DataLoss("{}: {} = {} where other parameters have {}", directory_, name, step, known);
}

absl::Status DcpOpener::ReadProgress() {
  ForeignProgress& progress = source_->progress_;
  for (const auto& [name, out] : {std::pair("iteration", &progress.iteration),
                                  {"samples", &progress.samples},
                                  {"tokens", &progress.tokens}}) {
    const auto found = metadata_.values.find(name);
    if (found == metadata_.values.end()) continue;
    ASSIGN_OR_RETURN(*out, ReadValue(name, found->second));
    if (*out < 0) return DataLoss("{}: {} = {}: a count was expected", directory_, name, *out);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DcpSource>> DcpOpener::Open() {
  source_.reset(new DcpSource(table_));
  source_->directory_ = directory_;
  ASSIGN_OR_RETURN(metadata_, ReadDcpMetadata(directory_));
  RETURN_IF_ERROR(FindPrefix());
  RETURN_IF_ERROR(FindMoments());
  RETURN_IF_ERROR(CheckNothingElse());
  source_->progress_.has_moments = moments_.has_value();
  for (int64_t t = 0; t < std::ssize(table_.tensors()); ++t) {
    const TensorSpec& spec = table_.tensors()[static_cast<size_t>(t)];
    RETURN_IF_ERROR(Place(t, 0, prefix_ + spec.name));
    for (int part = 1; part < kStatePartCount; ++part) {
      if (moments_.has_value()) {
        RETURN_IF_ERROR(Place(
            t, part,
            fmt::format("{}{}.{}", *moments_, spec.name, kStateParts[static_cast<size_t>(part)])));
        continue;
      }
      const StateBlock zeros{.rows = spec.rows,
                             .cols = spec.cols,
                             .source = std::make_shared<ZeroSource>(spec.size()),
                             .stride = spec.cols};
      RETURN_IF_ERROR(source_->state_.Set(t, part, {zeros}, spec.name));
    }
    if (moments_.has_value()) RETURN_IF_ERROR(ReadStep(*moments_ + spec.name + ".step"));
  }
  RETURN_IF_ERROR(ReadProgress());
  return std::move(source_);
}

absl::StatusOr<std::unique_ptr<DcpSource>> DcpSource::Open(const std::string& directory,
                                                           const AtomTable& table,
                                                           const DcpImport& how) {
  return DcpOpener(directory, table, how).Open();
}

absl::Status DcpSource::Verify(const Progress& tell) {
  uint64_t done = 0, total = 0;
  for (const DcpPlace& place : places_) total += place.bytes;
  for (const DcpPlace& place : places_) {
    ASSIGN_OR_RETURN(const TorchFile file, OpenPlace(files_, directory_, place, "a chunk"));
    for (const ZipRecord& record : file.zip().records())
      RETURN_IF_ERROR(VerifyZipRecord(file.file(), record, file.root().where()));
    done += place.bytes;
    if (tell) tell(done, total);
  }
  return absl::OkStatus();
}

}  // namespace perdure
