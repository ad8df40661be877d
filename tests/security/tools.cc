#include "tests/security/tools.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/base/status.h"

namespace perdure {

Bytes RandomBytes(size_t count) {
  Bytes bytes(count);
  FillRandom(bytes);
  return bytes;
}

Bytes HelloOf(const JobKey& key, const HandshakeTerms& terms, const AgentIdentity& self,
              uint64_t wanted) {
  const InitiatorHandshake handshake(key, terms, self, wanted, SecretKey::Random());
  return {handshake.hello().begin(), handshake.hello().end()};
}

std::string TurnedAway(RawPeer& peer, absl::Duration within) {
  const absl::Time end = MonotonicNow() + within;
  while (MonotonicNow() < end) {
    pollfd wait{.fd = peer.fd(), .events = POLLIN, .revents = 0};
    (void)::poll(&wait, 1, 20);
    Bytes bytes(256);
    const ssize_t got = ::recv(peer.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) return fmt::format("it said {} bytes", got);
    if (got == 0 || errno != EAGAIN) return "";
  }
  return "the connection was left open";
}

std::string Say(const WireAddress& to, std::span<const uint8_t> bytes) {
  RawPeer peer(to);
  if (!peer.open()) return "nobody listens";
  (void)peer.SendBytes(bytes);  // It may be thrown out before the end.
  return TurnedAway(peer);
}

UniqueFd ConnectFrom(const std::string& source, const WireAddress& to) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in from{}, there{};
  from.sin_family = there.sin_family = AF_INET;
  const WireAddress ip = *ParseWireAddress(source, 0);
  std::memcpy(&from.sin_addr, ip.ip.data() + 12, 4);
  std::memcpy(&there.sin_addr, to.ip.data() + 12, 4);
  there.sin_port = htons(to.port);
  const int one = 1;  // The port is chosen at connect.
  (void)::setsockopt(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) != 0 ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there) != 0)
    return UniqueFd();
  return fd;
}

std::string Denied(const std::string& what, int64_t result) {
  if (result >= 0) return what + " succeeded";
  return errno == EACCES || errno == EPERM ? "" : what + ": " + std::strerror(errno);
}

std::string FirstOf(std::initializer_list<std::string> denied) {
  for (const std::string& result : denied)
    if (!result.empty()) return result;
  return "";
}

// ---- The relay

bool Relay::Pass(Connection& connection, const Message& message) {
  const Verdict verdict = hand_(message);
  RawPeer& ahead = message.from_initiator ? connection.responder : connection.initiator;
  RawPeer& behind = message.from_initiator ? connection.initiator : connection.responder;
  if (verdict.in_pieces)
    for (const uint8_t& byte : verdict.onward) (void)ahead.SendBytes({&byte, 1});
  else
    (void)ahead.SendBytes(verdict.onward);
  (void)behind.SendBytes(verdict.back);
  if (verdict.end == Verdict::End::kReset) {
    ahead.Reset();
    behind.Reset();
  }
  return verdict.end == Verdict::End::kGoOn;
}

bool Relay::Move(Connection& connection, bool from_initiator) {
  const RawPeer& from = from_initiator ? connection.initiator : connection.responder;
  Way& way = from_initiator ? connection.onward : connection.back;
  Bytes piece(65536);
  const ssize_t got = ::recv(from.fd(), piece.data(), piece.size(), MSG_DONTWAIT);
  if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
  way.bytes.insert(way.bytes.end(), piece.begin(), piece.begin() + std::max<ssize_t>(got, 0));
  while (true) {
    size_t whole = from_initiator ? kHelloBytes : kAnswerBytes;
    if (way.index > 0) {
      if (way.bytes.size() < kFrameHeadBytes) return true;
      whole = kFrameOverheadBytes + way.bytes[0] + (size_t{way.bytes[1]} << 8) +
              (size_t{way.bytes[2]} << 16);
    }
    if (way.bytes.size() < whole) return true;
    const auto end = way.bytes.begin() + static_cast<ptrdiff_t>(whole);
    const Message message{.connection = connection.number,
                          .from_initiator = from_initiator,
                          .index = way.index++,
                          .bytes = Bytes(way.bytes.begin(), end)};
    way.bytes.erase(way.bytes.begin(), end);
    if (!Pass(connection, message)) return false;
  }
}

void Relay::Run(Talk& talk, const std::function<bool()>& done) {
  while (!done()) {
    std::vector<pollfd> waits = {{.fd = talk.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = listener_.fd(), .events = POLLIN, .revents = 0}};
    for (const Connection& connection : connections_)
      for (const int fd : {connection.initiator.fd(), connection.responder.fd()})
        waits.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    (void)::poll(waits.data(), waits.size(), 20);
    if (waits[0].revents != 0) return;
    size_t at = 2;
    std::erase_if(connections_, [&](Connection& connection) {
      const bool first = waits[at++].revents != 0, second = waits[at++].revents != 0;
      return (first && !Move(connection, true)) || (second && !Move(connection, false));
    });
    if (waits[1].revents == 0) continue;
    RawPeer initiator = listener_.Accept(), responder(to_);
    if (initiator.open() && responder.open())
      connections_.push_back({.number = count_++,
                              .initiator = std::move(initiator),
                              .responder = std::move(responder),
                              .onward = {},
                              .back = {}});
  }
}

}  // namespace perdure
