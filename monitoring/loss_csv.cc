#include "monitoring/loss_csv.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <functional>
#include <limits>
#include <utility>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr std::string_view kHeader =
    "step,samples,tokens,loss,loss_bits,grad_norm,learning_rate,batch,context,step_seconds,tokens_"
    "per_second,generation,"
    "ranks,phase\n";

constexpr size_t kFirstWindow = size_t{64} << 10;

absl::Status NotOurs(const std::string& path, const std::string& what) {
  return DataLoss("{} {}; move the file away and start again", path, what);
}

// The end of a file of rows, from the begin of one of them on.
struct Window {
  uint64_t begin = 0;
  std::string rows;
};

absl::StatusOr<std::string> ReadRange(int fd, const std::string& path, uint64_t begin,
                                      uint64_t end) {
  std::string bytes(end - begin, '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got =
        ::pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) break;  // It has become shorter meanwhile.
    done += static_cast<size_t>(got);
  }
  bytes.resize(done);
  return bytes;
}

absl::StatusOr<int64_t> StepOf(const std::string& path, std::string_view row) {
  int64_t step = 0;
  const auto parsed = std::from_chars(row.data(), row.data() + row.size(), step);
  if (parsed.ec != std::errc() || parsed.ptr == row.data() + row.size() || *parsed.ptr != ',')
    return NotOurs(path, fmt::format("has a row '{}' that does not begin with a step", row));
  return step;
}

// So much of the end that its first row is of a step up to `step`, or all rows. Rows are in order
// of their steps.
absl::StatusOr<Window> ReadEnd(int fd, const std::string& path, int64_t step) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  const auto size = static_cast<uint64_t>(info.st_size);
  ASSIGN_OR_RETURN(const std::string head, ReadRange(fd, path, 0, std::min(size, kHeader.size())));
  if (head != kHeader) return NotOurs(path, "does not begin with the columns of loss.csv");
  for (uint64_t wanted = kFirstWindow;; wanted *= 2) {
    const uint64_t rows = size - kHeader.size();
    Window window{.begin = kHeader.size() + (rows > wanted ? rows - wanted : 0), .rows = {}};
    const bool all = rows <= wanted;
    ASSIGN_OR_RETURN(window.rows, ReadRange(fd, path, window.begin, size));
    if (all) return window;
    // Cut off the row that the window begins in.
    const size_t first = window.rows.find('\n');
    if (first == std::string::npos) continue;
    window.begin += first + 1;
    window.rows.erase(0, first + 1);
    const size_t end = window.rows.find('\n');
    if (end == std::string::npos) continue;
    ASSIGN_OR_RETURN(const int64_t of_first,
                     StepOf(path, std::string_view(window.rows).substr(0, end)));
    if (of_first <= step) return window;
  }
}

// Where rows behind `step` begin; the first of them, or a row without its newline.
absl::StatusOr<uint64_t> CutOf(const std::string& path, const Window& window, int64_t step) {
  std::string_view rest = window.rows;
  for (;;) {
    const size_t end = rest.find('\n');
    if (end == std::string_view::npos) break;
    ASSIGN_OR_RETURN(const int64_t row, StepOf(path, rest.substr(0, end)));
    if (row > step) break;
    rest.remove_prefix(end + 1);
  }
  return window.begin + (window.rows.size() - rest.size());
}

// The values of a row, as Append writes them.
absl::StatusOr<LossRow> ParseRow(const std::string& path, std::string_view row) {
  std::array<std::string_view, 14> cells;
  size_t count = 0;
  for (std::string_view rest = row;; ++count) {
    const size_t comma = count + 1 < cells.size() ? rest.find(',') : std::string_view::npos;
    cells[count] = rest.substr(0, comma);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  LossRow r;
  bool good = count + 1 == cells.size() && cells[13].find(',') == std::string_view::npos;
  const auto take = [&](size_t cell, auto& value, auto... base) {
    const std::string_view text = cells[cell];
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value, base...);
    good = good && parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  };
  uint64_t bits = 0;
  take(0, r.step), take(1, r.samples), take(2, r.tokens), take(4, bits, 16), take(5, r.grad_norm);
  take(6, r.learning_rate), take(7, r.batch), take(8, r.context), take(9, r.step_seconds);
  take(10, r.tokens_per_second), take(11, r.generation), take(12, r.ranks);
  if (!good) return NotOurs(path, fmt::format("has a row '{}' that is none of loss.csv", row));
  r.loss = std::bit_cast<double>(bits);
  r.phase = cells[13];
  return r;
}

}  // namespace

