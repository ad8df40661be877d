#include "ckpt/convert/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr size_t kRankMax = 64;  // PyTorch's.

struct DType {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<DType, 15> kDTypes = {{{"BOOL", 1},
                                            {"U8", 1},
                                            {"I8", 1},
                                            {"F8_E5M2", 1},
                                            {"F8_E4M3", 1},
                                            {"I16", 2},
                                            {"U16", 2},
                                            {"F16", 2},
                                            {"BF16", 2},
                                            {"I32", 4},
                                            {"U32", 4},
                                            {"F32", 4},
                                            {"F64", 8},
                                            {"I64", 8},
                                            {"U64", 8}}};
static_assert(kDTypes.size() == static_cast<size_t>(SafetensorsDType::kU64) + 1);

// A foreign text in a message: short, and of one line.
std::string Quoted(std::string_view text) {
  return Json(text.substr(0, 200)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

// Events of the JSON parser. A document is never held as a tree: a header of 100 MB may describe
// one of many gigabytes. Each method that is not overridden refuses what it is told.
class StrictEvents : public nlohmann::json_sax<Json> {
 public:
  const absl::Status& status() const { return status_; }

  bool null() override { return Refuse("null"); }
  bool boolean(bool) override { return Refuse("true or false"); }
  bool number_integer(number_integer_t) override { return Refuse("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return Refuse("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Refuse("a fraction"); }
  bool string(string_t&) override { return Refuse("a string"); }
  bool binary(binary_t&) override { return Refuse("binary"); }
  bool start_array(size_t) override { return Refuse("an array"); }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    if (status_.ok())
      status_ = InvalidArgument("is not valid JSON at byte {} of its text", position);
    return false;
  }

 protected:
  virtual std::string Where() const = 0;
  bool Refuse(std::string_view what) { return Fail(fmt::format("has {} there", what)); }
  bool Fail(std::string_view what) {
    if (status_.ok()) status_ = InvalidArgument("{} {}", Where(), what);
    return false;
  }

 private:
  absl::Status status_;
};

class HeaderEvents final : public StrictEvents {
 public:
  SafetensorsHeader header;

  bool start_object(size_t) override {
    if (depth_ == 2) return Refuse("an object");
    if (++depth_ == 2 && !in_metadata_) header.tensors.push_back({.name = name_});
    return true;
  }

  bool key(string_t& key) override {
    if (depth_ == 2) return KeyOfEntry(key);
    name_ = key;
    in_metadata_ = key == "__metadata__";
    if (in_metadata_ && std::exchange(has_metadata_, true)) return Fail("is there twice");
    fields_.fill(false);
    key_.clear();
    return true;
  }

  bool end_object() override {
    if (--depth_ == 0 || in_metadata_) return true;
    for (size_t i = 0; i < kFields.size(); ++i)
      if (!fields_[i]) return Fail(fmt::format("has no {}", kFields[i]));
    return CheckBytes(header.tensors.back());
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) return AddMetadata(text);
    if (depth_ != 2 || key_ != "dtype") return Refuse("a string");
    const auto found = std::find_if(kDTypes.begin(), kDTypes.end(),
                                    [&](const DType& dtype) { return dtype.name == text; });
    if (found == kDTypes.end())
      return Fail(
          fmt::format("is {}, which is not known: written by a newer version?", Quoted(text)));
    Current().dtype = static_cast<SafetensorsDType>(found - kDTypes.begin());
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_array_ || key_ == "dtype") return Refuse("an array");
    in_array_ = true;
    offsets_ = 0;
    return true;
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (!in_array_) return Refuse("a number");
    if (key_ == "shape") {
      if (Current().shape.size() == kRankMax)
        return Fail(fmt::format("has more than {} dimensions", kRankMax));
      Current().shape.push_back(number);
      return true;
    }
    if (offsets_ == 2) return Fail("are more than two");
    (offsets_++ == 0 ? Current().begin : Current().end) = number;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    if (key_ == "data_offsets" && offsets_ != 2) return Fail("are not two");
    return true;
  }

 protected:
  std::string Where() const override {
    if (depth_ == 0) return "the header";
    if (name_.empty() && depth_ == 1) return "the header's object";
    if (in_metadata_) return "__metadata__";
    return fmt::format("tensor {}{}{}", Quoted(name_), key_.empty() ? "" : ": ", key_);
  }

 private:
  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

  SafetensorsTensor& Current() { return header.tensors.back(); }

  bool KeyOfEntry(const std::string& key) {
    if (in_metadata_) {
      key_ = key;
      return true;
    }
    const auto found = std::find(kFields.begin(), kFields.end(), key);
    if (found == kFields.end()) return Fail(fmt::format("has the unknown key {}", Quoted(key)));
    if (std::exchange(fields_[static_cast<size_t>(found - kFields.begin())], true))
      return Fail(fmt::format("has {} twice", key));
    key_ = key;
    return true;
  }

  bool AddMetadata(const std::string& text) {
    if (!header.metadata.emplace(key_, text).second)
      return Fail(fmt::format("has {} twice", Quoted(key_)));
    return true;
  }

  bool CheckBytes(const SafetensorsTensor& tensor) {
    key_.clear();
    uint64_t bytes = 0;
    if (!TensorBytes(tensor.shape, tensor.dtype, &bytes))
      return Fail(
          fmt::format("has shape {}, more than 64 bits can count", ShapeName(tensor.shape)));
    if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes)
      return Fail(fmt::format("has {} bytes by its shape {} of {}, but stands at [{}, {})", bytes,
                              ShapeName(tensor.shape), DTypeName(tensor.dtype), tensor.begin,
                              tensor.end));
    return true;
  }

