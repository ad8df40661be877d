// Frames (a length and that many bytes of JSON) over a connected stream socket: how ranks and the
// process that started them talk. Inherited socketpairs only, so the peer is our own child or
// parent.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class FrameSocket {
 public:
  // Takes over `fd`.
  explicit FrameSocket(int fd);
  ~FrameSocket();
  FrameSocket(FrameSocket&& other) noexcept;
  FrameSocket& operator=(FrameSocket&&) = delete;

  int fd() const { return fd_; }
  // Ends a Receive that blocks in another thread: it sees the end of the stream. Sending goes on.
  void ShutdownRead();
  // Blocks until the frame is in the socket. Unavailable: the other side is gone.
  absl::Status Send(const nlohmann::json& frame);
  // Blocks until a frame is there. Unavailable at the end of the stream; DataLoss for bytes that
  // are no frame.
  absl::StatusOr<nlohmann::json> Receive();
  // What is there now, without blocking.
  absl::StatusOr<std::optional<nlohmann::json>> TryReceive();

 private:
  absl::StatusOr<std::optional<nlohmann::json>> Take();
  absl::StatusOr<bool> Read(bool block);  // False: nothing there.

  int fd_;
  std::string buffer_;
};

inline constexpr size_t kFrameBytesMax = size_t{256} << 20;

// A frame as it is sent: for who sends by himself, without blocking. ResourceExhausted: it is too
// large.
absl::StatusOr<std::string> FrameBytes(const nlohmann::json& frame);

}  // namespace perdure
