// A model's directory: which file holds which tensor.
#include <sys/stat.h>

#include <filesystem>
#include <utility>

#include "ckpt/convert/safetensors.h"
#include "ckpt/convert/safetensors_header.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr uint64_t kIndexBytesMax = uint64_t{64} << 20;

std::string Join(const std::string& directory, const std::string& name) {
  return (std::filesystem::path(directory) / name).string();
}

// A shard's name comes from the index, which anybody may have written.
absl::Status CheckShardName(const std::string& name, const std::string& index) {
  if (name.find_first_of(std::string_view("/\\\0", 3)) == name.npos &&
      name.ends_with(".safetensors") && !name.starts_with('.'))
    return absl::OkStatus();
  return DataLoss(
      "{}: weight_map names the file \"{}\"; shards are files *.safetensors of the same directory",
      index, name.substr(0, 200));
}

absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a file", path);
  if (static_cast<uint64_t>(info.st_size) > kIndexBytesMax)
    return DataLoss("{} has {} bytes; an index has at most {}", path, info.st_size, kIndexBytesMax);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto weight_map = ParseShardIndex(text);
  if (!weight_map.ok()) return DataLoss("{}: {}", path, Message(weight_map.status()));
  for (const auto& [tensor, file] : *weight_map) RETURN_IF_ERROR(CheckShardName(file, path));
  return weight_map;
}

}  // namespace

absl::StatusOr<SafetensorsModel> SafetensorsModel::Open(const std::string& directory) {
  const std::string single = Join(directory, kSingle), index = Join(directory, kIndex);
  std::error_code ignored;
  const bool has_single = std::filesystem::exists(single, ignored);
  const bool has_index = std::filesystem::exists(index, ignored);
  if (has_single && has_index)
    return InvalidArgument("{} has both {} and {}: move the one away that is not meant", directory,
                           kSingle, kIndex);
  if (!has_single && !has_index)
    return NotFound(
        "{} has neither {} nor {}: name a Hugging Face model's directory, with safetensors (older "
        "formats: save the model again with save_pretrained)",
        directory, kSingle, kIndex);
  SafetensorsModel model;
  if (has_single) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(single));
    model.files_.push_back(std::move(file));
    RETURN_IF_ERROR(model.AddTensors());
    return model;
  }
  ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(index));
  std::map<std::string, size_t> shards;
  for (const auto& [tensor, name] : weight_map) shards.emplace(name, 0);
  for (auto& [name, number] : shards) {
    number = model.files_.size();
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(Join(directory, name));
    if (absl::IsNotFound(file.status()))
      return NotFound("{} names {}, which is not there: download or copy it, too", index, name);
    RETURN_IF_ERROR(file.status());
    model.files_.push_back(*std::move(file));
  }
  RETURN_IF_ERROR(model.AddTensors());
  for (const auto& [tensor, name] : weight_map) {
    const auto found = model.places_.find(tensor);
    const SafetensorsFile& meant = model.files_[shards.at(name)];
    if (found == model.places_.end() || found->second.file != &meant)
      return DataLoss("{}: tensor {} is not in {}, where the index says: shards of another save?",
                      index, tensor, name);
  }
  for (const auto& [tensor, place] : model.places_)
    if (!weight_map.contains(tensor))
      return DataLoss("{} does not name tensor {}, which is in {}: shards of another save?", index,
                      tensor, place.file->path());
  return model;
}

absl::Status SafetensorsModel::AddTensors() {
  for (const SafetensorsFile& file : files_)
    for (const SafetensorsTensor& tensor : file.tensors()) {
      const auto [found, is_new] = places_.emplace(tensor.name, Place{&file, &tensor});
      if (!is_new)
        return DataLoss("tensor {} is in {} and in {}: shards of another save?", tensor.name,
                        found->second.file->path(), file.path());
    }
  return absl::OkStatus();
}

}  // namespace perdure
