// Writes files of torch.save: dicts, lists and scalars with fp32 tensors in them, such that
// torch.load(weights_only=True) reads them.
//
// The pickle is written first; elements of tensors follow in any order and at any time, by ranges,
// so that no tensor is ever whole in memory. Records are stored, begin at multiples of 64 bytes and
// carry true CRCs. The file counts only after Finish. Thread: one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/file_io.h"

namespace perdure {

struct TorchValue;
using TorchList = std::vector<TorchValue>;
using TorchDict = std::vector<std::pair<TorchValue, TorchValue>>;
struct TorchFloats {  // A contiguous fp32 tensor; filled later.
  std::vector<int64_t> shape;
};
struct TorchValue {
  std::variant<std::monostate, bool, int64_t, double, std::string, TorchList, TorchDict,
               TorchFloats>
      value;
};

class TorchWriter {
 public:
  // Writes at `offset` of the file, behind whatever stands there; the file outlives the writer.
  static absl::StatusOr<TorchWriter> Begin(File& file, uint64_t offset, const TorchValue& root);

  // Elements from `first` on of the tensor that is number `tensor` among those of the root, in the
  // order of the pickle. REQUIRES: they lie in the tensor.
  absl::Status Write(size_t tensor, int64_t first, std::span<const float> values);

  // Completes the archive; returns its length in bytes. REQUIRES: every element was written once.
  absl::StatusOr<uint64_t> Finish();

 private:
  struct Record {
    std::string name;
    uint64_t header = 0;  // From the archive's begin, as all places here.
    uint64_t data = 0;
    uint64_t bytes = 0;
    uint64_t written = 0;
    bool in_order = true;  // So far each write continued the one before.
    uint32_t crc = 0;
  };

  TorchWriter(File& file, uint64_t begin) : file_(&file), begin_(begin) {}
  void Place(std::string name, uint64_t bytes);
  absl::Status WriteRecord(const std::string& name, const std::string& content);
  absl::Status WriteHeader(const Record& record);
  absl::Status ReadCrc(Record& record);
  absl::Status WriteDirectory();

  File* file_;
  uint64_t begin_;
  uint64_t end_ = 0;
  std::vector<Record> records_;
  std::vector<size_t> tensors_;  // Their records.
};

// A whole file of these values, synced. REQUIRES: no tensors among them.
absl::Status WriteTorchFile(const std::string& path, const TorchValue& root);

}  // namespace perdure
