#include "ckpt/convert/dcp_metadata.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "ckpt/convert/pickle_view.h"
#include "ckpt/convert/pickle_writer.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr const char* kModule = "torch.distributed.checkpoint.metadata";
constexpr const char* kFilesystem = "torch.distributed.checkpoint.filesystem";
constexpr TorchType kTypes[] = {TorchType::kFloat32, TorchType::kBFloat16, TorchType::kFloat16,
                                TorchType::kFloat64, TorchType::kInt64,    TorchType::kInt32,
                                TorchType::kInt16,   TorchType::kInt8,     TorchType::kUint8,
                                TorchType::kBool};

// A chunk's name: of the tensor, and where it begins; no offsets for a value.
using Index = std::pair<std::string, std::optional<std::vector<int64_t>>>;

// Fields of an object of class `name` in one of torch's modules for this; they moved once.
absl::StatusOr<PickleView> FieldsOf(const PickleView& value, std::string_view name) {
  const PickleValue& object = value.value();
  if (object.kind != PickleKind::kObject || object.callee->name != name ||
      !object.callee->text.starts_with("torch.distributed."))
    return value.Unexpected(fmt::format("an object of {} was expected", name));
  if (object.state == nullptr) return value.Unexpected("it has no fields");
  return PickleView(*object.state, value.where());
}

bool IsObjectOf(const PickleView& value, std::string_view name) {
  return value.Is(PickleKind::kObject) && value.value().callee->name == name;
}

absl::StatusOr<std::vector<int64_t>> Extents(const PickleView& fields, std::string_view key) {
  ASSIGN_OR_RETURN(const PickleView value, fields.Get(key));
  ASSIGN_OR_RETURN(const std::vector<int64_t> extents, value.Ints());
  for (const int64_t extent : extents)
    if (extent < 0 || extent > int64_t{1} << 40)
      return value.Unexpected("extents of a tensor were expected");
  return extents;
}

absl::StatusOr<TorchType> TypeOf(const PickleView& properties) {
  const PickleValue& object = properties.value();
  if (!IsObjectOf(properties, "TensorProperties") || object.state == nullptr)
    return properties.Unexpected("TensorProperties were expected");
  const PickleView state(*object.state, properties.where());
  ASSIGN_OR_RETURN(const std::vector<PickleView> fields, state.Items());
  if (fields.empty()) return state.Unexpected("a type was expected");
  for (const TorchType type : kTypes)
    if (fields[0].IsGlobal("torch", TorchTypeName(type))) return type;
  return fields[0].Unexpected("no type that is read");
}

absl::StatusOr<DcpTensor> ReadTensor(const PickleView& value) {
  ASSIGN_OR_RETURN(const PickleView fields, FieldsOf(value, "TensorStorageMetadata"));
  ASSIGN_OR_RETURN(const PickleView properties, fields.Get("properties"));
  DcpTensor tensor;
  ASSIGN_OR_RETURN(tensor.type, TypeOf(properties));
  ASSIGN_OR_RETURN(tensor.shape, Extents(fields, "size"));
  ASSIGN_OR_RETURN(const PickleView list, fields.Get("chunks"));
  ASSIGN_OR_RETURN(const std::vector<PickleView> chunks, list.Items());
  for (const PickleView& view : chunks) {
    ASSIGN_OR_RETURN(const PickleView chunk, FieldsOf(view, "ChunkStorageMetadata"));
    DcpChunk place;
    ASSIGN_OR_RETURN(place.offsets, Extents(chunk, "offsets"));
    ASSIGN_OR_RETURN(place.sizes, Extents(chunk, "sizes"));
    if (place.offsets.size() != tensor.shape.size() || place.sizes.size() != tensor.shape.size())
      return chunk.Unexpected("a chunk of other dimensions than its tensor");
    // Ranks that got nothing of a tensor still have a chunk.
    const bool empty = std::find(place.sizes.begin(), place.sizes.end(), 0) != place.sizes.end();
    if (!empty) tensor.chunks.push_back(std::move(place));
  }
  return tensor;
}

absl::StatusOr<Index> ReadIndex(const PickleView& value) {
  ASSIGN_OR_RETURN(const PickleView fields, FieldsOf(value, "MetadataIndex"));
  ASSIGN_OR_RETURN(const PickleView fqn, fields.Get("fqn"));
  Index index;
  ASSIGN_OR_RETURN(index.first, fqn.String());
  ASSIGN_OR_RETURN(const std::optional<PickleView> offset, fields.Find("offset"));
  if (offset.has_value() && !offset->IsNone()) {
    ASSIGN_OR_RETURN(index.second, offset->Ints());
  }
  return index;
}

