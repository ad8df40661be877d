// What a network library must give so that network_transport.cc can make a Transport of it: moving
// messages, sleeping, and letting go. Two implementations: transport_ucx.cc and transport_ofi.cc.
// Who is alive, what fails when somebody is not, and how to say good-bye is none of their business.
//
// One thread. An implementation finishes an operation through Operation::Finish and FinishReceive,
// and drops Operation::held_by_library as the last thing it does with it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/comm/operation.h"
#include "runtime/comm/transport.h"

namespace perdure {

class Fabric {
 public:
  // A link that the library saw break.
  struct LinkFailure {
    int peer = 0;
    std::string reason;
  };

  // A receive that a longer message met.
  struct Truncation {
    int peer = 0;
    uint64_t tag = 0;
    size_t bytes = 0;  // Of the message.
  };

  // Closes everything, without waiting for anybody. No operation is touched afterwards.
  virtual ~Fabric() = default;

  virtual std::string name() const = 0;  // "libfabric (tcp;ofi_rxm)".
  virtual absl::StatusOr<std::string> Address() = 0;
  // From here on `peer`, another rank, can be an operation's peer. Both sides see the same
  // `same_host`.
  virtual absl::Status AddPeer(int peer, const std::string& address, bool same_host) = 0;

  // Starts a send or a receive; it may be done on return.
  virtual void Post(const OperationRef& operation) = 0;
  // The first send to a peer: once it is done, no other has to wait for a connection.
  virtual void PostFirst(const OperationRef& operation) = 0;
  // A send that is done when it and every send before it to the same peer need no more help from
  // this process.
  virtual void PostLast(const OperationRef& operation) = 0;
  // Takes back a receive that nothing has matched. It may be let go on return or by a later
  // Progress, or, if it is being filled, when that ends.
  virtual void Cancel(Operation& receive) = 0;
  // Advances everything once; true if something moved, so that another call may be worth it.
  virtual bool Progress() = 0;
  virtual std::vector<LinkFailure> TakeLinkFailures() = 0;
  // Whether messages from `peer` may be fetched out of its memory without its help, and without
  // anything that would fail once it has closed its Fabric.
  virtual bool FetchesFrom(int /*peer*/) const { return false; }
  // Only asked of what PiecewiseFabric is built on.
  virtual std::vector<Truncation> TakeTruncations() { return {}; }
  // Nothing more is sent to `peer`. What it has already sent can still be received.
  virtual void DropPeer(int peer) = 0;

  // How long the caller may sleep on fd() (just sleep if fd() < 0): zero if there is something to
  // progress.
  virtual absl::Duration Arm() = 0;
  virtual int fd() const = 0;
};

// Unimplemented where this build was linked without the library; InvalidArgument where
// options.network names what this machine does not have.
absl::StatusOr<std::unique_ptr<Fabric>> NewUcxFabric(const TransportOptions& options);
absl::StatusOr<std::unique_ptr<Fabric>> NewOfiFabric(const TransportOptions& options);
// Whether this build was linked with the library.
bool UcxIsBuilt();
bool OfiIsBuilt();

}  // namespace perdure
