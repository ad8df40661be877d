#include "runtime/comm/peer_mesh.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// What either end says first. `token` is that of rank `to`.
struct Hello {
  std::array<char, 8> magic{'P', 'R', 'D', 'U', 'W', 'A', 'T', '1'};
  uint32_t from = 0;
  uint32_t to = 0;
  WatchToken token{};
};
static_assert(sizeof(Hello) == 32);

constexpr size_t kStrangersMax = 64;  // Accepted connections that have not said who they are.
constexpr absl::Duration kStrangerPatience = absl::Seconds(2);
constexpr absl::Duration kAttemptPatience = absl::Seconds(1);
constexpr absl::Duration kAnswerPatience = absl::Seconds(5);
constexpr absl::Duration kRetryPause = absl::Milliseconds(100);

// Constant time: the comparison tells an impostor nothing.
bool SameToken(const WatchToken& a, const WatchToken& b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

bool SendHello(int fd, const Hello& hello) {
  return ::send(fd, &hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof hello;
}

// A hello that arrives in pieces.
struct Incoming {
  enum class State { kMore, kComplete, kBroken };

  Hello hello;
  size_t got = 0;

  State Read(int fd) {
    auto* bytes = reinterpret_cast<char*>(&hello);
    const ssize_t count = ::recv(fd, bytes + got, sizeof hello - got, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return State::kMore;
    if (count <= 0) return State::kBroken;
    got += static_cast<size_t>(count);
    return got == sizeof hello ? State::kComplete : State::kMore;
  }
};

class Mesh {
 public:
  Mesh(int rank, int listener, std::span<const WatchAddress> addresses, absl::Time deadline,
       const Cancellation* cancellation)
      : rank_(rank),
        listener_(listener),
        addresses_(addresses),
        deadline_(deadline),
        cancellation_(cancellation),
        sockets_(addresses.size()),
        missing_(addresses.size() - 1) {}

  absl::StatusOr<std::vector<UniqueFd>> Run() {
    for (int peer = 0; peer < rank_; ++peer) dials_.push_back(NewDial(peer));
    while (missing_ > 0) {
      if (cancellation_ != nullptr) RETURN_IF_ERROR(cancellation_->status());
      if (absl::Now() >= deadline_) return Late();
      for (Dial& dial : dials_) RETURN_IF_ERROR(Redial(dial));
      RETURN_IF_ERROR(Sleep());
      for (Dial& dial : dials_) RETURN_IF_ERROR(Advance(dial));
      std::erase_if(dials_, [](const Dial& dial) { return dial.finished; });
      Accept();
      for (Stranger& stranger : strangers_) Advance(stranger);
      std::erase_if(strangers_, [](const Stranger& stranger) { return !stranger.fd.open(); });
    }
    return std::move(sockets_);
  }

 private:
  struct Dial {
    int peer = 0;
    std::vector<std::string> ips;
    size_t next = 0;           // Of ips: to try next.
    bool only_refused = true;  // No attempt of this round failed in another way.
    bool finished = false;
    bool connected = false;
    UniqueFd fd;
    Incoming incoming;
    absl::Time until;  // End of this attempt, or of the pause before the next round.
    std::string last_error = "it does not answer";
  };
  struct Stranger {
    UniqueFd fd;
    Incoming incoming;
    absl::Time until;
  };

  const WatchAddress& Of(int rank) const { return addresses_[static_cast<size_t>(rank)]; }

  Dial NewDial(int peer) const {
    Dial dial;
    dial.peer = peer;
    const bool same_host = Of(peer).host == Of(rank_).host;
    dial.ips = same_host ? std::vector<std::string>{"127.0.0.1"} : Of(peer).ips;
    return dial;
  }

  // Starts the next attempt if none is under way.
  absl::Status Redial(Dial& dial) {
    if (dial.fd.open() || absl::Now() < dial.until) return absl::OkStatus();
    if (dial.ips.empty())
      return Unavailable("rank {} gave no address but loopback, and it is on another host",
                         dial.peer);
    dial.incoming = {};
    dial.connected = false;
    dial.until = absl::Now() + kAttemptPatience;
    absl::StatusOr<UniqueFd> fd = StartConnect(dial.ips[dial.next], Of(dial.peer).port);
    if (!fd.ok()) return AttemptFailed(dial, Message(fd.status()), /*refused=*/false);
    dial.fd = *std::move(fd);
    return absl::OkStatus();
  }

  absl::Status AttemptFailed(Dial& dial, std::string error, bool refused) {
    dial.fd.Close();
    dial.last_error = std::move(error);
    dial.only_refused &= refused;
    dial.until = absl::InfinitePast();
    if (++dial.next < dial.ips.size()) return absl::OkStatus();
    if (dial.only_refused)
      return Unavailable("rank {} cannot be reached at {} port {}: {}; its process has ended",
                         dial.peer, fmt::format("{}", fmt::join(dial.ips, ", ")),
                         Of(dial.peer).port, dial.last_error);
    dial.next = 0;
    dial.only_refused = true;
    dial.until = absl::Now() + kRetryPause;
    return absl::OkStatus();
  }

  absl::Status Advance(Dial& dial) {
    if (!dial.fd.open()) return absl::OkStatus();
    if (!dial.connected) {
      pollfd writable{dial.fd.get(), POLLOUT, 0};
      if (::poll(&writable, 1, 0) <= 0) return CheckPatience(dial);
      if (const int error = ConnectError(dial.fd.get()); error != 0)
        return AttemptFailed(dial, std::strerror(error), error == ECONNREFUSED);
      dial.connected = true;
      dial.until = absl::Now() + kAnswerPatience;
      if (!SendHello(dial.fd.get(), HelloTo(dial.peer)))
        return AttemptFailed(dial, "it closed the connection", /*refused=*/false);
    }
    switch (dial.incoming.Read(dial.fd.get())) {
      case Incoming::State::kMore:
        return CheckPatience(dial);
      case Incoming::State::kBroken:
        return AttemptFailed(dial, "it closed the connection", /*refused=*/false);
      case Incoming::State::kComplete:
        break;
    }
    if (!IsGenuine(dial.incoming.hello) ||
        dial.incoming.hello.from != static_cast<uint32_t>(dial.peer))
      return AttemptFailed(dial, "somebody else answers there", /*refused=*/false);
    dial.finished = true;
    Take(dial.peer, std::move(dial.fd));
    return absl::OkStatus();
  }

  // The peer answers only once it is in Connect itself, so silence on a connection is no reason to
  // give up unless there is another place to look for the peer.
  absl::Status CheckPatience(Dial& dial) {
    if (absl::Now() < dial.until || (dial.connected && dial.ips.size() == 1))
      return absl::OkStatus();
    return AttemptFailed(dial, "it does not answer", /*refused=*/false);
  }

  void Accept() {
    while (strangers_.size() < kStrangersMax) {
      UniqueFd fd(::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd.open()) return;
      strangers_.push_back({std::move(fd), {}, absl::Now() + kStrangerPatience});
    }
  }

  void Advance(Stranger& stranger) {
    switch (stranger.incoming.Read(stranger.fd.get())) {
      case Incoming::State::kMore:
        if (absl::Now() >= stranger.until) stranger.fd.Close();
        return;
      case Incoming::State::kBroken:
        stranger.fd.Close();
        return;
      case Incoming::State::kComplete:
        break;
    }
    const Hello& hello = stranger.incoming.hello;
    const bool expected = IsGenuine(hello) && hello.from > static_cast<uint32_t>(rank_) &&
                          hello.from < addresses_.size() && !sockets_[hello.from].open();
    const int peer = static_cast<int>(hello.from);
    if (expected && SendHello(stranger.fd.get(), HelloTo(peer))) Take(peer, std::move(stranger.fd));
    stranger.fd.Close();
  }

  Hello HelloTo(int peer) const {
    Hello hello;
    hello.from = static_cast<uint32_t>(rank_);
    hello.to = static_cast<uint32_t>(peer);
    hello.token = Of(peer).token;
    return hello;
  }

  bool IsGenuine(const Hello& hello) const {
    return hello.magic == Hello().magic && hello.to == static_cast<uint32_t>(rank_) &&
           SameToken(hello.token, Of(rank_).token);
  }

  void Take(int peer, UniqueFd fd) {
    NoticeSilentDeath(fd.get());
    sockets_[static_cast<size_t>(peer)] = std::move(fd);
    --missing_;
  }

  absl::Status Sleep() {
    polled_.clear();
    if (cancellation_ != nullptr) polled_.push_back({cancellation_->fd(), POLLIN, 0});
    if (strangers_.size() < kStrangersMax) polled_.push_back({listener_, POLLIN, 0});
    absl::Time until = std::min(deadline_, absl::Now() + kAttemptPatience);
    for (const Dial& dial : dials_) {
      if (dial.fd.open())
        polled_.push_back(
            {dial.fd.get(), static_cast<int16_t>(dial.connected ? POLLIN : POLLOUT), 0});
      else
        until = std::min(until, dial.until);
    }
    for (const Stranger& stranger : strangers_) polled_.push_back({stranger.fd.get(), POLLIN, 0});
    const int64_t milliseconds = absl::ToInt64Milliseconds(until - absl::Now()) + 1;
    const int ready = ::poll(polled_.data(), polled_.size(),
                             static_cast<int>(std::max<int64_t>(milliseconds, 0)));
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll for the peer watch");
    return absl::OkStatus();
  }

  absl::Status Late() const {
    std::vector<std::string> who;
    for (const Dial& dial : dials_)
      who.push_back(fmt::format("rank {} ({})", dial.peer, dial.last_error));
    for (size_t peer = static_cast<size_t>(rank_) + 1; peer < sockets_.size(); ++peer)
      if (!sockets_[peer].open()) who.push_back(fmt::format("rank {} (it did not call)", peer));
    return DeadlineExceeded("rank {} waited in vain for {}", rank_, fmt::join(who, ", "));
  }

  const int rank_;
  const int listener_;
  const std::span<const WatchAddress> addresses_;
  const absl::Time deadline_;
  const Cancellation* const cancellation_;
  std::vector<UniqueFd> sockets_;
  size_t missing_;
  std::vector<Dial> dials_;
  std::vector<Stranger> strangers_;
  std::vector<pollfd> polled_;
};

}  // namespace

absl::StatusOr<std::vector<UniqueFd>> ConnectMesh(int rank, int listener,
                                                  std::span<const WatchAddress> addresses,
                                                  absl::Time deadline,
                                                  const Cancellation* cancellation) {
  return Mesh(rank, listener, addresses, deadline, cancellation).Run();
}

}  // namespace perdure