absl::StatusOr<DcpPlace> ReadPlace(const PickleView& value) {
  ASSIGN_OR_RETURN(const PickleView fields, FieldsOf(value, "_StorageInfo"));
  ASSIGN_OR_RETURN(const PickleView path, fields.Get("relative_path"));
  DcpPlace place;
  ASSIGN_OR_RETURN(place.file, path.String());
  if (place.file.empty() || place.file.front() == '.' ||
      place.file.find_first_of(std::string_view("/\0", 2)) != std::string::npos)
    return path.Unexpected("the plain name of a file beside .metadata was expected");
  for (const auto& [key, out] : {std::pair("offset", &place.offset), {"length", &place.bytes}}) {
    ASSIGN_OR_RETURN(const PickleView number, fields.Get(key));
    ASSIGN_OR_RETURN(const int64_t count, number.Int());
    if (count < 0) return number.Unexpected("a count of bytes was expected");
    *out = static_cast<uint64_t>(count);
  }
  ASSIGN_OR_RETURN(const std::optional<PickleView> transforms,
                   fields.Find("transform_descriptors"));
  if (transforms.has_value() && !transforms->IsNone()) {
    ASSIGN_OR_RETURN(const std::vector<PickleView> steps, transforms->Items());
    if (!steps.empty())
      return transforms->Unexpected("compressed or encrypted checkpoints are not read");
  }
  return place;
}

absl::StatusOr<std::map<Index, DcpPlace>> ReadPlaces(const PickleView& metadata) {
  ASSIGN_OR_RETURN(const PickleView storage, metadata.Get("storage_data"));
  ASSIGN_OR_RETURN(const std::vector<PickleView::Pair> pairs, storage.Pairs());
  std::map<Index, DcpPlace> places;
  for (const auto& [key, value] : pairs) {
    ASSIGN_OR_RETURN(Index index, ReadIndex(key));
    ASSIGN_OR_RETURN(DcpPlace place, ReadPlace(value));
    const std::string name = index.first;
    if (!places.emplace(std::move(index), std::move(place)).second)
      return DataLoss("{}: two places for one chunk of {}", storage.where(), name);
  }
  return places;
}

absl::StatusOr<DcpMetadata> ReadTree(const PickleView& root) {
  ASSIGN_OR_RETURN(const PickleView metadata, FieldsOf(root, "Metadata"));
  ASSIGN_OR_RETURN(const auto places, ReadPlaces(metadata));
  ASSIGN_OR_RETURN(const PickleView dict, metadata.Get("state_dict_metadata"));
  ASSIGN_OR_RETURN(const std::vector<PickleView::Pair> pairs, dict.Pairs());
  DcpMetadata result;
  for (const auto& [key, value] : pairs) {
    ASSIGN_OR_RETURN(const std::string name, key.String());
    bool is_new = true;
    if (IsObjectOf(value, "BytesStorageMetadata")) {
      const auto place = places.find({name, std::nullopt});
      if (place == places.end()) return DataLoss("{} has no place in storage_data", value.where());
      is_new = result.values.emplace(name, place->second).second;
    } else {
      ASSIGN_OR_RETURN(DcpTensor tensor, ReadTensor(value));
      for (DcpChunk& chunk : tensor.chunks) {
        const auto place = places.find({name, chunk.offsets});
        if (place == places.end())
          return DataLoss("{}: the chunk at [{}] has no place in storage_data", value.where(),
                          fmt::join(chunk.offsets, ", "));
        chunk.place = place->second;
      }
      is_new = result.tensors.emplace(name, std::move(tensor)).second;
    }
    if (!is_new) return DataLoss("{} is there twice", value.where());
  }
  return result;
}

// NEWOBJ of a class of torch's; the caller adds its fields.
void BeginObject(PickleWriter& out, const char* module, const char* name) {
  out.Global(module, name);
  out.Op(kPickleEmptyTuple);
  out.Op(kPickleNewObj);
}

void BeginFields(PickleWriter& out) {
  out.Op(kPickleEmptyDict);
  out.Op(kPickleMark);
}

