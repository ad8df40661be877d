// A file of lines that somebody else appends to, and sometimes cuts: read as it grows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace perdure {

class GrowingFile {
 public:
  explicit GrowingFile(std::string path) : path_(std::move(path)) {}

  // Calls `line` with each whole line, without its end, that came since the last call. Where what
  // was read before is not there any more (cut off, replaced), it calls `forget` first, and begins
  // anew. NotFound: there is no file.
  absl::Status Read(const std::function<void()>& forget,
                    const std::function<void(std::string_view line)>& line);

 private:
  const std::string path_;
  int64_t read_ = 0;  // Bytes of whole lines,
  std::string last_;  // the last of them with its end: it must still be where it was.
};

}  // namespace perdure
