// journal.jsonl: the story of a run for people and reports, one JSON object a line. Nothing reads
// it to decide.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class Journal {
 public:
  static absl::StatusOr<std::unique_ptr<Journal>> Open(const std::string& path);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Adds "time" (RFC 3339, UTC) and "event". `fields` is an object.
  absl::Status Append(std::string_view event, const nlohmann::json& fields);

 private:
  explicit Journal(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  absl::Status Write(std::string_view text);
  absl::Status WriteNow(std::string_view text);

  int fd_;
  std::string path_;
};

// "2026-11-21T10:00:00.123Z".
std::string TimeNow();

}  // namespace perdure