void EndFields(PickleWriter& out) {
  out.Op(kPickleSetItems);
  out.Op(kPickleBuild);
}

void WriteTensor(PickleWriter& out, const DcpTensor& tensor) {
  BeginObject(out, kModule, "TensorStorageMetadata");
  BeginFields(out);
  out.String("properties");
  BeginObject(out, kModule, "TensorProperties");
  out.Op(kPickleMark);
  out.Global("torch", std::string(TorchTypeName(tensor.type)));
  out.Global("torch.serialization", "_get_layout");
  out.String("torch.strided");
  out.Op(kPickleTuple1);
  out.Op(kPickleReduce);
  out.Bool(false);  // requires_grad.
  out.Global(kModule, "_MEM_FORMAT_ENCODING");
  out.Int(0);  // Contiguous.
  out.Op(kPickleTuple1);
  out.Op(kPickleReduce);
  out.Bool(false);  // pin_memory.
  out.Op(kPickleTuple);
  out.Op(kPickleBuild);
  out.String("size");
  out.Size(tensor.shape);
  out.String("chunks");
  out.Op(kPickleEmptyList);
  out.Op(kPickleMark);
  for (const DcpChunk& chunk : tensor.chunks) {
    BeginObject(out, kModule, "ChunkStorageMetadata");
    BeginFields(out);
    out.String("offsets");
    out.Size(chunk.offsets);
    out.String("sizes");
    out.Size(chunk.sizes);
    EndFields(out);
  }
  out.Op(kPickleAppends);
  EndFields(out);
}

void WritePlace(PickleWriter& out, const std::string& name, const DcpChunk* chunk, int64_t index,
                const DcpPlace& place) {
  BeginObject(out, kModule, "MetadataIndex");
  BeginFields(out);
  out.String("fqn");
  out.String(name);
  out.String("index");
  if (chunk != nullptr) {
    out.Int(index);
    out.String("offset");
    out.Size(chunk->offsets);
  } else {
    out.None();
  }
  EndFields(out);
  BeginObject(out, kFilesystem, "_StorageInfo");
  BeginFields(out);
  out.String("relative_path");
  out.String(place.file);
  out.String("offset");
  out.Int(static_cast<int64_t>(place.offset));
  out.String("length");
  out.Int(static_cast<int64_t>(place.bytes));
  EndFields(out);
}

}  // namespace

absl::StatusOr<DcpMetadata> ReadDcpMetadata(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / ".metadata").string();
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return NotFound("{}: {}; a checkpoint has one, written last", path, error.message());
  if (bytes > kPickleBytesMax)
    return DataLoss("{} has {} bytes; more than {} are refused", path, bytes, kPickleBytesMax);
  ASSIGN_OR_RETURN(std::string pickle, ReadFile(path));
  ASSIGN_OR_RETURN(const PickleTree tree, Unpickle(std::move(pickle), path));
  return ReadTree(PickleView(tree.root(), path));
}

std::string PickleDcpMetadata(const DcpMetadata& metadata,
                              const std::map<std::string, std::vector<std::string>>& paths) {
  PickleWriter out(4);
  BeginObject(out, kModule, "Metadata");
  BeginFields(out);
  out.String("state_dict_metadata");
  BeginFields(out);
  for (const auto& [name, tensor] : metadata.tensors) {
    out.String(name);
    WriteTensor(out, tensor);
  }
  for (const auto& [name, place] : metadata.values) {
    out.String(name);
    BeginObject(out, kModule, "BytesStorageMetadata");
  }
  out.Op(kPickleSetItems);
  out.String("planner_data");
  BeginFields(out);
  for (const auto& [name, path] : paths) {
    out.String(name);
    out.Op(kPickleMark);
    for (const std::string& key : path) out.String(key);
    out.Op(kPickleTuple);
  }
  out.Op(kPickleSetItems);
  out.String("storage_data");
  BeginFields(out);
  for (const auto& [name, tensor] : metadata.tensors)
    for (size_t i = 0; i < tensor.chunks.size(); ++i)
      WritePlace(out, name, &tensor.chunks[i], static_cast<int64_t>(i), tensor.chunks[i].place);
  for (const auto& [name, place] : metadata.values) WritePlace(out, name, nullptr, 0, place);
  out.Op(kPickleSetItems);
  EndFields(out);
  return std::move(out).Finish();
}

}  // namespace perdure
