// State to a model's directory.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/huggingface.h"
#include "ckpt/json_object.h"
#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kTokenizerBytesMax = uint64_t{1} << 30;

// Whether `name` is `stem` and two numbers behind it: "<stem><pid>.<counter>".
bool IsStaged(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem)) return false;
  name.remove_prefix(stem.size());
  const size_t dot = name.find('.');
  const auto number = [](std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
  };
  return dot != name.npos && number(name.substr(0, dot)) && number(name.substr(dot + 1));
}

// A directory, locked by this process as long as the descriptor is open. Unavailable: another
// process has it. FailedPrecondition: it cannot be known whether one has.
absl::StatusOr<UniqueFd> LockDirectory(const fs::path& path) {
  UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory.open()) return ErrnoStatus(errno, "open " + path.string());
  if (::flock(directory.get(), LOCK_EX | LOCK_NB) == 0) return directory;
  if (errno == EWOULDBLOCK) return Unavailable("another process works in {}", path.string());
  return FailedPrecondition("{} cannot be locked", path.string());
}

// A directory that has its name once it is complete, and is gone if that never happens: where its
// maker dies, the next one of the same target removes it.
class StagedDirectory {
 public:
  ~StagedDirectory() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  }
  StagedDirectory() = default;
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  absl::Status Create(const std::string& target) {
    static std::atomic<uint64_t> counter{0};
    target_ = fs::path(target).lexically_normal();
    if (!target_.has_filename()) target_ = target_.parent_path();  // "a/b/" is "a/b".
    std::error_code ignored;
    if (fs::symlink_status(target_, ignored).type() != fs::file_type::not_found) return Taken();
    RemoveDead();
    for (;;) {
      const std::string name = fmt::format("{}.tmp.{}.{}", target_.string(), ::getpid(), counter++);
      if (::mkdir(name.c_str(), 0777) != 0) return ErrnoStatus(errno, "mkdir " + name);
      absl::StatusOr<UniqueFd> lock = LockDirectory(name);
      // Who looked before it was locked takes it for a dead one's.
      if (absl::IsUnavailable(lock.status()) || absl::IsNotFound(lock.status())) continue;
      struct stat locked = {}, named = {};
      if (lock.ok() && ::fstat(lock->get(), &locked) == 0 &&
          (::stat(name.c_str(), &named) != 0 || named.st_ino != locked.st_ino))
        continue;
      // Where there are no locks, nobody removes it either.
      if (lock.ok()) lock_ = *std::move(lock);
      temporary_ = name;
      return absl::OkStatus();
    }
  }

  std::string Path(const std::string& name) const { return (temporary_ / name).string(); }

  absl::Status Commit() {
    RETURN_IF_ERROR(SyncDirectory(temporary_.string()));
    RETURN_IF_ERROR(Rename());
    temporary_.clear();
    const std::string parent = target_.parent_path().string();
    return SyncDirectory(parent.empty() ? "." : parent);
  }

 private:
  // What processes that have died since left of the same target.
  void RemoveDead() const {
    const fs::path parent = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
    const std::string stem = target_.filename().string() + ".tmp.";
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(parent, ignored)) {
      if (!IsStaged(entry.path().filename().string(), stem)) continue;
      if (const absl::StatusOr<UniqueFd> lock = LockDirectory(entry.path()); lock.ok())
        fs::remove_all(entry.path(), ignored);
    }
  }

  absl::Status Taken() const {
    return AlreadyExists("{} exists: name a directory that does not, or move it away",
                         target_.string());
  }

  absl::Status Rename() {
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE) == 0)
      return absl::OkStatus();
    // Some file systems do not know the flag. Without it rename replaces an empty directory at
    // most.
    if (errno == EINVAL && ::rename(temporary_.c_str(), target_.c_str()) == 0)
      return absl::OkStatus();
    if (errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR) return Taken();
    return ErrnoStatus(errno,
                       fmt::format("rename {} to {}", temporary_.string(), target_.string()));
  }

  fs::path target_, temporary_;
  UniqueFd lock_;  // Of temporary_.
};

// A file of few bytes, durable, readable as the umask says.
absl::Status WriteNewFile(const std::string& path, std::string_view content) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) return ErrnoStatus(errno, "create " + path);
  File file(descriptor, path);
  iovec piece{const_cast<char*>(content.data()), content.size()};
  RETURN_IF_ERROR(file.WriteAt(0, {&piece, 1}));
  RETURN_IF_ERROR(file.Sync());
  return file.Close();
}

