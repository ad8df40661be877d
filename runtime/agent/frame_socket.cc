#include "runtime/agent/frame_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {

FrameSocket::FrameSocket(int fd) : fd_(fd) {}
FrameSocket::~FrameSocket() {
  if (fd_ >= 0) ::close(fd_);
}
FrameSocket::FrameSocket(FrameSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), buffer_(std::move(other.buffer_)) {}

void FrameSocket::ShutdownRead() { ::shutdown(fd_, SHUT_RD); }

absl::StatusOr<std::string> FrameBytes(const nlohmann::json& frame) {
  // Messages of errors may hold bytes that are not UTF-8.
  const std::string body = frame.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (body.size() > kFrameBytesMax)
    return ResourceExhausted("frame of {} bytes; at most {}", body.size(), kFrameBytesMax);
  const auto length = static_cast<uint32_t>(body.size());
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  bytes += body;
  return bytes;
}

absl::Status FrameSocket::Send(const nlohmann::json& frame) {
  ASSIGN_OR_RETURN(const std::string bytes, FrameBytes(frame));
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Unavailable("send a frame: {}", std::strerror(errno));
    sent += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> FrameSocket::Read(bool block) {
  char bytes[65536];
  while (true) {
    const ssize_t count = ::recv(fd_, bytes, sizeof bytes, block ? 0 : MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (count < 0) return Unavailable("receive a frame: {}", std::strerror(errno));
    if (count == 0) return Unavailable("the other side closed the connection");
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
  }
}

absl::StatusOr<std::optional<nlohmann::json>> FrameSocket::Take() {
  uint32_t length = 0;
  if (buffer_.size() < sizeof length) return std::nullopt;
  std::memcpy(&length, buffer_.data(), sizeof length);
  if (length > kFrameBytesMax)
    return DataLoss("a frame of {} bytes was announced; at most {}", length, kFrameBytesMax);
  if (buffer_.size() < sizeof length + length) return std::nullopt;
  nlohmann::json frame = nlohmann::json::parse(buffer_.begin() + sizeof length,
                                               buffer_.begin() + sizeof length + length, nullptr,
                                               /*allow_exceptions=*/false);
  buffer_.erase(0, sizeof length + length);
  if (!frame.is_object()) return DataLoss("a frame is not a JSON object");
  return std::optional<nlohmann::json>(std::move(frame));
}

absl::StatusOr<nlohmann::json> FrameSocket::Receive() {
  while (true) {
    ASSIGN_OR_RETURN(std::optional<nlohmann::json> frame, Take());
    if (frame.has_value()) return *std::move(frame);
    RETURN_IF_ERROR(Read(/*block=*/true).status());
  }
}

absl::StatusOr<std::optional<nlohmann::json>> FrameSocket::TryReceive() {
  while (true) {
    ASSIGN_OR_RETURN(std::optional<nlohmann::json> frame, Take());
    if (frame.has_value()) return frame;
    ASSIGN_OR_RETURN(const bool more, Read(/*block=*/false));
    if (!more) return std::nullopt;
  }
}

}  // namespace perdure