absl::StatusOr<LossRow> ParseLossRow(std::string_view row) { return ParseRow("loss.csv", row); }

absl::StatusOr<std::unique_ptr<LossCsv>> LossCsv::Open(const std::string& path,
                                                       int64_t resume_step) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC));
  if (!fd.open()) {
    if (errno != ENOENT) return ErrnoStatus(errno, "open " + path);
    RETURN_IF_ERROR(ReplaceFile(path, std::string(kHeader)));
    fd = UniqueFd(::open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC));
    if (!fd.open()) return ErrnoStatus(errno, "open " + path);
  }
  ASSIGN_OR_RETURN(const Window window, ReadEnd(fd.get(), path, resume_step));
  ASSIGN_OR_RETURN(const uint64_t cut, CutOf(path, window, resume_step));
  if (cut != window.begin + window.rows.size() &&
      ::ftruncate(fd.get(), static_cast<off_t>(cut)) != 0)
    return ErrnoStatus(errno, "cut " + path);
  return std::unique_ptr<LossCsv>(new LossCsv(std::move(fd), path));
}

absl::StatusOr<std::optional<LossRow>> LastLossRow(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.open()) return ErrnoStatus(errno, "open " + path);
  ASSIGN_OR_RETURN(const Window window,
                   ReadEnd(fd.get(), path, std::numeric_limits<int64_t>::max()));
  const size_t end = window.rows.rfind('\n');
  if (end == std::string::npos) return std::nullopt;
  const size_t before = end == 0 ? std::string::npos : window.rows.rfind('\n', end - 1);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  return ParseRow(path, std::string_view(window.rows).substr(begin, end - begin));
}

namespace {

// All whole rows from the one of step `from` on, perhaps some before it.
absl::Status ForEachRow(const std::string& path, int64_t from,
                        const std::function<void(const LossRow&)>& see) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.open()) return ErrnoStatus(errno, "open " + path);
  ASSIGN_OR_RETURN(const Window window, ReadEnd(fd.get(), path, from));
  std::string_view rest = window.rows;
  for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
    ASSIGN_OR_RETURN(const LossRow row, ParseRow(path, rest.substr(0, end)));
    see(row);
    rest.remove_prefix(end + 1);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::map<int64_t, std::string>> ReadLossBits(const std::string& path, int64_t from) {
  std::map<int64_t, std::string> bits;
  RETURN_IF_ERROR(ForEachRow(path, from, [&](const LossRow& row) {
    if (row.step >= from) bits[row.step] = LossBits(row.loss);
  }));
  return bits;
}

absl::StatusOr<std::vector<LossRow>> ReadLossRows(const std::string& path, int64_t from) {
  std::vector<LossRow> rows;
  RETURN_IF_ERROR(ForEachRow(path, from, [&](const LossRow& row) {
    if (row.step >= from) rows.push_back(row);
  }));
  return rows;
}

absl::StatusOr<double> ReadStepSeconds(const std::string& path) {
  double seconds = 0;
  RETURN_IF_ERROR(ForEachRow(path, 0, [&](const LossRow& row) { seconds += row.step_seconds; }));
  return seconds;
}

std::string LossBits(double loss) { return fmt::format("{:016x}", std::bit_cast<uint64_t>(loss)); }

absl::Status LossCsv::Append(const LossRow& r) {
  const std::string row = fmt::format(
      "{},{},{},{:.17g},{},{:.9g},{:.9g},{},{},{:.6f},{:.1f},{},{},{}\n", r.step, r.samples,
      r.tokens, r.loss, LossBits(r.loss), r.grad_norm, r.learning_rate, r.batch, r.context,
      r.step_seconds, r.tokens_per_second, r.generation, r.ranks, r.phase);
  const ssize_t written = ::write(fd_.get(), row.data(), row.size());
  if (written != static_cast<ssize_t>(row.size()))
    return ErrnoStatus(written < 0 ? errno : ENOSPC, "append to " + path_);
  return absl::OkStatus();
}

}  // namespace perdure
