// Who is still there: one idle TCP connection between every two ranks of a generation. The kernel
// closes it when a process ends, however it ends, so a death shows at once, also where the message
// path is shared memory and shows nothing. A rank that leaves on purpose says so first.
//
// A connection is taken only from somebody who knows the token in this rank's address, which
// travels in the control channel. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/comm/address.h"
#include "runtime/comm/cancellation.h"
#include "runtime/comm/sockets.h"

namespace perdure {

class PeerWatch {
 public:
  struct Event {
    int peer = 0;
    bool clean = false;  // It took its leave; otherwise it is lost.
    std::string reason;
  };

  static absl::StatusOr<std::unique_ptr<PeerWatch>> Listen(int rank);
  // Leaves without a word, as a dying process would.
  ~PeerWatch() = default;

  const WatchAddress& address() const { return address_; }
  // addresses[r] is rank r's; the caller's own is among them. Unavailable or DeadlineExceeded names
  // who is missing; what `cancellation` says, if it is set.
  absl::Status Connect(std::span<const WatchAddress> addresses, absl::Time deadline,
                       const Cancellation* cancellation = nullptr);

  // Readable when Poll has something to tell.
  int fd() const { return epoll_.get(); }
  // What happened since the last call; at most one event per peer, ever.
  std::vector<Event> Poll();
  // Whether a peer has gone without a good-bye, be it already told by Poll or not, or was dropped
  // as lost.
  bool IsLost(int peer) const;
  // Cuts the connection; no event for that peer follows here, and over there this rank looks lost.
  void Drop(int peer, bool lost);
  // Tells a peer, if it is still connected, that this rank leaves on purpose, and closes.
  void SayGoodbye(int peer);

 private:
  PeerWatch(int rank, WatchAddress address, Listener listener, UniqueFd epoll);

  const int rank_;
  const WatchAddress address_;
  UniqueFd listener_;  // Closed once everybody is connected.
  UniqueFd epoll_;
  std::vector<UniqueFd> sockets_;  // [rank]; closed: oneself, and who has left.
  std::vector<bool> lost_;         // [rank].
};

}  // namespace perdure
