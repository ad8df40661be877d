#include "ckpt/convert/torch_file.h"

#include <algorithm>
#include <utility>

#include "ckpt/convert/foreign_file.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct TypeInfo {
  TorchType type;
  std::string_view name;
  std::string_view storage;  // In module torch.
  int64_t bytes;
};
constexpr TypeInfo kTypes[] = {
    {TorchType::kFloat32, "float32", "FloatStorage", 4},
    {TorchType::kBFloat16, "bfloat16", "BFloat16Storage", 2},
    {TorchType::kFloat16, "float16", "HalfStorage", 2},
    {TorchType::kFloat64, "float64", "DoubleStorage", 8},
    {TorchType::kInt64, "int64", "LongStorage", 8},
    {TorchType::kInt32, "int32", "IntStorage", 4},
    {TorchType::kInt16, "int16", "ShortStorage", 2},
    {TorchType::kInt8, "int8", "CharStorage", 1},
    {TorchType::kUint8, "uint8", "ByteStorage", 1},
    {TorchType::kBool, "bool", "BoolStorage", 1},
};
constexpr size_t kDimensionsMax = 64;
// Real ones have some megabytes; a value in memory is a hundred times its shortest form.
constexpr uint64_t kCodeBytesMax = uint64_t{64} << 20;

const TypeInfo& InfoOf(TorchType type) { return kTypes[static_cast<size_t>(type)]; }

absl::Status CheckSmallRecord(const File& file, const ZipFile& zip, const char* name,
                              std::string_view expected, const std::string& what,
                              std::string_view hint) {
  const ZipRecord* record = zip.Find(name);
  if (record == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadZipRecord(file, *record, 64, what));
  if (text == expected) return absl::OkStatus();
  return DataLoss("{}: {} says \"{}\" where \"{}\" is read: {}", what, name,
                  text.substr(0, text.find('\n')), expected.substr(0, expected.find('\n')), hint);
}

absl::Status CheckBegin(const File& file, uint64_t offset, uint64_t bytes,
                        const std::string& what) {
  char begin[4] = {};
  if (bytes < sizeof(begin)) return DataLoss("{} has {} bytes: truncated", what, bytes);
  RETURN_IF_ERROR(ReadBytes(file, offset, begin, sizeof(begin)));
  const std::string_view magic(begin, sizeof(begin));
  if (magic == "PK\3\4") return absl::OkStatus();
  if (magic.starts_with("\x80\x02\x8a\x0a"))
    return DataLoss(
        "{} was written before torch 1.6, which is not read: torch.load and torch.save it once",
        what);
  return DataLoss("{} is not a file of torch.save", what);
}

// Index of the last element from the first, or -1 where something overflows.
int64_t LastIndex(const std::vector<int64_t>& shape, const std::vector<int64_t>& stride) {
  __int128 last = 0, count = 1;
  constexpr __int128 kMost = int64_t{1} << 60;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0 || stride[i] < 0) return -1;
    count *= std::max<int64_t>(shape[i], 1);  // So that no product of some extents overflows.
    last += static_cast<__int128>(std::max<int64_t>(shape[i] - 1, 0)) * stride[i];
    if (count > kMost || last > kMost) return -1;
  }
  return static_cast<int64_t>(last);
}

}  // namespace

std::string_view TorchTypeName(TorchType type) { return InfoOf(type).name; }
int64_t TorchTypeBytes(TorchType type) { return InfoOf(type).bytes; }

int64_t TorchTensor::size() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

bool TorchTensor::contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape.size(); i > 0; --i) {
    if (shape[i - 1] != 1 && stride[i - 1] != expected) return false;
    expected *= shape[i - 1];
  }
  return true;
}

absl::StatusOr<TorchFile> TorchFile::Open(std::shared_ptr<const File> file, uint64_t offset,
                                          uint64_t bytes, std::string what) {
  ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (offset > size || bytes > size - offset)
    return DataLoss("{}: bytes {} to {} lie outside of {}, which has {}", what, offset,
                    offset + bytes, file->path(), size);
  RETURN_IF_ERROR(CheckBegin(*file, offset, bytes, what));
  TorchFile torch;
  torch.file_ = std::move(file);
  torch.what_ = std::move(what);
  ASSIGN_OR_RETURN(torch.zip_, ZipFile::Open(*torch.file_, offset, bytes, torch.what_));
  RETURN_IF_ERROR(CheckSmallRecord(*torch.file_, torch.zip_, "byteorder", "little", torch.what_,
                                   "save it on a little-endian machine"));
  RETURN_IF_ERROR(CheckSmallRecord(*torch.file_, torch.zip_, "version", "3\n", torch.what_,
                                   "another version of the format"));
  const ZipRecord* pickle = torch.zip_.Find("data.pkl");
  if (pickle == nullptr)
    return DataLoss("{} has no data.pkl: a zip file, but not of torch.save", torch.what_);
  ASSIGN_OR_RETURN(std::string code,
                   ReadZipRecord(*torch.file_, *pickle, kCodeBytesMax, torch.what_));
  ASSIGN_OR_RETURN(torch.tree_, Unpickle(std::move(code), torch.what_ + ": data.pkl"));
  return torch;
}

