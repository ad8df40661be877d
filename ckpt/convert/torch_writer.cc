#include "ckpt/convert/torch_writer.h"

#include <algorithm>

#include "ckpt/convert/crc32.h"
#include "ckpt/convert/foreign_file.h"
#include "ckpt/convert/pickle_writer.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kAlignment = 64, kLocalBytes = 30, kWideExtraBytes = 20, kNarrowMax = 0xFFFFFFFE;
constexpr const char* kFolder = "archive/";

void Append(std::string& bytes, uint64_t value, int count) {
  for (int i = 0; i < count; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
}

uint64_t BytesOf(const TorchFloats& floats) {
  uint64_t bytes = sizeof(float);
  for (const int64_t extent : floats.shape) bytes *= static_cast<uint64_t>(extent);
  return bytes;
}

// Pickles a value and lists its tensors.
class ValuePickler {
 public:
  void Write(const TorchValue& value) {
    std::visit([this](const auto& content) { Write(content); }, value.value);
  }
  PickleWriter& writer() { return writer_; }
  const std::vector<uint64_t>& tensor_bytes() const { return tensor_bytes_; }

 private:
  void Write(std::monostate) { writer_.None(); }
  void Write(bool value) { writer_.Bool(value); }
  void Write(int64_t value) { writer_.Int(value); }
  void Write(double value) { writer_.Float(value); }
  void Write(const std::string& value) { writer_.String(value); }
  void Write(const TorchList& list) {
    writer_.Op(kPickleEmptyList);
    writer_.Op(kPickleMark);
    for (const TorchValue& value : list) Write(value);
    writer_.Op(kPickleAppends);
  }
  void Write(const TorchDict& dict) {
    writer_.Op(kPickleEmptyDict);
    writer_.Op(kPickleMark);
    for (const auto& [key, value] : dict) {
      Write(key);
      Write(value);
    }
    writer_.Op(kPickleSetItems);
  }
  void Write(const TorchFloats& floats) {
    std::vector<int64_t> stride(floats.shape.size());
    int64_t elements = 1;
    for (size_t i = floats.shape.size(); i > 0; --i) {
      stride[i - 1] = elements;
      elements *= floats.shape[i - 1];
    }
    writer_.Global("torch._utils", "_rebuild_tensor_v2");
    writer_.Op(kPickleMark);
    writer_.Op(kPickleMark);
    writer_.String("storage");
    writer_.Global("torch", "FloatStorage");
    writer_.String(std::to_string(tensor_bytes_.size()));
    writer_.String("cpu");
    writer_.Int(elements);
    writer_.Op(kPickleTuple);
    writer_.Op(kPickleBinPersId);
    writer_.Int(0);
    writer_.IntTuple(floats.shape);
    writer_.IntTuple(stride);
    writer_.Bool(false);
    writer_.Global("collections", "OrderedDict");
    writer_.Op(kPickleEmptyTuple);
    writer_.Op(kPickleReduce);
    writer_.Op(kPickleTuple);
    writer_.Op(kPickleReduce);
    tensor_bytes_.push_back(BytesOf(floats));
  }

  PickleWriter writer_{2};
  std::vector<uint64_t> tensor_bytes_;
};

}  // namespace

absl::StatusOr<TorchWriter> TorchWriter::Begin(File& file, uint64_t offset,
                                               const TorchValue& root) {
  ValuePickler pickler;
  pickler.Write(root);
  TorchWriter torch(file, offset);
  RETURN_IF_ERROR(torch.WriteRecord("data.pkl", std::move(pickler.writer()).Finish()));
  RETURN_IF_ERROR(torch.WriteRecord(".format_version", "1"));
  RETURN_IF_ERROR(torch.WriteRecord(".storage_alignment", std::to_string(kAlignment)));
  RETURN_IF_ERROR(torch.WriteRecord("byteorder", "little"));
  for (size_t i = 0; i < pickler.tensor_bytes().size(); ++i) {
    torch.tensors_.push_back(torch.records_.size());
    torch.Place("data/" + std::to_string(i), pickler.tensor_bytes()[i]);
  }
  return torch;
}

// Reserves room for a header, padded as torch does with an extra field, and the data.
void TorchWriter::Place(std::string name, uint64_t bytes) {
  Record record{.name = kFolder + name, .header = end_, .bytes = bytes};
  uint64_t data = end_ + kLocalBytes + record.name.size() + 4;
  if (bytes > kNarrowMax) data += kWideExtraBytes;
  record.data = (data + kAlignment - 1) / kAlignment * kAlignment;
  end_ = record.data + bytes;
  records_.push_back(std::move(record));
}

absl::Status TorchWriter::WriteRecord(const std::string& name, const std::string& content) {
  Place(name, content.size());
  Record& record = records_.back();
  record.written = content.size();
  record.crc = UpdateCrc32(0, content.data(), content.size());
  return WriteBytes(*file_, begin_ + record.data, content.data(), content.size());
}

absl::Status TorchWriter::Write(size_t tensor, int64_t first, std::span<const float> values) {
  PERDURE_CHECK(tensor < tensors_.size() && first >= 0);
  Record& record = records_[tensors_[tensor]];
  const uint64_t at = static_cast<uint64_t>(first) * sizeof(float);
  PERDURE_CHECK(at <= record.bytes && values.size_bytes() <= record.bytes - at);
  if (record.in_order && at == record.written)
    record.crc = UpdateCrc32(record.crc, values.data(), values.size_bytes());
  else
    record.in_order = false;
  record.written += values.size_bytes();
  return WriteBytes(*file_, begin_ + record.data + at, values.data(), values.size_bytes());
}

