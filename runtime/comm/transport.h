// Point-to-point messages between the ranks of one generation. Three real implementations, chosen
// at run time: transport_ucx.cc, transport_ofi.cc (libfabric), transport_local.cc (threads of one
// process).
//
// Life: construct, hand LocalAddress() to everybody out of band (the launcher's bootstrap socket),
// Connect() with the table of all addresses, then Send/Recv. A Transport lives for one generation
// and is dropped, never repaired. It belongs to one thread, but for Cancel() and cancelled().
// Waiting does not spin: ranks outnumber cores (wakeup descriptors, wait objects, condition
// variables); a short spin is allowed only where TransportOptions::spin says that cores are enough.
//
// Failure: a peer that dies, resets or cannot be reached makes every request that needs it finish
// with Unavailable, naming the rank; requests with other peers go on. Nothing aborts and nothing
// waits for ever on a dead peer. One exception: a rank killed while it writes into shared memory
// (UCX's queues between ranks of one node) can leave the queue of the one it wrote to blocked for
// all. That the writer is gone is noticed there, too; what else it waits for ends with Cancel().
//
// Stopping: Cancel(), from any thread, makes everything finish with Cancelled. The transport's own
// thread does the work, at its next call or where it sleeps: what connects this rank to others is
// closed first, waiting for nobody, and the requests are done after that. So a request that is done
// gives its memory back for good: whatever a live peer still sends lands nowhere, and no peer takes
// for a message what lies in memory that has been given back. To peers this rank is lost: their
// requests with it finish with Unavailable. Destruction then waits for nobody. A rank whose peer is
// lost and that drops its transport does well to call Cancel() before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perdure {

// Matches a send with a receive between the same two ranks. Messages with one (peer, tag) match in
// order of posting.
using Tag = uint64_t;  // Only the low 40 bits may be set: the rest carries the sender inside the
                       // implementations.
inline constexpr int kTagBits = 40;

// One operation under way. Owned by the caller; movable; must not be destroyed before it is done,
// unless the transport is shut down first.
class Request {
 public:
  virtual ~Request() = default;
  // True once finished, well or badly.
  virtual bool done() const = 0;
  // REQUIRES: done().
  virtual absl::Status status() const = 0;
};
using RequestPtr = std::unique_ptr<Request>;

struct TransportOptions {
  int rank = 0;
  int size = 1;
  bool spin = false;  // Spin briefly before sleeping: only when every rank has a core of its own.
  std::string
      network;  // UCX_TLS for ucx, provider name for libfabric; empty: let the library choose.
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name()
      const = 0;  // "ucx (shm,tcp)", "libfabric (tcp;ofi_rxm)", "local": for logs.

  // An opaque address, at most 64 KiB, that lets any other rank Connect() to this one.
  virtual absl::StatusOr<std::string> LocalAddress() = 0;
  // addresses[r] is rank r's LocalAddress(). Returns when every peer can be sent to, or Unavailable
  // / DeadlineExceeded naming the peers that cannot be reached.
  virtual absl::Status Connect(std::span<const std::string> addresses, absl::Duration timeout) = 0;

  // Non-blocking. The memory must stay untouched (Send) or unread (Recv) until the request is done.
  // Zero bytes are fine. Sending to oneself is allowed. A message longer than the receive's `bytes`
  // finishes it with DataLoss; a shorter one too: both sides always know the length.
  virtual RequestPtr Send(int peer, Tag tag, const void* data, size_t bytes) = 0;
  virtual RequestPtr Recv(int peer, Tag tag, void* data, size_t bytes) = 0;

  // Lets outstanding operations advance; never blocks. Call it between pieces of compute so that
  // exchanges overlap.
  virtual void Progress() = 0;
  // Blocks, asleep when there is nothing to do, until every request is done; returns Cancelled once
  // Cancel() was called, else the first error in order. Null pointers in the span are skipped.
  virtual absl::Status WaitAll(std::span<const RequestPtr> requests) = 0;
  absl::Status Wait(const RequestPtr& request) { return WaitAll({&request, 1}); }

  // Marks `peer` as lost (told by the control plane, for example): all its requests finish with
  // Unavailable.
  virtual void FailPeer(int peer, const std::string& reason) = 0;

  // Thread-safe, unlike the rest: everything under way and everything later finishes with
  // Cancelled(reason), and a WaitAll or Connect that sleeps returns at once. Once; for ever. The
  // transport must be alive when it is called, and may be gone when it returns.
  virtual void Cancel(const std::string& reason) = 0;
  // Thread-safe. What Cancel() has said: Cancelled, or OK if nobody has called it.
  virtual absl::Status cancelled() const = 0;
};

// kind: "ucx", "libfabric" or "local". InvalidArgument with the known kinds otherwise;
// Unimplemented where this build was linked without that library.
class LocalHub;  // Where the threads of one process meet.
std::shared_ptr<LocalHub> NewLocalHub(int size);
absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const std::string& kind,
                                                        const TransportOptions& options,
                                                        std::shared_ptr<LocalHub> hub = nullptr);
// The kinds that this build was linked with.
std::vector<std::string> LinkedTransports();

}  // namespace perdure
