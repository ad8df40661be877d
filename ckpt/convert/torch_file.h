// Files of torch.save: a zip with one pickle and the storages that its tensors point into.
//
// The pickle is read as inert values (pickle.h); a tensor is found out of such a value and read by
// ranges, its storage never whole. Checked: the zip (zip_file.h), little-endian data, a storage's
// length against its type, a tensor's view against its storage. Thread: any, one call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/convert/pickle.h"
#include "ckpt/convert/pickle_view.h"
#include "ckpt/convert/zip_file.h"
#include "ckpt/file_io.h"

namespace perdure {

enum class TorchType : uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kFloat64,
  kInt64,
  kInt32,
  kInt16,
  kInt8,
  kUint8,
  kBool,
};
std::string_view TorchTypeName(TorchType type);  // "float32".
int64_t TorchTypeBytes(TorchType type);

// Where a tensor's elements stand; its view was checked against its storage.
struct TorchTensor {
  TorchType type = TorchType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;  // In elements.
  uint64_t offset = 0;          // Of element [0, 0, ...], in bytes from the file's begin.

  int64_t size() const;  // Elements.
  bool contiguous() const;
};

class TorchFile {
 public:
  // The file is bytes [offset, offset + bytes) of `file`; it is named `what` in messages.
  static absl::StatusOr<TorchFile> Open(std::shared_ptr<const File> file, uint64_t offset,
                                        uint64_t bytes, std::string what);
  // All of the file at `path`.
  static absl::StatusOr<TorchFile> Open(const std::string& path);

  PickleView root() const { return PickleView(tree_.root(), what_); }
  const File& file() const { return *file_; }
  const ZipFile& zip() const { return zip_; }

  // The tensor or parameter that a value stands for.
  absl::StatusOr<TorchTensor> Tensor(const PickleView& value) const;
  // An int, or a tensor of one element that is a whole number.
  absl::StatusOr<int64_t> Integer(const PickleView& value) const;

 private:
  struct Storage {
    TorchType type = TorchType::kFloat32;
    uint64_t offset = 0;  // In the file.
    int64_t elements = 0;
  };
  absl::StatusOr<Storage> FindStorage(const PickleView& id) const;

  std::shared_ptr<const File> file_;
  std::string what_;
  ZipFile zip_;
  PickleTree tree_;
};

// Elements [first, first + out.size()) of the tensor in row-major order, exactly as fp32. REQUIRES:
// the range lies in the tensor. InvalidArgument: its type is not float32, bfloat16 or float16.
absl::Status ReadTorchFloats(const File& file, const TorchTensor& tensor, int64_t first,
                             std::span<float> out);

}  // namespace perdure
