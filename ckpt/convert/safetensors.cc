#include "ckpt/convert/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <utility>

#include "ckpt/float_bits.h"
#include "ckpt/convert/safetensors_header.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kChunkElements = 16384;  // Converted at once.

// Symbolic links are followed: Hugging Face's download cache consists of them.
absl::StatusOr<File> OpenForReading(const std::string& path) {
  // Without O_NONBLOCK a fifo of that name would be waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return ErrnoStatus(errno, "open " + path);
  File file(descriptor, path);
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a file", path);
  return file;
}

absl::Status ReadBytes(const File& file, uint64_t offset, void* out, uint64_t bytes) {
  iovec piece{out, bytes};
  return file.ReadAt(offset, {&piece, 1});
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile result;
  ASSIGN_OR_RETURN(result.file_, OpenForReading(path));
  ASSIGN_OR_RETURN(const uint64_t bytes, result.file_.Size());
  uint64_t length = 0;
  if (bytes < sizeof length)
    return DataLoss("{} has {} bytes, too few for a safetensors file: download or copy it again",
                    path, bytes);
  static_assert(std::endian::native == std::endian::little);
  RETURN_IF_ERROR(ReadBytes(result.file_, 0, &length, sizeof length));
  if (length > kSafetensorsHeaderBytesMax)
    return DataLoss(
        "{} announces a header of {} bytes, more than safetensors allows ({}): is it of another "
        "format?",
        path, length, kSafetensorsHeaderBytesMax);
  if (length > bytes - sizeof length)
    return DataLoss(
        "{} announces a header of {} bytes, but has {}: truncated, download or copy it "
        "again",
        path, length, bytes);
  std::string text(length, '\0');
  RETURN_IF_ERROR(ReadBytes(result.file_, sizeof length, text.data(), length));
  result.data_offset_ = sizeof length + length;
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(text, bytes - result.data_offset_);
  if (!header.ok())
    return DataLoss("{}: {}; if it is not what was published, download or copy it again", path,
                    Message(header.status()));
  result.tensors_ = std::move(header->tensors);
  result.metadata_ = std::move(header->metadata);
  return result;
}

const SafetensorsTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const auto& tensor, std::string_view n) { return tensor.name < n; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::Status SafetensorsFile::Read(const SafetensorsTensor& tensor, uint64_t first,
                                   std::span<float> out) const {
  const uint64_t elements = tensor.elements();
  PERDURE_CHECK(first <= elements && out.size() <= elements - first);
  const uint64_t offset = data_offset_ + tensor.begin + first * DTypeBytes(tensor.dtype);
  float (*widen)(uint16_t) = nullptr;
  switch (tensor.dtype) {
    case SafetensorsDType::kF32:
      return ReadBytes(file_, offset, out.data(), out.size_bytes());
    case SafetensorsDType::kBF16:
      widen = FloatOfBF16;
      break;
    case SafetensorsDType::kF16:
      widen = FloatOfF16;
      break;
    default:
      return InvalidArgument(
          "{}: tensor {} is of {}; weights are read from F32, BF16 or F16: convert it first",
          path(), tensor.name, DTypeName(tensor.dtype));
  }
  std::array<uint16_t, kChunkElements> chunk;
  for (size_t done = 0; done < out.size();) {
    const size_t count = std::min(out.size() - done, chunk.size());
    RETURN_IF_ERROR(
        ReadBytes(file_, offset + done * sizeof chunk[0], chunk.data(), count * sizeof chunk[0]));
    std::transform(chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(count),
                   out.begin() + static_cast<std::ptrdiff_t>(done), widen);
    done += count;
  }
  return absl::OkStatus();
}

}  // namespace perdure
