#include "runtime/wire/wire_sockets.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// As many as the kernel allows (net.core.somaxconn): all agents of a job may come at once.
constexpr int kBacklog = 65535;
// Whoever connects and says nothing stays with the kernel, unseen, for about so many seconds.
constexpr int kDeferSeconds = 1;
constexpr std::array<uint8_t, 12> kMappedV4 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

struct SystemAddress {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof(sockaddr_storage);
  sockaddr* generic() { return reinterpret_cast<sockaddr*>(&storage); }
};

bool IsV4(const WireAddress& address) {
  return std::equal(kMappedV4.begin(), kMappedV4.end(), address.ip.begin());
}

SystemAddress ToSystem(const WireAddress& address) {
  SystemAddress result;
  if (IsV4(address)) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&result.storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(address.port);
    std::memcpy(&v4->sin_addr, address.ip.data() + kMappedV4.size(), sizeof v4->sin_addr);
    result.bytes = sizeof *v4;
  } else {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&result.storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    std::memcpy(&v6->sin6_addr, address.ip.data(), address.ip.size());
    result.bytes = sizeof *v6;
  }
  return result;
}

WireAddress FromSystem(const sockaddr* system) {
  WireAddress address;
  if (system->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(system);
    std::copy(kMappedV4.begin(), kMappedV4.end(), address.ip.begin());
    std::memcpy(address.ip.data() + kMappedV4.size(), &v4->sin_addr, sizeof v4->sin_addr);
    address.port = ntohs(v4->sin_port);
  } else {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(system);
    std::memcpy(address.ip.data(), &v6->sin6_addr, address.ip.size());
    address.port = ntohs(v6->sin6_port);
  }
  return address;
}

void SetOption(int fd, int level, int name, int value) {
  // These only tune; a kernel that does not know one is no reason to stop.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

bool IsAnyAddress(const WireAddress& address) {
  const auto begin = address.ip.begin() + (IsV4(address) ? kMappedV4.size() : 0);
  return std::all_of(begin, address.ip.end(), [](uint8_t byte) { return byte == 0; });
}

UniqueFd StreamSocket(const SystemAddress& address) {
  return UniqueFd(
      ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

}  // namespace

absl::StatusOr<WireAddress> ParseWireAddress(const std::string& ip, uint16_t port) {
  WireAddress address{.ip = {}, .port = port};
  in_addr v4{};
  if (::inet_pton(AF_INET, ip.c_str(), &v4) == 1) {
    std::copy(kMappedV4.begin(), kMappedV4.end(), address.ip.begin());
    std::memcpy(address.ip.data() + kMappedV4.size(), &v4, sizeof v4);
  } else if (::inet_pton(AF_INET6, ip.c_str(), address.ip.data()) != 1) {
    return InvalidArgument("'{}' is not a numeric IPv4 or IPv6 address", ip);
  }
  return address;
}

std::string WireAddressText(const WireAddress& address) {
  char text[INET6_ADDRSTRLEN] = {};
  const bool v4 = IsV4(address);
  PERDURE_CHECK(::inet_ntop(v4 ? AF_INET : AF_INET6,
                            address.ip.data() + (v4 ? kMappedV4.size() : 0), text,
                            sizeof text) != nullptr);
  return v4 ? fmt::format("{}:{}", text, address.port) : fmt::format("[{}]:{}", text, address.port);
}

std::string HostText(const WireAddress& address) {
  const std::string text = WireAddressText(address);
  const std::string host = text.substr(0, text.rfind(':'));
  return host.starts_with('[') ? host.substr(1, host.size() - 2) : host;
}

absl::StatusOr<WireAddress> ParseWireAddressText(std::string_view text) {
  const size_t colon = text.rfind(':');
  std::string_view ip = text.substr(0, std::min(colon, text.size()));
  const std::string_view digits = text.substr(std::min(ip.size() + 1, text.size()));
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  const bool bracketed = ip.size() >= 2 && ip.front() == '[' && ip.back() == ']';
  if (bracketed) ip = ip.substr(1, ip.size() - 2);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() ||
      bracketed != (ip.find(':') != std::string_view::npos))
    return InvalidArgument("'{}' is no address like 10.0.0.5:4711 or [fd00::5]:4711", text);
  return ParseWireAddress(std::string(ip), port);
}

absl::StatusOr<WireAddress> InterfaceAddress(const std::string& interface) {
  if (const auto numeric = ParseWireAddress(interface, 0); numeric.ok()) {
    if (IsAnyAddress(*numeric))
      return InvalidArgument("'{}' is every interface: name one, or its address", interface);
    return numeric;
  }
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return ErrnoStatus(errno, "getifaddrs");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> entries(raw, ::freeifaddrs);
  for (const int family : {AF_INET, AF_INET6}) {
    for (const ifaddrs* entry = entries.get(); entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != family ||
          entry->ifa_name != interface)
        continue;
      const WireAddress address = FromSystem(entry->ifa_addr);
      if (address.ip[0] == 0xfe && (address.ip[1] & 0xc0) == 0x80) continue;  // Link-local.
      return WireAddress{.ip = address.ip, .port = 0};
    }
  }
  return InvalidArgument(
      "'{}' is neither a numeric address nor an interface with one: see 'ip address'", interface);
}

