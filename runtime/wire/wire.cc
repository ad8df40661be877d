// Connections by id, from their first byte to their end.
#include "runtime/wire/wire.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire_connection.h"
#include "runtime/wire/wire_limits.h"

namespace perdure {

static_assert(kHelloBytes + kConfirmationBytes <= 256);  // Read before a connection is proved.

namespace {

// Of an id, the low bits: its place in the table. The rest counts connections, and would take
// centuries to come round.
constexpr int kIndexBits = 20;
constexpr uint64_t kIndexMask = (uint64_t{1} << kIndexBits) - 1;
static_assert(Wire::kConnectionsMost == kIndexMask + 1);

absl::Status CheckOptions(const WireOptions& options) {
  if (options.self.incarnation == 0)
    return InvalidArgument("an agent's incarnation is never 0: draw a random one");
  if (options.run_id.size() > 255)
    return InvalidArgument("a run id of {} bytes; at most 255", options.run_id.size());
  if (options.connections_max == 0 || options.connections_max > Wire::kConnectionsMost)
    return InvalidArgument("connections_max = {}; 1 to {}", options.connections_max,
                           Wire::kConnectionsMost);
  constexpr size_t kOneFrame = kFrameBytesMost + kFrameOverheadBytes;
  if (options.outgoing_bytes_max < kOneFrame || options.outgoing_bytes_total < kOneFrame ||
      options.outgoing_frames_max == 0)
    return InvalidArgument(
        "queues of {} B and {} frames, {} B in all: the largest frame, of {} B, must have room",
        options.outgoing_bytes_max, options.outgoing_frames_max, options.outgoing_bytes_total,
        kOneFrame);
  return absl::OkStatus();
}

}  // namespace

Wire::Wire(EventLoop* loop, JobKey key, WireOptions options, WireCallbacks callbacks)
    : loop_(loop),
      key_(std::move(key)),
      options_(std::move(options)),
      callbacks_(std::move(callbacks)),
      admission_(options_.admission),
      replays_(options_.admission.hellos),
      alive_(std::make_shared<bool>(true)) {
  PERDURE_CHECK(callbacks_.on_open && callbacks_.on_frame && callbacks_.on_close);
  terms_ = {.run_id = options_.run_id,
            .job = options_.job,
            .responder = options_.self.node,
            .address = {}};
}

absl::StatusOr<std::unique_ptr<Wire>> Wire::New(EventLoop* loop, JobKey key, WireOptions options,
                                                WireCallbacks callbacks) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<Wire> wire(
      new Wire(loop, std::move(key), std::move(options), std::move(callbacks)));
  if (!wire->options_.interface.empty()) RETURN_IF_ERROR(wire->Listen());
  return wire;
}

Wire::~Wire() {
  *alive_ = false;
  loop_->CancelTimer(sweep_);
  loop_->CancelTimer(accept_again_);
  loop_->RemoveFd(listener_.get());
  for (HalfOpen& half_open : half_open_) loop_->RemoveFd(half_open.fd.get());
  for (const std::unique_ptr<WireConnection>& connection : connections_)
    if (connection != nullptr) {
      loop_->RemoveFd(connection->fd.get());
      if (connection->attempt != nullptr) loop_->CancelTimer(connection->attempt->timer);
    }
}

WireConnection* Wire::Find(ConnectionId id) const {
  const size_t index = id & kIndexMask;
  if (index >= connections_.size() || connections_[index] == nullptr ||
      connections_[index]->id != id)
    return nullptr;
  return connections_[index].get();
}

