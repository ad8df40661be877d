#include <algorithm>
#include <cstring>
#include <vector>

#include "ckpt/float_bits.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/torch_file.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kReadBytesMax = int64_t{4} << 20;

float Convert(const char* at, TorchType type) {
  if (type == TorchType::kFloat32) {
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  return type == TorchType::kBFloat16 ? FloatOfBF16(bits) : FloatOfF16(bits);
}

absl::Status ReadContiguous(const File& file, const TorchTensor& tensor, int64_t first,
                            std::span<float> out) {
  const auto width = static_cast<uint64_t>(TorchTypeBytes(tensor.type));
  uint64_t offset = tensor.offset + static_cast<uint64_t>(first) * width;
  if (tensor.type == TorchType::kFloat32)
    return ReadBytes(file, offset, out.data(), out.size_bytes());
  std::vector<char> buffer(std::min<size_t>(out.size() * width, kReadBytesMax));
  while (!out.empty()) {
    const size_t count = std::min(out.size(), buffer.size() / width);
    RETURN_IF_ERROR(ReadBytes(file, offset, buffer.data(), count * width));
    for (size_t i = 0; i < count; ++i) out[i] = Convert(&buffer[i * width], tensor.type);
    offset += count * width;
    out = out.subspan(count);
  }
  return absl::OkStatus();
}

// Storage index of the element at a row-major position, from the tensor's first.
int64_t IndexOf(const TorchTensor& tensor, int64_t position) {
  int64_t index = 0;
  for (size_t i = tensor.shape.size(); i > 0; --i) {
    index += position % tensor.shape[i - 1] * tensor.stride[i - 1];
    position /= tensor.shape[i - 1];
  }
  return index;
}

// Reads what lies between the outermost elements of the range and picks; halves the range as long
// as too much lies there.
absl::Status ReadStrided(const File& file, const TorchTensor& tensor, int64_t first,
                         std::span<float> out) {
  if (out.empty()) return absl::OkStatus();
  const auto width = TorchTypeBytes(tensor.type);
  std::vector<int64_t> places(std::min<size_t>(out.size(), kReadBytesMax / 16));
  if (places.size() < out.size()) {
    RETURN_IF_ERROR(ReadStrided(file, tensor, first, out.first(places.size())));
    return ReadStrided(file, tensor, first + static_cast<int64_t>(places.size()),
                       out.subspan(places.size()));
  }
  for (size_t i = 0; i < places.size(); ++i)
    places[i] = IndexOf(tensor, first + static_cast<int64_t>(i));
  const auto [low, high] = std::minmax_element(places.begin(), places.end());
  const int64_t begin = *low, bytes = (*high - *low + 1) * width;
  if (bytes > kReadBytesMax) {
    const size_t half = out.size() / 2;
    RETURN_IF_ERROR(ReadStrided(file, tensor, first, out.first(half)));
    return ReadStrided(file, tensor, first + static_cast<int64_t>(half), out.subspan(half));
  }
  std::vector<char> buffer(static_cast<size_t>(bytes));
  RETURN_IF_ERROR(ReadBytes(file, tensor.offset + static_cast<uint64_t>(begin * width),
                            buffer.data(), buffer.size()));
  for (size_t i = 0; i < places.size(); ++i)
    out[i] = Convert(&buffer[static_cast<size_t>((places[i] - begin) * width)], tensor.type);
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTorchFloats(const File& file, const TorchTensor& tensor, int64_t first,
                             std::span<float> out) {
  const auto count = static_cast<int64_t>(out.size());
  PERDURE_CHECK(first >= 0 && count <= tensor.size() && first <= tensor.size() - count);
  if (tensor.type != TorchType::kFloat32 && tensor.type != TorchType::kBFloat16 &&
      tensor.type != TorchType::kFloat16)
    return InvalidArgument("{}: a tensor of {}; float32, bfloat16 and float16 are read",
                           file.path(), TorchTypeName(tensor.type));
  if (tensor.contiguous()) return ReadContiguous(file, tensor, first, out);
  return ReadStrided(file, tensor, first, out);
}

}  // namespace perdure
