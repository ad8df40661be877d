#include "runtime/comm/peer_watch.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "runtime/base/status.h"
#include "runtime/comm/peer_mesh.h"

namespace perdure {
namespace {

constexpr char kGoodbye = 'B';

}  // namespace

PeerWatch::PeerWatch(int rank, WatchAddress address, Listener listener, UniqueFd epoll)
    : rank_(rank),
      address_(std::move(address)),
      listener_(std::move(listener.fd)),
      epoll_(std::move(epoll)) {}

absl::StatusOr<std::unique_ptr<PeerWatch>> PeerWatch::Listen(int rank) {
  WatchAddress address;
  ASSIGN_OR_RETURN(address.host, HostIdentity());
  ASSIGN_OR_RETURN(address.ips, MachineAddresses());
  ASSIGN_OR_RETURN(Listener listener, ListenTcp());
  address.port = listener.port;
  if (::getrandom(address.token.data(), address.token.size(), 0) !=
      static_cast<ssize_t>(address.token.size()))
    return ErrnoStatus(errno, "getrandom");
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.open()) return ErrnoStatus(errno, "epoll_create1");
  return std::unique_ptr<PeerWatch>(
      new PeerWatch(rank, std::move(address), std::move(listener), std::move(epoll)));
}

absl::Status PeerWatch::Connect(std::span<const WatchAddress> addresses, absl::Time deadline,
                                const Cancellation* cancellation) {
  ASSIGN_OR_RETURN(sockets_,
                   ConnectMesh(rank_, listener_.get(), addresses, deadline, cancellation));
  lost_.resize(sockets_.size());
  listener_.Close();
  for (size_t peer = 0; peer < sockets_.size(); ++peer) {
    if (!sockets_[peer].open()) continue;
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    event.data.u32 = static_cast<uint32_t>(peer);
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, sockets_[peer].get(), &event) != 0)
      return ErrnoStatus(errno, "epoll_ctl for the peer watch");
  }
  return absl::OkStatus();
}

std::vector<PeerWatch::Event> PeerWatch::Poll() {
  std::vector<Event> result;
  std::array<epoll_event, 64> ready;
  const int count = ::epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), 0);
  for (int i = 0; i < count; ++i) {
    UniqueFd& socket = sockets_[ready[static_cast<size_t>(i)].data.u32];
    Event event;
    event.peer = static_cast<int>(ready[static_cast<size_t>(i)].data.u32);
    char said = 0;
    const ssize_t got = ::recv(socket.get(), &said, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got == 1 && said == kGoodbye) {
      event.clean = true;
      event.reason = "it has left";
    } else if (got < 0) {
      event.reason = fmt::format("its connection broke: {}", std::strerror(errno));
    } else {
      event.reason = "its process ended or dropped this rank";
    }
    socket.Close();
    lost_[static_cast<size_t>(event.peer)] = !event.clean;
    result.push_back(std::move(event));
  }
  return result;
}

bool PeerWatch::IsLost(int peer) const {
  const auto place = static_cast<size_t>(peer);
  if (!sockets_[place].open()) return lost_[place];
  char said = 0;
  const ssize_t got = ::recv(sockets_[place].get(), &said, 1, MSG_DONTWAIT | MSG_PEEK);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

void PeerWatch::Drop(int peer, bool lost) {
  if (sockets_.empty()) return;
  const auto place = static_cast<size_t>(peer);
  sockets_[place].Close();
  if (lost) lost_[place] = true;
}

void PeerWatch::SayGoodbye(int peer) {
  UniqueFd& socket = sockets_[static_cast<size_t>(peer)];
  if (!socket.open()) return;
  // A peer that is gone already needs no good-bye.
  (void)::send(socket.get(), &kGoodbye, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  socket.Close();
}

}  // namespace perdure