  int depth_ = 0;
  bool in_metadata_ = false, has_metadata_ = false, in_array_ = false;
  std::string name_;              // Of the tensor.
  std::string key_;               // Within it.
  std::array<bool, 3> fields_{};  // Which of kFields it has.
  int offsets_ = 0;
};

class IndexEvents final : public StrictEvents {
 public:
  std::map<std::string, std::string> weight_map;
  bool has_weight_map = false;

  // Whatever stands beside weight_map ("metadata") has no bearing on the tensors.
  bool null() override { return !InMap() || Refuse("null"); }
  bool boolean(bool) override { return !InMap() || Refuse("true or false"); }
  bool number_integer(number_integer_t) override { return !InMap() || Refuse("a number"); }
  bool number_unsigned(number_unsigned_t) override { return !InMap() || Refuse("a number"); }
  bool number_float(number_float_t, const string_t&) override {
    return !InMap() || Refuse("a number");
  }
  bool start_array(size_t) override { return Refuse("an array"); }

  bool start_object(size_t) override {
    if (depth_ == 2) return Refuse("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    (depth_ == 1 ? section_ : name_) = key;
    if (depth_ == 1 && key == "weight_map" && std::exchange(has_weight_map, true))
      return Fail("is there twice");
    return true;
  }
  bool string(string_t& text) override {
    if (!InMap()) return true;
    if (depth_ != 2) return Refuse("a string");
    if (!weight_map.emplace(name_, text).second)
      return Fail(fmt::format("has {} twice", Quoted(name_)));
    return true;
  }

 protected:
  std::string Where() const override { return section_.empty() ? "the index" : section_; }

 private:
  bool InMap() const { return depth_ == 0 || section_ == "weight_map"; }

  int depth_ = 0;
  std::string section_, name_;
};

absl::Status Parse(std::string_view text, StrictEvents* events) {
  // The parser takes a zero byte for the end of the text.
  if (const size_t zero = text.find('\0'); zero != text.npos)
    return InvalidArgument("has a zero byte at byte {} of its text", zero);
  const bool parsed = Json::sax_parse(text.begin(), text.end(), events);
  PERDURE_CHECK(parsed == events->status().ok());
  return events->status();
}

absl::Status CheckNames(const std::vector<SafetensorsTensor>& by_name) {
  for (size_t i = 1; i < by_name.size(); ++i)
    if (by_name[i].name == by_name[i - 1].name)
      return InvalidArgument("tensor {} is there twice", Quoted(by_name[i].name));
  return absl::OkStatus();
}

absl::Status CheckCover(const std::vector<SafetensorsTensor>& tensors, uint64_t data_bytes) {
  std::vector<const SafetensorsTensor*> by_place;
  for (const SafetensorsTensor& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t end = 0;
  for (const SafetensorsTensor* tensor : by_place) {
    if (tensor->begin != end)
      return InvalidArgument(
          "tensor {} begins at byte {} of the data, {} byte {}", Quoted(tensor->name),
          tensor->begin,
          tensor->begin < end ? "inside of another that ends at" : "behind a hole from", end);
    end = tensor->end;
  }
  if (end != data_bytes)
    return InvalidArgument("tensors end at byte {} of the data, which has {}: {}", end, data_bytes,
                           end > data_bytes ? "truncated" : "something was added");
  return absl::OkStatus();
}

}  // namespace

std::string_view DTypeName(SafetensorsDType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].name;
}

uint64_t DTypeBytes(SafetensorsDType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }

std::string ShapeName(std::span<const uint64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool TensorBytes(const std::vector<uint64_t>& shape, SafetensorsDType dtype, uint64_t* bytes) {
  *bytes = DTypeBytes(dtype);
  for (const uint64_t extent : shape)
    if (__builtin_mul_overflow(*bytes, extent, bytes)) return false;
  return true;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text,
                                                         uint64_t data_bytes) {
  if (!text.starts_with('{')) return InvalidArgument("has a header that does not begin with {{");
  HeaderEvents events;
  RETURN_IF_ERROR(Parse(text, &events));
  std::vector<SafetensorsTensor>& tensors = events.header.tensors;
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  RETURN_IF_ERROR(CheckNames(tensors));
  RETURN_IF_ERROR(CheckCover(tensors, data_bytes));
  return std::move(events.header);
}

std::string PrintSafetensorsHeader(const std::vector<SafetensorsTensor>& tensors) {
  OrderedJson header;
  header["__metadata__"] = {{"format", "pt"}};
  for (const SafetensorsTensor& tensor : tensors)
    header[tensor.name] = {{"dtype", DTypeName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.begin, tensor.end}}};
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  static_assert(std::endian::native == std::endian::little);
  const uint64_t length = text.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + text;
}

absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(std::string_view text) {
  IndexEvents events;
  RETURN_IF_ERROR(Parse(text, &events));
  if (!events.has_weight_map) return InvalidArgument("has no weight_map");
  return std::move(events.weight_map);
}

}  // namespace perdure