absl::Status CopyFile(const std::string& from, const std::string& to) {
  struct stat info {};
  if (::stat(from.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + from);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a file", from);
  if (static_cast<uint64_t>(info.st_size) > kTokenizerBytesMax)
    return InvalidArgument("{} has {} bytes: is it a tokenizer?", from, info.st_size);
  ASSIGN_OR_RETURN(const std::string content, ReadFile(from));
  return WriteNewFile(to, content);
}

// --- What transformers' Llama can say -----------------------------------------------------------

absl::Status CheckOptions(const AtomTable& table, const HuggingFaceExport& options) {
  PERDURE_CHECK(options.dtype == SafetensorsDType::kBF16 ||
                options.dtype == SafetensorsDType::kF32);
  PERDURE_CHECK(options.context > 0 && std::isfinite(options.rope_theta) && options.rope_theta > 0);
  RETURN_IF_ERROR(ValidateModel(options.model, 1));
  if (options.model.position != "rope")
    return InvalidArgument(
        "model.position = \"{}\" cannot be exported: Hugging Face's Llama always rotates "
        "(\"rope\")",
        options.model.position);
  if (options.shard_bytes_max == 0)
    return InvalidArgument("a shard of at most 0 bytes holds nothing; 5000000000 is usual");
  const std::vector<TensorSpec> tensors = ModelTensors(options.model, 1);
  bool same = tensors.size() == table.tensors().size();
  for (size_t t = 0; same && t < tensors.size(); ++t)
    same = tensors[t].name == table.tensors()[t].name &&
           tensors[t].rows == table.tensors()[t].rows && tensors[t].cols == table.tensors()[t].cols;
  if (!same)
    return InvalidArgument(
        "the state's tensors are not those of its [model]: the checkpoint is of another model");
  return absl::OkStatus();
}

OrderedJson IdOrNull(const std::optional<int64_t>& id) {
  return id ? OrderedJson(*id) : OrderedJson(nullptr);
}

// No transformers_version: none wrote this. torch_dtype, rope_theta and rope_scaling are the keys
// that every version reads; transformers 5 has newer ones for them.
std::string ConfigJson(const HuggingFaceExport& options) {
  const ModelConfig model = ResolveModel(options.model);
  const OrderedJson config = {
      {"architectures", OrderedJson::array({"LlamaForCausalLM"})},
      {"model_type", "llama"},
      {"hidden_size", model.hidden},
      {"intermediate_size", model.ffn},
      {"num_hidden_layers", model.layers},
      {"num_attention_heads", model.heads},
      {"num_key_value_heads", model.kv_heads},
      {"head_dim", model.head_dim},
      {"max_position_embeddings", options.context},
      {"rms_norm_eps", model.norm_eps},
      {"rope_theta", options.rope_theta},
      {"rope_scaling", nullptr},
      {"vocab_size", model.vocab},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"mlp_bias", false},
      {"tie_word_embeddings", false},
      {"bos_token_id", IdOrNull(options.bos_token_id)},
      {"eos_token_id", IdOrNull(options.eos_token_id)},
      {"pad_token_id", IdOrNull(options.pad_token_id)},
      {"torch_dtype", options.dtype == SafetensorsDType::kBF16 ? "bfloat16" : "float32"},
      {"initializer_range", model.init_range},
      {"pretraining_tp", 1},
      {"use_cache", true}};
  return config.dump(2) + "\n";
}

std::string GenerationConfigJson(const HuggingFaceExport& options) {
  const OrderedJson config = {{"_from_model_config", true},
                              {"bos_token_id", IdOrNull(options.bos_token_id)},
                              {"eos_token_id", IdOrNull(options.eos_token_id)},
                              {"pad_token_id", IdOrNull(options.pad_token_id)}};
  return config.dump(2) + "\n";
}

absl::Status CopyTokenizer(const std::string& tokenizer, const StagedDirectory& directory) {
  if (tokenizer.empty()) return absl::OkStatus();
  const std::string extension = fs::path(tokenizer).extension().string();
  if (extension != ".json" && extension != ".model")
    return InvalidArgument(
        "tokenizer {} is neither a tokenizer.json nor a SentencePiece *.model: name one of them",
        tokenizer);
  RETURN_IF_ERROR(CopyFile(tokenizer, directory.Path("tokenizer" + extension)));
  const std::string config = (fs::path(tokenizer).parent_path() / "tokenizer_config.json").string();
  std::error_code ignored;
  if (!fs::exists(config, ignored)) return absl::OkStatus();
  return CopyFile(config, directory.Path("tokenizer_config.json"));
}

