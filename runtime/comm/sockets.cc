#include "runtime/comm/sockets.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kListenBacklog = 4096;

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;

  sockaddr* generic() { return reinterpret_cast<sockaddr*>(&storage); }
};

absl::StatusOr<SocketAddress> ParseIp(const std::string& ip, uint16_t port) {
  SocketAddress address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, ip.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.bytes = sizeof *v4;
  } else if (::inet_pton(AF_INET6, ip.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.bytes = sizeof *v6;
  } else {
    return InvalidArgument("'{}' is not a numeric IPv4 or IPv6 address", ip);
  }
  return address;
}

void SetOption(int fd, int level, int name, int value) {
  // These only tune; a kernel that does not know one is no reason to stop.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

bool IsReachableFromOutside(const ifaddrs& entry) {
  if (entry.ifa_addr == nullptr || (entry.ifa_flags & IFF_UP) == 0) return false;
  if ((entry.ifa_flags & IFF_LOOPBACK) != 0) return false;
  if (entry.ifa_addr->sa_family == AF_INET) return true;
  if (entry.ifa_addr->sa_family != AF_INET6) return false;
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(entry.ifa_addr);
  return !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr);
}

}  // namespace

absl::StatusOr<Listener> ListenTcp() {
  constexpr int kType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  Listener listener;
  SocketAddress address;
  listener.fd = UniqueFd(::socket(AF_INET6, kType, 0));
  if (listener.fd.open()) {
    SetOption(listener.fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_addr = in6addr_any;
    address.bytes = sizeof *v6;
  } else {  // A kernel without IPv6.
    listener.fd = UniqueFd(::socket(AF_INET, kType, 0));
    if (!listener.fd.open()) return ErrnoStatus(errno, "socket for the peer watch");
    auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(INADDR_ANY);
    address.bytes = sizeof *v4;
  }
  if (::bind(listener.fd.get(), address.generic(), address.bytes) != 0)
    return ErrnoStatus(errno, "bind a TCP port for the peer watch");
  if (::listen(listener.fd.get(), kListenBacklog) != 0)
    return ErrnoStatus(errno, "listen for the peer watch");
  socklen_t bytes = sizeof address.storage;
  if (::getsockname(listener.fd.get(), address.generic(), &bytes) != 0)
    return ErrnoStatus(errno, "getsockname of the peer watch");
  // The port is at the same place for both families.
  listener.port = ntohs(reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_port);
  return listener;
}

absl::StatusOr<UniqueFd> StartConnect(const std::string& ip, uint16_t port) {
  ASSIGN_OR_RETURN(SocketAddress address, ParseIp(ip, port));
  UniqueFd fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.open()) return ErrnoStatus(errno, "socket for the peer watch");
  if (::connect(fd.get(), address.generic(), address.bytes) != 0 && errno != EINPROGRESS)
    return Unavailable("connect to {} port {}: {}", ip, port, std::strerror(errno));
  return fd;
}

int ConnectError(int fd) {
  int error = 0;
  socklen_t bytes = sizeof error;
  return ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

void NoticeSilentDeath(int fd) {
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 5);
}

absl::StatusOr<std::vector<std::string>> MachineAddresses() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return ErrnoStatus(errno, "getifaddrs");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> entries(raw, ::freeifaddrs);
  std::vector<std::string> result;
  for (const ifaddrs* entry = entries.get(); entry != nullptr; entry = entry->ifa_next) {
    if (!IsReachableFromOutside(*entry)) continue;
    const int family = entry->ifa_addr->sa_family;
    const void* ip = family == AF_INET
                         ? static_cast<const void*>(
                               &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr)
                         : &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
    char text[INET6_ADDRSTRLEN] = {};
    if (::inet_ntop(family, ip, text, sizeof text) != nullptr) result.emplace_back(text);
  }
  return result;
}

absl::StatusOr<std::string> HostIdentity() {
  ASSIGN_OR_RETURN(std::string boot_id, ReadFile("/proc/sys/kernel/random/boot_id"));
  while (!boot_id.empty() && boot_id.back() == '\n') boot_id.pop_back();
  char network[128];
  const ssize_t bytes = ::readlink("/proc/self/ns/net", network, sizeof network);
  if (bytes < 0) return ErrnoStatus(errno, "readlink /proc/self/ns/net");
  return boot_id + " " + std::string(network, static_cast<size_t>(bytes));
}

}  // namespace perdure
