#include "ckpt/json_object.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view what) {
  Json value = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return DataLoss("{} is not valid JSON", what);
  if (!value.is_object()) return DataLoss("{} is not a JSON object", what);
  return value;
}

OrderedJson HexList(const std::vector<Digest>& digests) {
  OrderedJson list = OrderedJson::array();
  for (const Digest& digest : digests) list.push_back(digest.Hex());
  return list;
}

JsonObject::JsonObject(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object_.is_object())
    status_ = DataLoss("{} is not a JSON object", where_.empty() ? "value" : where_);
}

void JsonObject::Fail(const char* key, std::string_view what) {
  if (!status_.ok()) return;
  // An element ("[3] is ...") belongs to its key.
  status_ = DataLoss("field {}{}{}{}{}", where_, where_.empty() ? "" : ".", key,
                     what.starts_with('[') ? "" : " ", what);
}

bool JsonObject::Has(const char* key) const { return object_.contains(key); }

const Json* JsonObject::Take(const char* key) {
  if (!status_.ok()) return nullptr;
  const auto found = object_.find(key);
  if (found == object_.end()) {
    Fail(key, "is missing");
    return nullptr;
  }
  keys_.emplace_back(key);
  return &*found;
}

void JsonObject::Int(const char* key, int64_t* out, int64_t least, int64_t most) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_number_integer()) return Fail(key, "is not an integer");
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return Fail(key, "does not fit into 63 bits");
  const int64_t number = value->get<int64_t>();
  if (number < least || number > most)
    return Fail(key, fmt::format("is {}; {} to {} expected", number, least, most));
  *out = number;
}

void JsonObject::Unsigned(const char* key, uint64_t* out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_number_unsigned()) return Fail(key, "is not an integer from 0 to 2^64 - 1");
  *out = value->get<uint64_t>();
}

void JsonObject::Number(const char* key, double* out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_number()) return Fail(key, "is not a number");
  const double number = value->get<double>();
  if (!std::isfinite(number)) return Fail(key, "is not finite");
  *out = number;
}

void JsonObject::Bool(const char* key, bool* out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(key, "is not true or false");
  *out = value->get<bool>();
}

void JsonObject::String(const char* key, std::string* out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(key, "is not a string");
  *out = value->get<std::string>();
}

void JsonObject::Hex(const char* key, Digest* out) {
  std::string hex;
  String(key, &hex);
  if (!status_.ok()) return;
  absl::StatusOr<Digest> digest = Digest::FromHex(hex);
  if (!digest.ok()) return Fail(key, "is wrong: " + Message(digest.status()));
  *out = *digest;
}

const Json* JsonObject::Array(const char* key) {
  const Json* value = Take(key);
  if (value == nullptr) return nullptr;
  if (value->is_array()) return value;
  Fail(key, "is not an array");
  return nullptr;
}

void JsonObject::Ints(const char* key, std::vector<int64_t>* out) {
  const Json* array = Array(key);
  if (array == nullptr) return;
  std::vector<int64_t> numbers;
  numbers.reserve(array->size());
  for (const Json& value : *array) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return Fail(key, fmt::format("[{}] is not an integer from 0 to 2^63 - 1", numbers.size()));
    numbers.push_back(value.get<int64_t>());
  }
  *out = std::move(numbers);
}

void JsonObject::Strings(const char* key, std::vector<std::string>* out) {
  const Json* array = Array(key);
  if (array == nullptr) return;
  std::vector<std::string> strings;
  strings.reserve(array->size());
  for (const Json& value : *array) {
    if (!value.is_string()) return Fail(key, fmt::format("[{}] is not a string", strings.size()));
    strings.push_back(value.get<std::string>());
  }
  *out = std::move(strings);
}

void JsonObject::Digests(const char* key, std::vector<Digest>* out) {
  std::vector<std::string> strings;
  Strings(key, &strings);
  if (!status_.ok()) return;
  std::vector<Digest> digests;
  digests.reserve(strings.size());
  for (const std::string& hex : strings) {
    absl::StatusOr<Digest> digest = Digest::FromHex(hex);
    if (!digest.ok())
      return Fail(key, fmt::format("[{}] is wrong: {}", digests.size(), Message(digest.status())));
    digests.push_back(*digest);
  }
  *out = std::move(digests);
}

void JsonObject::Constant(const char* key, const Json& value) {
  const Json* found = Take(key);
  if (found == nullptr || *found == value) return;
  Fail(key, fmt::format("is {}; this version reads {} only",
                        found->dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80),
                        value.dump()));
}

absl::Status JsonObject::Done() {
  if (!status_.ok() || keys_.size() == object_.size()) return status_;
  for (const auto& item : object_.items())
    if (std::find(keys_.begin(), keys_.end(), item.key()) == keys_.end()) {
      Fail(item.key().c_str(), "is unknown: written by a newer version?");
      break;
    }
  return status_;
}

}  // namespace perdure
