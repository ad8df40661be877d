#include "runtime/agent/pulse_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <string_view>

#include "runtime/base/digest.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

// As long whatever the numbers are, so that nothing of an older one is left behind it.
std::string Print(const Pulse& pulse) {
  const std::string text = fmt::format("pulse {:020} {:020}", pulse.term, pulse.count);
  return fmt::format("{} {}\n", text, DigestOf(text).Hex());
}

constexpr size_t kText = 6 + 20 + 1 + 20, kBytes = kText + 1 + 32 + 1;

}  // namespace

// Synced, so that a network file system sends it.
absl::Status PulseFile::Leave(const Pulse& pulse) const {
  const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.open()) return ErrnoStatus(errno, "open " + path_);
  const std::string text = Print(pulse);
  const ssize_t written = ::pwrite(file.get(), text.data(), text.size(), 0);
  if (written < 0) return ErrnoStatus(errno, "write " + path_);
  if (static_cast<size_t>(written) != text.size())
    return Unavailable("{}: {} of {} bytes were written", path_, written, text.size());
  if (::fdatasync(file.get()) != 0) return ErrnoStatus(errno, "sync " + path_);
  return absl::OkStatus();
}

std::optional<Pulse> PulseFile::Find() const {
  const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.open()) return std::nullopt;
  std::array<char, kBytes> bytes{};
  if (::pread(file.get(), bytes.data(), kBytes, 0) != static_cast<ssize_t>(kBytes))
    return std::nullopt;
  Pulse pulse;
  const char* const term = bytes.data() + 6;
  std::from_chars(term, term + 20, pulse.term);
  std::from_chars(term + 21, term + 41, pulse.count);
  if (std::string_view(bytes.data(), kBytes) != Print(pulse)) return std::nullopt;
  return pulse;
}

}  // namespace perdure
