#include "runtime/data/text_sources.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

void Skip(SkipReason reason, TextSources* sources) {
  ++sources->skipped[static_cast<size_t>(reason)];
}

void ListFolder(const fs::path& folder, TextSources* sources) {
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  if (error) return Skip(SkipReason::kUnreadable, sources);
  for (; entry != fs::directory_iterator(); entry.increment(error)) {
    const fs::file_status status = entry->symlink_status(error);
    if (status.type() != fs::file_type::regular && status.type() != fs::file_type::directory)
      Skip(SkipReason::kNotRegular, sources);
    else if (IsSkippedName(entry->path().filename().string()))
      Skip(SkipReason::kByName, sources);
    else if (status.type() == fs::file_type::directory)
      ListFolder(entry->path(), sources);
    else
      sources->files.push_back(entry->path().string());
  }
  if (error) Skip(SkipReason::kUnreadable, sources);
}

}  // namespace

absl::StatusOr<TextSources> ListTextSources(const std::vector<std::string>& paths) {
  TextSources sources;
  for (const std::string& path : paths) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::directory) {
      const auto first = std::ssize(sources.files);
      ListFolder(path, &sources);
      std::sort(sources.files.begin() + first, sources.files.end());
    } else if (status.type() == fs::file_type::regular) {
      sources.files.push_back(path);
    } else if (status.type() == fs::file_type::not_found) {
      return NotFound("{} does not exist: give a file or a folder of text", path);
    } else {
      return InvalidArgument("{} is neither a file nor a folder that can be read{}{}", path,
                             error ? ": " : "", error ? error.message() : "");
    }
  }
  return sources;
}

}  // namespace perdure
