#include "monitoring/loss_csv.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <charconv>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr std::string_view kHeader =
    "step,samples,tokens,loss,loss_bits,grad_norm,learning_rate,batch,context,step_seconds,tokens_"
    "per_second,generation,"
    "ranks,phase\n";

// The rows of `content` with step <= resume_step; a last row without its newline was torn.
absl::StatusOr<std::string> KeptRows(const std::string& path, std::string_view content,
                                     int64_t resume_step) {
  if (!content.starts_with(kHeader))
    return DataLoss("{} does not begin with the columns of loss.csv; move it away and start again",
                    path);
  std::string kept(kHeader);
  content.remove_prefix(kHeader.size());
  while (true) {
    const size_t end = content.find('\n');
    if (end == std::string_view::npos) return kept;
    const std::string_view row = content.substr(0, end + 1);
    int64_t step = 0;
    const auto parsed = std::from_chars(row.data(), row.data() + row.size(), step);
    if (parsed.ec != std::errc() || *parsed.ptr != ',')
      return DataLoss("{}: row '{}' does not begin with a step; move the file away and start again",
                      path, row.substr(0, end));
    if (step <= resume_step) kept += row;
    content.remove_prefix(end + 1);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LossCsv>> LossCsv::Open(const std::string& path,
                                                       int64_t resume_step) {
  const absl::StatusOr<std::string> content = ReadFile(path);
  if (!content.ok() && content.status().code() != absl::StatusCode::kNotFound)
    return content.status();
  std::string kept(kHeader);
  if (content.ok()) {
    ASSIGN_OR_RETURN(kept, KeptRows(path, *content, resume_step));
  }
  if (!content.ok() || kept != *content) RETURN_IF_ERROR(ReplaceFile(path, kept));
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  return std::unique_ptr<LossCsv>(new LossCsv(fd, path));
}

LossCsv::~LossCsv() { ::close(fd_); }

absl::Status LossCsv::Append(const LossRow& r) {
  const std::string row = fmt::format(
      "{},{},{},{:.17g},{:016x},{:.9g},{:.9g},{},{},{:.6f},{:.1f},{},{},{}\n", r.step, r.samples,
      r.tokens, r.loss, std::bit_cast<uint64_t>(r.loss), r.grad_norm, r.learning_rate, r.batch,
      r.context, r.step_seconds, r.tokens_per_second, r.generation, r.ranks, r.phase);
  const ssize_t written = ::write(fd_, row.data(), row.size());
  if (written != static_cast<ssize_t>(row.size()))
    return ErrnoStatus(written < 0 ? errno : ENOSPC, "append to " + path_);
  return absl::OkStatus();
}

}  // namespace perdure
