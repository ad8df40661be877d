// safetensors, the tensor files of Hugging Face: a strict reader and a streaming writer, over one
// file and over a model's directory of shards (docs/formats.md, section 7).
//
// The reader takes bytes from anybody: a file is refused before any of its tensors is read unless
// its header is well formed and the tensors cover the rest of the file exactly, without a hole, an
// overlap or an overflow. Nothing is allocated by a size that the file only claims: memory is a
// small multiple of the header's bytes. Nothing in such a file is executed.
//
// Values are owned by whoever opens them. Thread: any, one call at a time.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/file_io.h"

namespace perdure {

// In the format's order: by rising alignment. Names that later versions added are not known.
enum class SafetensorsDType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
};
std::string_view DTypeName(SafetensorsDType dtype);  // "BF16".
uint64_t DTypeBytes(SafetensorsDType dtype);

struct SafetensorsTensor {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // First byte, relative to the data behind the header.
  uint64_t end = 0;    // Behind the last byte.

  uint64_t elements() const { return (end - begin) / DTypeBytes(dtype); }
};
std::string ShapeName(std::span<const uint64_t> shape);  // "[4096, 1024]".

// One file, open for reading.
class SafetensorsFile {
 public:
  // NotFound: no such file. DataLoss: malformed, truncated or continued; the message says where.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // By name.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsTensor* Find(std::string_view name) const;  // Null: not there.

  // Elements [first, first + out.size()), exactly, as fp32; F32, BF16 and F16 are such.
  // InvalidArgument: another dtype. REQUIRES: a tensor of this file, elements within it.
  absl::Status Read(const SafetensorsTensor& tensor, uint64_t first, std::span<float> out) const;

 private:
  File file_;
  uint64_t data_offset_ = 0;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A model's directory: model.safetensors alone, or the shards that model.safetensors.index.json
// names. Every tensor stands in exactly one shard, the one that the index says.
class SafetensorsModel {
 public:
  // NotFound: neither is there. DataLoss: the index and its shards contradict each other.
  static absl::StatusOr<SafetensorsModel> Open(const std::string& directory);

  struct Place {
    const SafetensorsFile* file = nullptr;
    const SafetensorsTensor* tensor = nullptr;
  };
  const std::map<std::string, Place, std::less<>>& tensors() const { return places_; }

 private:
  absl::Status AddTensors();

  std::vector<SafetensorsFile> files_;  // Never changed once places_ points into it.
  std::map<std::string, Place, std::less<>> places_;
};

// A new file: all tensors are announced first, then their elements are given in the file's order.
// Equal arguments give equal bytes.
class SafetensorsWriter {
 public:
  // Creates `path`. AlreadyExists. Offsets of `tensors` are ignored. REQUIRES: distinct names,
  // shapes that fit into 63 bits, dtypes F32 or BF16.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::vector<SafetensorsTensor> tensors);

  // What has to be appended, in this order: by dtype, largest first, then by name.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  // The next elements; they may go on in the next tensor only from its first element on. BF16 is
  // rounded to nearest even.
  absl::Status Append(std::span<const float> values);
  // Everything is on the disk. REQUIRES: every element was appended.
  absl::Status Finish();

 private:
  absl::Status Write(const void* data, uint64_t bytes);

  File file_;
  std::vector<SafetensorsTensor> tensors_;
  uint64_t data_offset_ = 0;
  size_t tensor_ = 0;      // Being written ...
  uint64_t position_ = 0;  // ... up to this byte of the data.
};

// `tensors`, in their order, in as few consecutive shards as hold at most `bytes_max` bytes of data
// each; a larger tensor has a shard of its own.
std::vector<std::vector<SafetensorsTensor>> PlanShards(
    const std::vector<SafetensorsTensor>& tensors, uint64_t bytes_max);
// "model-00001-of-00003.safetensors"; "model.safetensors" of one.
std::string ShardName(size_t shard, size_t shards);
// The text of model.safetensors.index.json.
std::string ShardIndex(const std::vector<std::vector<SafetensorsTensor>>& shards);

}  // namespace perdure