// --- Tensors ------------------------------------------------------------------------------------

// Writes tensors out of atoms into files of safetensors.
class TensorExport {
 public:
  TensorExport(StateSource& source, const AtomTable& table, const Progress& progress)
      : source_(source), table_(table), progress_(progress) {}

  absl::Status WriteShard(const std::string& path, const std::vector<SafetensorsTensor>& tensors) {
    ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, tensors));
    for (const SafetensorsTensor& tensor : writer.tensors())
      RETURN_IF_ERROR(WriteTensor(table_.FindTensor(tensor.name), writer));
    return writer.Finish();
  }

 private:
  absl::Status WriteTensor(int64_t tensor, SafetensorsWriter& writer) {
    const TensorSpec& spec = table_.tensors()[static_cast<size_t>(tensor)];
    // Atoms of slices of rows follow each other as the tensor's elements do.
    const bool in_order = spec.axis != SliceAxis::kCols || spec.slices == 1;
    if (!in_order) whole_.resize(static_cast<size_t>(spec.size()));
    absl::Status written;
    RETURN_IF_ERROR(ForEachAtom(
        source_, table_, table_.TensorAtoms(tensor), [&](const AtomState& state, int64_t count) {
          const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
          if (!in_order) Place(spec, atom, state.parts[0]);
          if (in_order && written.ok())
            written = writer.Append({state.parts[0], static_cast<size_t>(count)});
          done_ += static_cast<uint64_t>(count);
          if (progress_) progress_(done_, Total());
        }));
    RETURN_IF_ERROR(written);
    return in_order ? absl::OkStatus() : writer.Append(whole_);
  }

  // Puts an atom of a slice of columns to its places in the tensor.
  void Place(const TensorSpec& spec, const Atom& atom, const float* values) {
    const int64_t slice_cols = spec.SliceCols(atom.slice);
    for (int64_t done = 0; done < atom.count;) {
      const AtomTable::Place at = table_.Locate(atom, done);
      const int64_t count =
          std::min(atom.count - done, slice_cols - (atom.begin + done) % slice_cols);
      std::copy_n(values + done, count, whole_.data() + at.row * spec.cols + at.col);
      done += count;
    }
  }

  uint64_t Total() const { return static_cast<uint64_t>(table_.parameters()); }

  StateSource& source_;
  const AtomTable& table_;
  const Progress& progress_;
  std::vector<float> whole_;
  uint64_t done_ = 0;
};

std::vector<SafetensorsTensor> TensorsOf(const AtomTable& table, SafetensorsDType dtype) {
  std::vector<SafetensorsTensor> tensors;
  for (const TensorSpec& spec : table.tensors()) {
    const uint64_t rows = static_cast<uint64_t>(spec.rows), cols = static_cast<uint64_t>(spec.cols);
    const bool vector = spec.rows == 1 && spec.axis == SliceAxis::kNone;
    tensors.push_back({.name = spec.name,
                       .dtype = dtype,
                       .shape = vector ? std::vector{cols} : std::vector{rows, cols}});
  }
  return tensors;
}

}  // namespace

absl::Status ExportHuggingFace(StateSource& source, const AtomTable& table,
                               const HuggingFaceExport& options, const Progress& progress) {
  RETURN_IF_ERROR(CheckOptions(table, options));
  StagedDirectory directory;
  RETURN_IF_ERROR(directory.Create(options.directory));
  // First what is small and may fail.
  RETURN_IF_ERROR(CopyTokenizer(options.tokenizer, directory));
  RETURN_IF_ERROR(WriteNewFile(directory.Path("config.json"), ConfigJson(options)));
  RETURN_IF_ERROR(
      WriteNewFile(directory.Path("generation_config.json"), GenerationConfigJson(options)));
  const auto shards = PlanShards(TensorsOf(table, options.dtype), options.shard_bytes_max);
  TensorExport tensors(source, table, progress);
  for (size_t shard = 0; shard < shards.size(); ++shard)
    RETURN_IF_ERROR(
        tensors.WriteShard(directory.Path(ShardName(shard, shards.size())), shards[shard]));
  if (shards.size() > 1)
    RETURN_IF_ERROR(
        WriteNewFile(directory.Path("model.safetensors.index.json"), ShardIndex(shards)));
  return directory.Commit();
}

}  // namespace perdure
