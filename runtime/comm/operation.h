// One send or receive under way inside a transport: what a Request looks at, what a peer's list
// holds, what a library is handed. Shared by those three, because each may be the last to let go.
//
// Invariant: Finish() takes effect once; before that the operation may be in one list, after it is
// in none. Threads: fields are the owner's; only done() and Finish() may meet across threads
// (transport_local.cc does that).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/comm/transport.h"

namespace perdure {

class PeerWatch;

// A node of a circular list; a list is a node that belongs to no operation.
struct OperationLink {
  OperationLink* previous = this;
  OperationLink* next = this;

  OperationLink() = default;
  OperationLink(const OperationLink&) = delete;
  OperationLink& operator=(const OperationLink&) = delete;
  bool linked() const { return next != this; }
  void PushBack(OperationLink& node);
  void Unlink();
};

struct Operation : OperationLink {
  enum class Kind : uint8_t { kSend, kRecv };

  // Room for what a library wants to keep beside an operation, and the way back from it.
  struct Context {
    alignas(16) std::array<std::byte, 64> library{};
    Operation* owner = nullptr;
  };

  Operation(Kind operation_kind, int peer_rank, uint64_t wire_tag, void* memory, size_t length);
  ~Operation();

  bool done() const { return done_.load(std::memory_order_acquire); }
  // REQUIRES: done().
  const absl::Status& status() const { return status_; }
  // Done, with this result; later calls change nothing.
  void Finish(absl::Status status);
  // Done because `received` bytes came: DataLoss unless that is what was asked for, Unavailable if
  // `sender` says that they may be something else.
  void FinishReceive(size_t received);

  const Kind kind;
  const int peer;
  const uint64_t
      tag;  // The low kTagBits are the caller's; the next one marks a transport's own messages.
  void* const data;  // Only read where kind is kSend.
  const size_t bytes;
  uint32_t* finished_counter = nullptr;  // Incremented by Finish.

  std::shared_ptr<Operation>
      held_by_library;  // Itself, while a library may still touch it: see HeldOperations.
  Operation* held_previous = nullptr;
  Operation* held_next = nullptr;
  // Of a receive that the library may fetch out of the sender's memory by itself: a sender that was
  // lost meanwhile, but lives, may have put something else there.
  const PeerWatch* sender = nullptr;
  bool last = false;  // A send that must have left this process when it is done.
  void* library_owner = nullptr;
  void* library_handle = nullptr;
  Context context;
  std::vector<std::byte> copy;  // Of a small send that did not wait for its receive.

 private:
  std::atomic<bool> done_{false};
  absl::Status status_;
};

using OperationRef = std::shared_ptr<Operation>;

// The operations that a library knows. They live until it has let go of them or has itself been
// closed.
class HeldOperations {
 public:
  HeldOperations() = default;
  ~HeldOperations();
  HeldOperations(const HeldOperations&) = delete;
  HeldOperations& operator=(const HeldOperations&) = delete;

  void Hold(const OperationRef& operation);
  // The operation may be gone on return.
  void Release(Operation& operation);
  // Calls what(operation) for each; it may release that one, and no other.
  template <typename What>
  void ForEach(const What& what) const {
    for (Operation *each = first_, *next = nullptr; each != nullptr; each = next) {
      next = each->held_next;
      what(*each);
    }
  }

 private:
  Operation* first_ = nullptr;
};

// The caller's handle on an operation.
RequestPtr MakeRequest(OperationRef operation);
// The operation behind a request that MakeRequest made.
const Operation& OperationOf(const Request& request);

}  // namespace perdure
