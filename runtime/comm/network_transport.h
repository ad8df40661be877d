// The Transport over a Fabric (a network library) and a PeerWatch (who is alive): everything that
// UCX and libfabric have in common.
//
// A peer is live, then leaving (it said good-bye on the watch; what it sent may still be on its
// way) or at once gone. A rank's last message to everybody is a good-bye on the fabric too, behind
// all its others: a peer is gone when that has come, so nothing that was sent is lost by leaving
// early. When a peer is gone, all that is under way with it finishes with Unavailable; what had
// already arrived from it can still be received, but for long messages of one that was lost.
//
// What no library promises: a receive that a peer is in the middle of filling cannot be taken back
// from a peer that is alive. FailPeer therefore waits up to kDrainPatience for it, and if it is
// still being filled then, the library is closed, and after that every request is finished with
// Unavailable. Cancel does the same without waiting.
//
// A send that is given up is the other side of that: a library may fetch a long message out of the
// sender's memory without asking it, while that memory is already used for something else. So who
// gives up a send to a peer breaks its connection of the watch before it gives the memory back, and
// a receive that may have been fetched so ends well only if that connection still stands after it.
// It closes the library before that connection: whoever sees it break gets nothing more.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/comm/address.h"
#include "runtime/comm/cancellation.h"
#include "runtime/comm/fabric.h"
#include "runtime/comm/matcher.h"
#include "runtime/comm/operation.h"
#include "runtime/comm/peer_watch.h"
#include "runtime/comm/transport.h"

namespace perdure {

class NetworkTransport final : public Transport {
 public:
  NetworkTransport(std::string kind, const TransportOptions& options,
                   std::unique_ptr<Fabric> fabric, std::unique_ptr<PeerWatch> watch,
                   std::shared_ptr<Cancellation> cancellation);
  // Says good-bye; waits at most kFarewellPatience for live peers to take it (kBrokenPatience where
  // one was lost: this generation is over), and for nobody else. After Cancel it does neither.
  ~NetworkTransport() override;

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  std::string name() const override { return name_; }
  absl::StatusOr<std::string> LocalAddress() override;
  absl::Status Connect(std::span<const std::string> addresses, absl::Duration timeout) override;
  RequestPtr Send(int peer, Tag tag, const void* data, size_t bytes) override;
  RequestPtr Recv(int peer, Tag tag, void* data, size_t bytes) override;
  void Progress() override;
  absl::Status WaitAll(std::span<const RequestPtr> requests) override;
  void FailPeer(int peer, const std::string& reason) override;
  void Cancel(const std::string& reason) override {
    const std::shared_ptr<Cancellation> cancellation = cancellation_;
    cancellation->Set(reason);
  }
  absl::Status cancelled() const override { return cancellation_->status(); }

 private:
  enum class State : uint8_t { kUnconnected, kLive, kLeaving, kGone };

  struct Goodbye {
    uint32_t taken = 0;  // Messages that the sender of this has received from the rank it is for.
  };
  struct Peer {
    State state = State::kUnconnected;
    std::string reason;           // Why it is gone.
    absl::Time leaving_deadline;  // kLeaving: it is gone then, good-bye or not.
    OperationRef goodbye;         // The receive of its last message, into goodbye_in.
    Goodbye goodbye_in;
    Goodbye goodbye_out;         // This rank's last message to it.
    uint32_t sends = 0;          // Of the caller, to it. Counts may wrap.
    uint32_t receives_done = 0;  // Of the caller, from it.
    OperationLink operations;    // Under way, but for `goodbye`.
  };

  Peer& PeerOf(int rank);
  absl::StatusOr<std::vector<RankAddress>> ParseTable(std::span<const std::string> addresses);
  absl::Status Greet(absl::Time deadline);
  OperationRef SendHello(int peer);
  OperationRef Start(Operation::Kind kind, int peer, uint64_t tag, void* data, size_t bytes);
  void StartWithGone(const OperationRef& operation);
  void Post(const OperationRef& operation);
  absl::Status WhyGone(int peer) const;

  bool Advance();
  void Drain();
  void Sleep(absl::Time until);
  void WaitFor(const Operation& operation, absl::Time deadline);
  void CheckPeers();
  void Gone(int peer, std::string reason);
  static std::vector<OperationRef> HeldReceives(const Peer& peer);
  void FinishAll(Peer& peer, const absl::Status& receives, const absl::Status& sends);
  void Leave();
  // Whether the library is closed for good. Every entry asks, and every loop: this is where the
  // transport's own thread hears of Cancel.
  bool Stopped();
  void Stop(const absl::Status& why);

  const std::string kind_;
  const TransportOptions options_;
  const std::string name_;
  const std::shared_ptr<Cancellation> cancellation_;
  std::unique_ptr<Fabric> fabric_;  // Null once stopped_.
  std::unique_ptr<PeerWatch> watch_;
  std::vector<Peer> peers_;
  Matcher self_;           // Messages of this rank to itself.
  uint32_t goodbyes_ = 0;  // Good-bye receives that are done, one way or another.
  uint32_t goodbyes_handled_ = 0;
  int leaving_count_ = 0;  // Peers in State::kLeaving.
  uint32_t progress_calls_ = 0;
  bool broken_ = false;   // A peer was lost.
  absl::Status stopped_;  // Why the library is closed; OK: it is not.
};

// A transport of `kind` over the fabric, with a watch of its own.
absl::StatusOr<std::unique_ptr<Transport>> NewNetworkTransport(
    const std::string& kind, const TransportOptions& options,
    absl::StatusOr<std::unique_ptr<Fabric>> fabric);

}  // namespace perdure