WireConnection* Wire::NewConnection() {
  if (free_.empty()) {
    PERDURE_CHECK(connections_.size() < kConnectionsMost);
    free_.push_back(static_cast<uint32_t>(connections_.size()));
    connections_.emplace_back();
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  connections_[index] = std::make_unique<WireConnection>();
  connections_[index]->id = ++generation_ << kIndexBits | index;
  ++connections_count_;
  return connections_[index].get();
}

void Wire::Forget(WireConnection* connection) {
  loop_->RemoveFd(connection->fd.get());
  if (connection->attempt != nullptr) loop_->CancelTimer(connection->attempt->timer);
  if (connection->state == WireState::kConfirming) --unconfirmed_count_;
  outgoing_bytes_ -= connection->out_bytes;
  outgoing_frames_ -= connection->out_frames;
  const ConnectionId id = connection->id;
  const size_t reserved = connection->in_capacity;
  --connections_count_;
  free_.push_back(static_cast<uint32_t>(id & kIndexMask));
  connections_[id & kIndexMask].reset();
  Release(id, reserved);
}

void Wire::Drop(WireConnection* connection, const absl::Status& status) {
  const ConnectionId id = connection->id;
  const bool known = connection->state == WireState::kOpen || !connection->incoming;
  Forget(connection);
  if (known) callbacks_.on_close(id, status);
}

void Wire::Close(ConnectionId id) {
  WireConnection* connection = Find(id);
  if (connection == nullptr) return;
  if (connection->state == WireState::kOpen && !connection->out.empty())
    (void)SendQueued(connection);
  Forget(connection);
}

absl::Status Wire::Watch(WireConnection* connection, uint32_t events) {
  return loop_->AddFd(connection->fd.get(), events,
                      [this, id = connection->id](uint32_t happened) { OnEvents(id, happened); });
}

void Wire::SetEvents(WireConnection* connection) {
  const uint32_t read = connection->waiting ? 0U : uint32_t{EPOLLIN};
  loop_->ChangeFd(connection->fd.get(), connection->wants_write ? read | EPOLLOUT : read);
}

void Wire::OnEvents(ConnectionId id, uint32_t events) {
  WireConnection* connection = Find(id);
  PERDURE_CHECK(connection != nullptr);  // Forget removes the descriptor first.
  switch (connection->state) {
    case WireState::kPausing:
      return;
    case WireState::kConnecting:
      return SendHello(connection);
    case WireState::kAsking:
      return ReadAnswer(connection);
    case WireState::kConfirming:
      return ReadConfirmation(connection);
    case WireState::kOpen:
      break;
  }
  if ((events & EPOLLOUT) != 0) {
    Flush(connection);
    connection = Find(id);
    if (connection == nullptr) return;
  }
  if (!connection->waiting) {
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ReadFrames(connection);
  } else if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    Drop(connection, Unavailable("node {} has closed the connection", connection->peer.node));
  }
}

void Wire::Opened(WireConnection* connection) {
  connection->state = WireState::kOpen;
  connection->attempt.reset();
  connection->confirmation.reset();
  ++(connection->incoming ? counters_.opened_incoming : counters_.opened_outgoing);
  callbacks_.on_open(connection->id, connection->peer, connection->incoming);
}

WireUsage Wire::Usage() const {
  WireUsage usage{.connections = connections_count_,
                  .half_open = admission_.held(),
                  .unconfirmed = unconfirmed_count_,
                  .outgoing_bytes = outgoing_bytes_,
                  .outgoing_frames = outgoing_frames_,
                  .incoming_bytes = incoming_bytes_};
  usage.table_bytes = sizeof(Wire) + Admission::BytesMost(options_.admission) +
                      2 * options_.admission.places * sizeof(HalfOpen);
  // A connection at its most: itself with what it needs until it is open, a frame too small to be
  // reserved, its entries in the loop and in our tables.
  constexpr uint64_t kEach = sizeof(WireConnection) + sizeof(WireAttempt) +
                             sizeof(WireConfirmation) + kUnreservedBytes + 256;
  usage.bytes_bound = usage.table_bytes + options_.connections_max * kEach +
                      options_.outgoing_bytes_total + options_.incoming_bytes_total +
                      kFrameBytesMost + kFrameOverheadBytes;
  return usage;
}

std::string WireUsage::Text() const {
  return fmt::format(
      "{} connections ({} unconfirmed), {} half open; {} B in {} frames to send, {} B of frames "
      "received in part; at most {} B, of which {} B for tables",
      connections, unconfirmed, half_open, outgoing_bytes, outgoing_frames, incoming_bytes,
      bytes_bound, table_bytes);
}

}  // namespace perdure
