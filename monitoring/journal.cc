#include "monitoring/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>

#include "runtime/base/status.h"

namespace perdure {

std::string TimeNow() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900,
                     utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                     milliseconds);
}

namespace {

// Who looks at the end of the file must not see half of somebody else's line. Best effort: some
// file systems have no such lock, and only an empty line comes of it.
class Turn {
 public:
  explicit Turn(int fd) : fd_(fd) { (void)::flock(fd_, LOCK_EX); }
  ~Turn() { (void)::flock(fd_, LOCK_UN); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  const int fd_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  std::unique_ptr<Journal> journal(new Journal(fd, path));
  const Turn turn(fd);
  // A line that a crash has torn is ended, so that the next one is a line of its own.
  const off_t size = ::lseek(fd, 0, SEEK_END);
  char last = '\n';
  if (size > 0 && ::pread(fd, &last, 1, size - 1) != 1) return ErrnoStatus(errno, "read " + path);
  if (last != '\n') RETURN_IF_ERROR(journal->WriteNow("\n"));
  return journal;
}

Journal::~Journal() { ::close(fd_); }

absl::Status Journal::Append(std::string_view event, const nlohmann::json& fields) {
  nlohmann::ordered_json line;
  line["time"] = TimeNow();
  line["event"] = std::string(event);
  for (const auto& [key, value] : fields.items()) line[key] = value;
  return Write(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

absl::Status Journal::Write(std::string_view text) {
  const Turn turn(fd_);
  return WriteNow(text);
}

absl::Status Journal::WriteNow(std::string_view text) {
  const ssize_t written = ::write(fd_, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size()))
    return ErrnoStatus(written < 0 ? errno : ENOSPC, "append to " + path_);
  return absl::OkStatus();
}

}  // namespace perdure
