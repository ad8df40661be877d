#include "runtime/comm/operation.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/peer_watch.h"

namespace perdure {
namespace {

class OperationRequest final : public Request {
 public:
  explicit OperationRequest(OperationRef operation) : operation_(std::move(operation)) {}

  bool done() const override { return operation_->done(); }
  absl::Status status() const override {
    PERDURE_CHECK(operation_->done());
    return operation_->status();
  }
  const Operation& operation() const { return *operation_; }

 private:
  const OperationRef operation_;
};

}  // namespace

void OperationLink::PushBack(OperationLink& node) {
  PERDURE_CHECK(!node.linked());
  node.previous = previous;
  node.next = this;
  previous->next = &node;
  previous = &node;
}

void OperationLink::Unlink() {
  previous->next = next;
  next->previous = previous;
  previous = next = this;
}

Operation::Operation(Kind operation_kind, int peer_rank, uint64_t wire_tag, void* memory,
                     size_t length)
    : kind(operation_kind), peer(peer_rank), tag(wire_tag), data(memory), bytes(length) {
  context.owner = this;
}

Operation::~Operation() { Unlink(); }

void Operation::Finish(absl::Status status) {
  if (done()) return;
  Unlink();
  status_ = std::move(status);
  if (finished_counter != nullptr) ++*finished_counter;
  done_.store(true, std::memory_order_release);
}

void Operation::FinishReceive(size_t received) {
  if (received == bytes) {
    if (sender == nullptr || !sender->IsLost(peer)) return Finish(absl::OkStatus());
    return Finish(Unavailable(
        "rank {} is gone: its process ended or dropped this rank during a message of {} bytes",
        peer, bytes));
  }
  Finish(DataLoss(
      "rank {} sent {} bytes where {} were expected (tag {:#x}); the two sides disagree on the "
      "plan: check that both run the same binary and configuration",
      peer, received, bytes, tag));
}

HeldOperations::~HeldOperations() {
  while (first_ != nullptr) Release(*first_);
}

void HeldOperations::Hold(const OperationRef& operation) {
  PERDURE_CHECK(operation->held_by_library == nullptr);
  operation->held_by_library = operation;
  operation->held_previous = nullptr;
  operation->held_next = first_;
  if (first_ != nullptr) first_->held_previous = operation.get();
  first_ = operation.get();
}

void HeldOperations::Release(Operation& operation) {
  PERDURE_CHECK(operation.held_by_library.get() == &operation);
  Operation*& link =
      operation.held_previous != nullptr ? operation.held_previous->held_next : first_;
  link = operation.held_next;
  if (operation.held_next != nullptr) operation.held_next->held_previous = operation.held_previous;
  const OperationRef last = std::move(operation.held_by_library);
}

RequestPtr MakeRequest(OperationRef operation) {
  return std::make_unique<OperationRequest>(std::move(operation));
}

const Operation& OperationOf(const Request& request) {
  return static_cast<const OperationRequest&>(request).operation();
}

}  // namespace perdure
