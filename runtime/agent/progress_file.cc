#include "runtime/agent/progress_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// Of a file, as much as a look reads: a line is short, and only the newest counts.
constexpr int64_t kLookBytes = 64 << 10;

// What the file has from `from` on, of that its last kLookBytes; `end`: its size.
std::string ReadFrom(const std::string& path, int64_t from, int64_t* end) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info = {};
  if (!file.open() || ::fstat(file.get(), &info) != 0) return "";
  *end = info.st_size;
  const int64_t begin = std::max(from, info.st_size - kLookBytes);
  if (begin >= info.st_size) return "";
  std::string text(static_cast<size_t>(info.st_size - begin), '\0');
  const ssize_t got = ::pread(file.get(), text.data(), text.size(), begin);
  text.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

// The last whole line that says a step.
std::optional<Json> Newest(std::string_view text) {
  while (true) {
    const size_t end = text.rfind('\n');
    if (end == std::string_view::npos) return std::nullopt;
    text = text.substr(0, end);
    const size_t before = text.rfind('\n');
    const std::string_view line = before == std::string_view::npos ? text : text.substr(before + 1);
    Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<int64_t>() >= 0)
      return json;
    if (before == std::string_view::npos) return std::nullopt;
    text = text.substr(0, before + 1);
  }
}

}  // namespace

void ProgressFile::SkipToEnd() {
  struct stat info = {};
  read_ = ::stat(path_.c_str(), &info) == 0 ? info.st_size : 0;
}

std::optional<Json> ProgressFile::Poll() {
  int64_t end = 0;
  const std::string text = ReadFrom(path_, read_, &end);
  // Somebody has begun it anew.
  if (end < read_) read_ = 0;
  const size_t whole = text.rfind('\n');
  if (whole == std::string::npos) return std::nullopt;
  read_ = end - static_cast<int64_t>(text.size() - whole - 1);
  return Newest(text);
}

std::optional<Json> ProgressFile::Last(const std::string& path) {
  int64_t end = 0;
  return Newest(ReadFrom(path, 0, &end));
}

}  // namespace perdure
