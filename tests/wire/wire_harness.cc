#include "tests/wire/wire_harness.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <thread>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

WireNode::WireNode(EventLoop* loop, const NodeParts& parts) {
  WireOptions options{
      .run_id = std::string(parts.run_id),
      .job = parts.job,
      .self = {.node = parts.node,
               .incarnation = parts.incarnation != 0 ? parts.incarnation : 1000 + parts.node},
      .interface = parts.listens ? "127.0.0.1" : "",
      .admission = {.place_time = absl::Minutes(1)},
      .attempt_time = absl::Minutes(1),
      .silence = absl::Minutes(1)};
  if (parts.change) parts.change(&options);
  WireCallbacks callbacks{
      .on_open =
          [this](ConnectionId id, const WirePeer& peer, bool incoming) {
            opened.push_back({.id = id, .peer = peer, .incoming = incoming});
            if (on_open) on_open(id);
          },
      .on_frame =
          [this](ConnectionId id, std::string_view bytes) {
            if (on_frame)
              on_frame(id, bytes);
            else
              frames.emplace_back(id, bytes);
          },
      .on_close = [this](ConnectionId id, const absl::Status& status) { closed[id] = status; }};
  auto wire = Wire::New(loop, TestKey(parts.key), std::move(options), std::move(callbacks));
  PERDURE_CHECK(wire.ok());
  wire_ = *std::move(wire);
}

void TryOnce(WireOptions* options) { options->retry_first = options->retry_last = absl::Hours(1); }

std::string OwnLoopback() {
  const auto pid = static_cast<uint32_t>(::getpid());
  return fmt::format("127.{}.{}.{}", 1 + (pid >> 16) % 250, (pid >> 8) % 256, pid % 256);
}

ConnectionId WireNode::ConnectTo(WireNode& other, uint32_t node, absl::Duration within) {
  return wire_->Connect(other.wire().address(), node, 0, MonotonicNow() + within);
}

bool RunUntil(EventLoop& loop, const std::function<bool()>& done, absl::Duration within) {
  const absl::Time until = MonotonicNow() + within;
  while (!done()) {
    if (MonotonicNow() >= until) return false;
    loop.RunOnce(std::min(until, MonotonicNow() + absl::Milliseconds(20)));
  }
  return true;
}

void During(EventLoop& loop, const std::function<void()>& body) {
  std::atomic<bool> done = false;
  std::thread thread([&] {
    body();
    done = true;
  });
  while (!done) loop.RunOnce(MonotonicNow() + absl::Milliseconds(2));
  thread.join();
}

void RunFor(EventLoop& loop, absl::Duration time) {
  const absl::Time until = MonotonicNow() + time;
  while (MonotonicNow() < until) loop.RunOnce(until);
}

// ---- Raw sockets --------------------------------------------------------------------------------

RawPeer::RawPeer(UniqueFd fd) : fd_(std::move(fd)) {}

RawPeer::RawPeer(const WireAddress& to) {
  absl::StatusOr<UniqueFd> fd = BeginConnect(to);
  if (!fd.ok()) return;
  pollfd wait{.fd = fd->get(), .events = POLLOUT, .revents = 0};
  if (::poll(&wait, 1, 60000) != 1 || EndConnect(fd->get()) != 0) return;
  fd_ = *std::move(fd);
  TuneConnection(fd_.get(), absl::Minutes(1));  // Each piece that is sent goes by itself.
}

bool RawPeer::SendBytes(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EAGAIN) {
      pollfd wait{.fd = fd(), .events = POLLOUT, .revents = 0};
      if (::poll(&wait, 1, 60000) != 1) return false;
      continue;
    }
    if (sent < 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return true;
}

