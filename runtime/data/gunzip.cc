#include "runtime/data/gunzip.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kGzipOnly = 15 + 16;  // zlib: the largest window, a gzip header expected.

struct EndInflate {
  void operator()(z_stream* stream) const { inflateEnd(stream); }
};

}  // namespace

bool IsGzip(std::string_view bytes) { return bytes.starts_with("\x1f\x8b"); }

absl::StatusOr<std::string> Gunzip(std::string_view bytes, size_t bytes_max) {
  z_stream stream{};
  PERDURE_CHECK(inflateInit2(&stream, kGzipOnly) == Z_OK);
  const std::unique_ptr<z_stream, EndInflate> end(&stream);
  std::string text;
  char buffer[65536];
  while (true) {
    const size_t part = std::min<size_t>(bytes.size(), std::numeric_limits<uInt>::max());
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(part);
    stream.next_out = reinterpret_cast<Bytef*>(buffer);
    stream.avail_out = sizeof buffer;
    const int result = inflate(&stream, Z_NO_FLUSH);
    const size_t got = sizeof buffer - stream.avail_out;
    bytes.remove_prefix(part - stream.avail_in);
    if (text.size() + got > bytes_max)
      return ResourceExhausted("gzip data holds more than {} bytes", bytes_max);
    text.append(buffer, got);
    if (result == Z_STREAM_END) {
      // Some writers pad with zeros; anything else must be a further member.
      if (bytes.find_first_not_of('\0') == std::string_view::npos) return text;
      if (!IsGzip(bytes)) return DataLoss("gzip data is followed by {} other bytes", bytes.size());
      PERDURE_CHECK(inflateReset(&stream) == Z_OK);
    } else if (result == Z_BUF_ERROR || (result == Z_OK && bytes.empty() && got < sizeof buffer)) {
      return DataLoss("gzip data is cut off after {} bytes of text", text.size());
    } else if (result != Z_OK) {
      return DataLoss("gzip data is damaged after {} bytes of text: {}", text.size(),
                      stream.msg == nullptr ? "unknown" : stream.msg);
    }
  }
}

}  // namespace perdure
