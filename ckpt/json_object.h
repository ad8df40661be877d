// Strict reading of JSON objects: every key asked for is there with the right type and range, and
// no other key is.
//
// The first error stays in `status()` and names the field ("tensors[3].rows"); after it every read
// leaves its target alone, so that a caller reads all fields and looks once. Nothing throws.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/digest.h"

namespace perdure {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // Keys in the order of writing.

// DataLoss when `text` is not one JSON object.
absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view what);

OrderedJson HexList(const std::vector<Digest>& digests);

class JsonObject {
 public:
  // `where` prefixes field names in messages. `object` outlives this.
  JsonObject(const Json& object, std::string where);

  // Whether the key is there: of one that may be left out.
  bool Has(const char* key) const;
  void Int(const char* key, int64_t* out, int64_t least = 0,
           int64_t most = std::numeric_limits<int64_t>::max());
  void Unsigned(const char* key, uint64_t* out);
  void Number(const char* key, double* out);
  void Bool(const char* key, bool* out);
  void String(const char* key, std::string* out);
  void Hex(const char* key, Digest* out);
  void Ints(const char* key, std::vector<int64_t>* out);  // Each >= 0.
  void Digests(const char* key, std::vector<Digest>* out);
  void Strings(const char* key, std::vector<std::string>* out);
  // Must equal `value`.
  void Constant(const char* key, const Json& value);
  // The array, or null after an error.
  const Json* Array(const char* key);

  void Fail(const char* key, std::string_view what);
  // The first error, or that of a key nobody asked for.
  absl::Status Done();

 private:
  const Json* Take(const char* key);

  const Json& object_;
  std::string where_;
  std::vector<std::string> keys_;
  absl::Status status_;
};

}  // namespace perdure
