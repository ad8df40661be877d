#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "ckpt/float_bits.h"
#include "ckpt/convert/safetensors.h"
#include "ckpt/convert/safetensors_header.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kChunkElements = 16384;  // Converted at once.

// Models are shared with others as the umask says.
absl::StatusOr<File> CreateShared(const std::string& path) {
  const int descriptor =
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor >= 0) return File(descriptor, path);
  if (errno == EEXIST)
    return AlreadyExists("{} exists: choose another name, or move it away", path);
  return ErrnoStatus(errno, "create " + path);
}

bool Before(const SafetensorsTensor& a, const SafetensorsTensor& b) {
  return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
}

uint64_t BytesOf(const SafetensorsTensor& tensor) {
  uint64_t bytes = 0;
  PERDURE_CHECK(TensorBytes(tensor.shape, tensor.dtype, &bytes));
  PERDURE_CHECK(bytes < uint64_t{1} << 62);
  return bytes;
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsTensor> tensors) {
  std::sort(tensors.begin(), tensors.end(), Before);
  uint64_t end = 0;
  for (SafetensorsTensor& tensor : tensors) {
    PERDURE_CHECK(tensor.dtype == SafetensorsDType::kF32 ||
                  tensor.dtype == SafetensorsDType::kBF16);
    PERDURE_CHECK(&tensor == tensors.data() || (&tensor)[-1].name != tensor.name);
    tensor.begin = end;
    end += BytesOf(tensor);
    PERDURE_CHECK(end < uint64_t{1} << 62);
    tensor.end = end;
  }
  SafetensorsWriter writer;
  const std::string header = PrintSafetensorsHeader(tensors);
  if (header.size() - sizeof(uint64_t) > kSafetensorsHeaderBytesMax)
    return InvalidArgument("{} would have a header of {} bytes; readers take {}: use more shards",
                           path, header.size(), kSafetensorsHeaderBytesMax);
  ASSIGN_OR_RETURN(writer.file_, CreateShared(path));
  writer.tensors_ = std::move(tensors);
  RETURN_IF_ERROR(writer.Write(header.data(), header.size()));
  writer.data_offset_ = std::exchange(writer.position_, 0);
  return writer;
}

absl::Status SafetensorsWriter::Write(const void* data, uint64_t bytes) {
  iovec piece{const_cast<void*>(data), bytes};
  RETURN_IF_ERROR(file_.WriteAt(data_offset_ + position_, {&piece, 1}));
  position_ += bytes;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(std::span<const float> values) {
  if (values.empty()) return absl::OkStatus();
  while (tensor_ < tensors_.size() && position_ == tensors_[tensor_].end) ++tensor_;
  PERDURE_CHECK(tensor_ < tensors_.size());
  const SafetensorsTensor& tensor = tensors_[tensor_];
  PERDURE_CHECK(values.size() <= (tensor.end - position_) / DTypeBytes(tensor.dtype));
  if (tensor.dtype == SafetensorsDType::kF32) return Write(values.data(), values.size_bytes());
  std::array<uint16_t, kChunkElements> chunk;
  while (!values.empty()) {
    const size_t count = std::min(values.size(), chunk.size());
    std::transform(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count),
                   chunk.begin(), BF16OfFloat);
    RETURN_IF_ERROR(Write(chunk.data(), count * sizeof chunk[0]));
    values = values.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  PERDURE_CHECK(tensors_.empty() || position_ == tensors_.back().end);
  RETURN_IF_ERROR(file_.Sync());
  return file_.Close();
}

std::vector<std::vector<SafetensorsTensor>> PlanShards(
    const std::vector<SafetensorsTensor>& tensors, uint64_t bytes_max) {
  std::vector<std::vector<SafetensorsTensor>> shards(1);
  uint64_t bytes = 0;  // Of the last shard.
  for (const SafetensorsTensor& tensor : tensors) {
    const uint64_t more = BytesOf(tensor);
    if (!shards.back().empty() && (bytes > bytes_max || more > bytes_max - bytes)) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(tensor);
    bytes += more;
  }
  return shards;
}

std::string ShardName(size_t shard, size_t shards) {
  if (shards == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

std::string ShardIndex(const std::vector<std::vector<SafetensorsTensor>>& shards) {
  uint64_t bytes = 0;
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t shard = 0; shard < shards.size(); ++shard)
    for (const SafetensorsTensor& tensor : shards[shard]) {
      bytes += BytesOf(tensor);
      weight_map[tensor.name] = ShardName(shard, shards.size());
    }
  const nlohmann::json index = {{"metadata", {{"total_size", bytes}}},
                                {"weight_map", std::move(weight_map)}};
  return index.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace perdure