absl::StatusOr<TorchFile> TorchFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(File file, OpenForeignFile(path));
  ASSIGN_OR_RETURN(const uint64_t bytes, file.Size());
  return Open(std::make_shared<const File>(std::move(file)), 0, bytes, path);
}

absl::StatusOr<TorchFile::Storage> TorchFile::FindStorage(const PickleView& id) const {
  if (!id.Is(PickleKind::kPersistentId)) return id.Unexpected("a storage was expected");
  const PickleView tuple(*id.value().args, id.where());
  ASSIGN_OR_RETURN(const std::vector<PickleView> parts, tuple.Items());
  if (parts.size() != 5) return tuple.Unexpected("a storage's id has five parts");
  ASSIGN_OR_RETURN(const std::string kind, parts[0].String());
  ASSIGN_OR_RETURN(const std::string key, parts[2].String());
  ASSIGN_OR_RETURN(const int64_t elements, parts[4].Int());
  if (kind != "storage") return parts[0].Unexpected("\"storage\" was expected");
  const TypeInfo* info = nullptr;
  for (const TypeInfo& known : kTypes)
    if (parts[1].IsGlobal("torch", known.storage)) info = &known;
  if (info == nullptr) return parts[1].Unexpected("no type of storage that is read");
  const ZipRecord* record = zip_.Find("data/" + key);
  if (record == nullptr) return DataLoss("{}: there is no record data/{}", id.where(), key);
  if (elements < 0 || record->bytes % static_cast<uint64_t>(info->bytes) != 0 ||
      record->bytes / static_cast<uint64_t>(info->bytes) != static_cast<uint64_t>(elements))
    return DataLoss("{}: record data/{} has {} bytes; {} elements of {} were expected", id.where(),
                    key, record->bytes, elements, info->name);
  return Storage{info->type, record->offset, elements};
}

absl::StatusOr<TorchTensor> TorchFile::Tensor(const PickleView& value) const {
  if (value.IsCall("torch._utils", "_rebuild_parameter")) {
    ASSIGN_OR_RETURN(const std::vector<PickleView> parts,
                     value.CallArguments("torch._utils", "_rebuild_parameter", 1));
    // One step only: a parameter of a parameter is nothing that torch writes.
    if (parts[0].IsCall("torch._utils", "_rebuild_parameter"))
      return value.Unexpected("a parameter of a tensor was expected");
    return Tensor(parts[0]);
  }
  if (!value.IsCall("torch._utils", "_rebuild_tensor_v2"))
    return value.Unexpected("a tensor was expected");
  ASSIGN_OR_RETURN(const std::vector<PickleView> parts,
                   value.CallArguments("torch._utils", "_rebuild_tensor_v2", 4));
  ASSIGN_OR_RETURN(const Storage storage, FindStorage(parts[0]));
  ASSIGN_OR_RETURN(const int64_t first, parts[1].Int());
  TorchTensor tensor{.type = storage.type};
  ASSIGN_OR_RETURN(tensor.shape, parts[2].Ints());
  ASSIGN_OR_RETURN(tensor.stride, parts[3].Ints());
  if (tensor.shape.size() != tensor.stride.size() || tensor.shape.size() > kDimensionsMax)
    return value.Unexpected(fmt::format("a tensor of {} extents and {} strides",
                                        tensor.shape.size(), tensor.stride.size()));
  const int64_t last = LastIndex(tensor.shape, tensor.stride);
  const bool is_empty = last >= 0 && tensor.size() == 0;
  if (last < 0 || first < 0 || first > storage.elements ||
      (!is_empty && last >= storage.elements - first))
    return value.Unexpected(fmt::format("its elements {} to {} leave a storage of {}", first,
                                        first + last, storage.elements));
  tensor.offset = storage.offset + static_cast<uint64_t>(first * InfoOf(storage.type).bytes);
  return tensor;
}

absl::StatusOr<int64_t> TorchFile::Integer(const PickleView& value) const {
  if (value.Is(PickleKind::kInt)) return value.Int();
  ASSIGN_OR_RETURN(const TorchTensor tensor, Tensor(value));
  if (tensor.size() != 1) return value.Unexpected("a tensor of one element was expected");
  if (tensor.type == TorchType::kInt64) {
    int64_t integer = 0;
    RETURN_IF_ERROR(ReadBytes(*file_, tensor.offset, &integer, sizeof(integer)));
    return integer;
  }
  float number = 0;
  RETURN_IF_ERROR(ReadTorchFloats(*file_, tensor, 0, {&number, 1}));
  const bool fits = number >= -0x1p62F && number <= 0x1p62F;
  if (!fits || static_cast<float>(static_cast<int64_t>(number)) != number)
    return DataLoss("{} is a tensor of {}: a whole number was expected", value.where(), number);
  return static_cast<int64_t>(number);
}

}  // namespace perdure
