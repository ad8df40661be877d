// PERDURE_PROGRESS: where a trainer that is not ours says how far it is, one JSON object a line:
// {"step": 120, "loss": 2.31, "tokens": 983040}. Only "step" has to be there. It is appended to, by
// rank 0 of whatever generation runs; what is torn or no such line is passed over.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace perdure {

class ProgressFile {
 public:
  explicit ProgressFile(std::string path) : path_(std::move(path)) {}

  // What is there already counts no more as new.
  void SkipToEnd();
  // The newest line since the last call; nothing: there is none.
  std::optional<nlohmann::json> Poll();

  // The newest line of a file, whoever wrote it; nothing: there is none.
  static std::optional<nlohmann::json> Last(const std::string& path);

 private:
  std::string path_;
  int64_t read_ = 0;  // Bytes.
};

}  // namespace perdure