std::vector<uint8_t> RawPeer::Read(size_t bytes) {
  std::vector<uint8_t> result(bytes);
  size_t got = 0;
  while (got < bytes) {
    pollfd wait{.fd = fd(), .events = POLLIN, .revents = 0};
    if (::poll(&wait, 1, 60000) != 1) break;
    const ssize_t count = ::recv(fd(), result.data() + got, bytes - got, 0);
    if (count <= 0) break;
    got += static_cast<size_t>(count);
  }
  result.resize(got);
  return result;
}

bool RawPeer::Closed(absl::Duration within) {
  const absl::Time until = MonotonicNow() + within;
  uint8_t byte = 0;
  while (MonotonicNow() < until) {
    pollfd wait{.fd = fd(), .events = POLLIN, .revents = 0};
    (void)::poll(&wait, 1, 20);
    const ssize_t count = ::recv(fd(), &byte, 1, MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN)) return true;
  }
  return false;
}

void RawPeer::Reset() {
  ResetWhenClosed(fd());
  fd_.Close();
}

uint16_t RawPeer::port() const {
  sockaddr_storage name{};
  socklen_t bytes = sizeof name;
  PERDURE_CHECK(::getsockname(fd(), reinterpret_cast<sockaddr*>(&name), &bytes) == 0);
  const auto* port = reinterpret_cast<const uint8_t*>(&name) + 2;  // In both families.
  return static_cast<uint16_t>(port[0] << 8 | port[1]);
}

RawListener::RawListener(const std::string& ip) {
  auto listener = ListenAt(*ParseWireAddress(ip, 0));
  PERDURE_CHECK(listener.ok());
  fd_ = std::move(listener->fd);
  address_ = listener->address;
}

RawPeer RawListener::Accept() const {
  pollfd wait{.fd = fd(), .events = POLLIN, .revents = 0};
  (void)::poll(&wait, 1, 60000);
  return RawPeer(AcceptFrom(fd()).fd);
}

// ---- An agent by hand ---------------------------------------------------------------------------

HandshakeTerms TermsOf(const WireAddress& address, uint32_t node) {
  return {.run_id = std::string(kTestRun), .job = 4711, .responder = node, .address = address};
}

RawAgent::RawAgent(const WireAddress& to, Parts parts)
    : key_(TestKey(parts.key)),
      peer_(to),
      handshake_(key_, parts.terms, parts.self, parts.wanted, SecretKey::Random()) {
  if (peer_.open()) (void)peer_.SendBytes(hello());
}

bool RawAgent::TakeAnswer() {
  const std::vector<uint8_t> bytes = peer_.open() ? peer_.Read(kAnswerBytes) : Counting(0, 0);
  if (bytes.size() != kAnswerBytes) return false;
  Handshaken done =
      handshake_.TakeAnswer(std::span<const uint8_t, kAnswerBytes>(bytes.data(), kAnswerBytes));
  channel_ = std::move(done.channel);
  return done.refusal == Refusal::kNone;
}

bool RawAgent::Confirm() { return peer_.SendBytes(channel_->SealConfirmation()); }

std::optional<std::string> RawAgent::ReadText() {
  std::vector<uint8_t> frame = peer_.Read(kFrameHeadBytes);
  if (frame.size() != kFrameHeadBytes) return std::nullopt;
  const auto length = SecureChannel::FrameLength(
      std::span<const uint8_t, kFrameHeadBytes>(frame.data(), kFrameHeadBytes));
  if (length.refusal != Refusal::kNone) return std::nullopt;
  const std::vector<uint8_t> rest = peer_.Read(length.frame_bytes - kFrameHeadBytes);
  frame.insert(frame.end(), rest.begin(), rest.end());
  if (frame.size() != length.frame_bytes) return std::nullopt;
  const SecureChannel::Opened opened = channel_->Open(frame);
  if (opened.refusal != Refusal::kNone) return std::nullopt;
  return TextOf(opened.plain);
}

size_t DescriptorsMax() {
  rlimit limit{};
  PERDURE_CHECK(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<size_t>(limit.rlim_cur);
}

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t whole = 0, resident = 0;
  file >> whole >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace perdure