absl::Status TorchWriter::ReadCrc(Record& record) {
  std::vector<char> buffer(std::min<uint64_t>(record.bytes, uint64_t{4} << 20));
  record.crc = 0;
  for (uint64_t done = 0; done < record.bytes;) {
    const size_t count = std::min<uint64_t>(buffer.size(), record.bytes - done);
    RETURN_IF_ERROR(ReadBytes(*file_, begin_ + record.data + done, buffer.data(), count));
    record.crc = UpdateCrc32(record.crc, buffer.data(), count);
    done += count;
  }
  return absl::OkStatus();
}

absl::Status TorchWriter::WriteHeader(const Record& record) {
  const bool wide = record.bytes > kNarrowMax;
  std::string header = "PK\3\4";
  Append(header, wide ? 45 : 20, 2);
  Append(header, 0x0800, 2);  // Names in UTF-8.
  Append(header, 0, 6);       // Stored; no time.
  Append(header, record.crc, 4);
  for (int i = 0; i < 2; ++i) Append(header, wide ? 0xFFFFFFFF : record.bytes, 4);
  Append(header, record.name.size(), 2);
  const uint64_t extra = record.data - record.header - kLocalBytes - record.name.size();
  Append(header, extra, 2);
  header += record.name;
  if (wide) {
    Append(header, 1, 2);
    Append(header, kWideExtraBytes - 4, 2);
    for (int i = 0; i < 2; ++i) Append(header, record.bytes, 8);
  }
  const uint64_t padding = record.data - record.header - header.size() - 4;
  header += "FB";
  Append(header, padding, 2);
  header.append(padding, 'Z');
  PERDURE_CHECK(header.size() == record.data - record.header);
  return WriteBytes(*file_, begin_ + record.header, header.data(), header.size());
}

absl::Status TorchWriter::WriteDirectory() {
  std::string bytes;
  for (const Record& record : records_) {
    const bool wide = record.bytes > kNarrowMax || record.header > kNarrowMax;
    bytes += "PK\1\2";
    Append(bytes, wide ? 45 : 20, 2);
    Append(bytes, wide ? 45 : 20, 2);
    Append(bytes, 0x0800, 2);
    Append(bytes, 0, 6);
    Append(bytes, record.crc, 4);
    for (int i = 0; i < 2; ++i) Append(bytes, wide ? 0xFFFFFFFF : record.bytes, 4);
    Append(bytes, record.name.size(), 2);
    Append(bytes, wide ? 28 : 0, 2);
    bytes.append(10, '\0');  // No comment, disk 0, no attributes.
    Append(bytes, wide ? 0xFFFFFFFF : record.header, 4);
    bytes += record.name;
    if (!wide) continue;
    Append(bytes, 1, 2);
    Append(bytes, 24, 2);
    for (const uint64_t value : {record.bytes, record.bytes, record.header})
      Append(bytes, value, 8);
  }
  const uint64_t directory = end_, directory_bytes = bytes.size();
  bytes += "PK\6\6";
  Append(bytes, 44, 8);
  Append(bytes, 45, 2);
  Append(bytes, 45, 2);
  Append(bytes, 0, 8);  // Disks.
  for (int i = 0; i < 2; ++i) Append(bytes, records_.size(), 8);
  Append(bytes, directory_bytes, 8);
  Append(bytes, directory, 8);
  bytes += "PK\6\7";
  Append(bytes, 0, 4);
  Append(bytes, directory + directory_bytes, 8);
  Append(bytes, 1, 4);
  bytes += "PK\5\6";
  Append(bytes, 0, 4);
  for (int i = 0; i < 2; ++i) Append(bytes, std::min<uint64_t>(records_.size(), 0xFFFF), 2);
  Append(bytes, std::min<uint64_t>(directory_bytes, 0xFFFFFFFF), 4);
  Append(bytes, std::min<uint64_t>(directory, 0xFFFFFFFF), 4);
  Append(bytes, 0, 2);
  RETURN_IF_ERROR(WriteBytes(*file_, begin_ + end_, bytes.data(), bytes.size()));
  end_ += bytes.size();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> TorchWriter::Finish() {
  RETURN_IF_ERROR(WriteRecord("version", "3\n"));
  for (Record& record : records_) {
    PERDURE_CHECK(record.written == record.bytes);
    if (!record.in_order) RETURN_IF_ERROR(ReadCrc(record));
    RETURN_IF_ERROR(WriteHeader(record));
  }
  RETURN_IF_ERROR(WriteDirectory());
  return end_;
}

absl::Status WriteTorchFile(const std::string& path, const TorchValue& root) {
  ASSIGN_OR_RETURN(File file, CreateExportFile(path));
  ASSIGN_OR_RETURN(TorchWriter writer, TorchWriter::Begin(file, 0, root));
  RETURN_IF_ERROR(writer.Finish().status());
  RETURN_IF_ERROR(file.Sync());
  return file.Close();
}

}  // namespace perdure