absl::StatusOr<WireListener> BindAt(const WireAddress& address) {
  const std::string what = WireAddressText(address);
  SystemAddress system = ToSystem(address);
  WireListener listener;
  listener.fd = StreamSocket(system);
  if (!listener.fd.open()) return ErrnoStatus(errno, "socket to listen at " + what);
  // No SO_REUSEADDR, no SO_REUSEPORT: the port is ours alone.
  if (::bind(listener.fd.get(), system.generic(), system.bytes) != 0)
    return ErrnoStatus(errno, "bind " + what);
  SystemAddress bound;
  if (::getsockname(listener.fd.get(), bound.generic(), &bound.bytes) != 0)
    return ErrnoStatus(errno, "getsockname of " + what);
  listener.address = FromSystem(bound.generic());
  return listener;
}

absl::StatusOr<WireListener> ListenAt(const WireAddress& address) {
  ASSIGN_OR_RETURN(WireListener listener, BindAt(address));
  SetOption(listener.fd.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, kDeferSeconds);
  if (::listen(listener.fd.get(), kBacklog) != 0)
    return ErrnoStatus(errno, "listen at " + WireAddressText(address));
  return listener;
}

AcceptedSocket AcceptFrom(int listener) {
  AcceptedSocket accepted;
  SystemAddress from;
  accepted.fd =
      UniqueFd(::accept4(listener, from.generic(), &from.bytes, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (accepted.fd.open())
    accepted.from = FromSystem(from.generic());
  else
    accepted.error = errno;
  return accepted;
}

absl::StatusOr<UniqueFd> BeginConnect(const WireAddress& to) {
  SystemAddress system = ToSystem(to);
  UniqueFd fd = StreamSocket(system);
  if (!fd.open()) return Unavailable("socket: {}", std::strerror(errno));
  if (::connect(fd.get(), system.generic(), system.bytes) != 0 && errno != EINPROGRESS)
    return Unavailable("connect: {}", std::strerror(errno));
  return fd;
}

int EndConnect(int fd) {
  int error = 0;
  socklen_t bytes = sizeof error;
  return ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

void TuneConnection(int fd, absl::Duration silence) {
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
            static_cast<int>(absl::ToInt64Milliseconds(silence)));
}

void ResetWhenClosed(int fd) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  (void)::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

Received ReceiveSome(int fd, std::span<uint8_t> into) {
  while (true) {
    const ssize_t bytes = ::recv(fd, into.data(), into.size(), MSG_DONTWAIT);
    if (bytes > 0) return {.bytes = bytes};
    if (bytes == 0) return {.bytes = -1};
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {};
    return {.bytes = -1, .error = errno};
  }
}

bool SendWhole(int fd, std::span<const uint8_t> bytes) {
  ssize_t sent = 0;
  do {
    sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(bytes.size());
}

}  // namespace perdure
