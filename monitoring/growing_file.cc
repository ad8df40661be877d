#include "monitoring/growing_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

constexpr size_t kPiece = size_t{1} << 20;
// Of a line that is looked for again: its end says enough.
constexpr size_t kRemembered = 256;

// Exactly so many bytes, or fewer where the file ends.
absl::StatusOr<std::string> ReadAt(int fd, const std::string& path, int64_t from, size_t bytes) {
  std::string text(bytes, '\0');
  size_t have = 0;
  while (have < bytes) {
    const ssize_t got =
        ::pread(fd, text.data() + have, bytes - have, from + static_cast<int64_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  text.resize(have);
  return text;
}

}  // namespace

absl::Status GrowingFile::Read(const std::function<void()>& forget,
                               const std::function<void(std::string_view line)>& line) {
  const UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.open()) {
    const int error = errno;
    if (error == ENOENT && read_ > 0) {
      forget();
      read_ = 0;
      last_.clear();
    }
    return ErrnoStatus(error, "open " + path_);
  }
  const auto known = static_cast<int64_t>(last_.size());
  ASSIGN_OR_RETURN(const std::string there, ReadAt(fd.get(), path_, read_ - known, last_.size()));
  if (there != last_) {
    forget();
    read_ = 0;
    last_.clear();
  }
  std::string rest;  // A line that has begun.
  for (int64_t at = read_;;) {
    ASSIGN_OR_RETURN(std::string piece, ReadAt(fd.get(), path_, at, kPiece));
    if (piece.empty()) return absl::OkStatus();
    at += static_cast<int64_t>(piece.size());
    rest += piece;
    size_t begin = 0;
    for (size_t end = rest.find('\n'); end != std::string::npos; end = rest.find('\n', begin)) {
      line(std::string_view(rest).substr(begin, end - begin));
      read_ += static_cast<int64_t>(end + 1 - begin);
      const size_t from = std::max(begin, end + 1 - std::min(end + 1, kRemembered));
      last_ = rest.substr(from, end + 1 - from);
      begin = end + 1;
    }
    rest.erase(0, begin);
  }
}

}  // namespace perdure
