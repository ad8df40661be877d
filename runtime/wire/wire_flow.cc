// Frames on open connections: reading, sending, and the bounds of both.
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire_connection.h"
#include "runtime/wire/wire_limits.h"

namespace perdure {
namespace {

absl::Status PeerIsGone(const WireConnection& connection, int error) {
  const char* within = connection.in_filled > 0 ? " in the middle of a frame" : "";
  if (error == 0)
    return Unavailable("node {} has closed the connection{}", connection.peer.node, within);
  return Unavailable("the connection to node {} is lost{}: {}", connection.peer.node, within,
                     std::strerror(error));
}

// Of the frame that begins so.
SecureChannel::Length LengthOf(std::span<const uint8_t> bytes) {
  return SecureChannel::FrameLength(bytes.first<kFrameHeadBytes>());
}

}  // namespace

// ---- Reading ------------------------------------------------------------------------------------

void Wire::ReadFrames(WireConnection* connection) {
  const std::span<uint8_t> buffer = loop_->ReadBuffer();
  size_t read = 0;
  while (connection != nullptr && !connection->waiting && read < kReadBytesTurn) {
    if (connection->in_filled > 0) {
      size_t more = 0;
      connection = ReadRest(connection, &more);
      if (more == 0) return;
      read += more;
      continue;
    }
    // What is left over of it must be kept, so no more is read than may be kept.
    const size_t room =
        options_.incoming_bytes_total - std::min(options_.incoming_bytes_total, incoming_bytes_);
    const size_t want = std::clamp(room, kUnreservedBytes, buffer.size());
    const Received received = ReceiveSome(connection->fd.get(), buffer.first(want));
    if (received.bytes == 0) return;
    if (received.bytes < 0) return Drop(connection, PeerIsGone(*connection, received.error));
    const auto bytes = static_cast<size_t>(received.bytes);
    counters_.bytes_received += bytes;
    read += bytes;
    connection = TakeFrames(connection, buffer.first(bytes));
    if (bytes < want) return;  // That was all, or the rest of a frame is on its way.
  }
}

WireConnection* Wire::TakeFrames(WireConnection* connection, std::span<uint8_t> bytes) {
  while (bytes.size() >= kFrameHeadBytes) {
    const SecureChannel::Length length = LengthOf(bytes);
    if (length.refusal != Refusal::kNone) {
      DropImpossible(connection, length.refusal);
      return nullptr;
    }
    if (bytes.size() < length.frame_bytes) break;
    connection = Deliver(connection, bytes.first(length.frame_bytes));
    if (connection == nullptr) return nullptr;
    bytes = bytes.subspan(length.frame_bytes);
  }
  if (bytes.empty()) return connection;
  // The beginning of a frame. With its length known, memory for all of it is asked for at once;
  // where there is none, this much is kept and the rest left with the kernel.
  const size_t whole =
      bytes.size() < kFrameHeadBytes ? kFrameHeadBytes : LengthOf(bytes).frame_bytes;
  if (!Reserve(connection, whole)) {
    connection->in = std::make_unique_for_overwrite<uint8_t[]>(bytes.size());
    connection->in_capacity = static_cast<uint32_t>(bytes.size());
    incoming_bytes_ += bytes.size();
  }
  std::copy(bytes.begin(), bytes.end(), connection->in.get());
  connection->in_filled = static_cast<uint32_t>(bytes.size());
  connection->in_last = MonotonicNow();
  ArmSweep();
  return connection;
}

void Wire::DropImpossible(WireConnection* connection, Refusal refusal) {
  Count(refusal);
  Drop(connection, DataLoss("node {} announced a frame that cannot be ({})", connection->peer.node,
                            RefusalName(refusal)));
}

// The rest of a frame that has begun, into its own memory. `read`: so many bytes; 0: none for now.
WireConnection* Wire::ReadRest(WireConnection* connection, size_t* read) {
  size_t whole = kFrameHeadBytes;
  if (connection->in_filled >= kFrameHeadBytes) {
    const std::span<const uint8_t> begun(connection->in.get(), connection->in_filled);
    const SecureChannel::Length length = LengthOf(begun);
    if (length.refusal != Refusal::kNone) {
      DropImpossible(connection, length.refusal);
      return nullptr;
    }
    whole = length.frame_bytes;
  }
  if (connection->in_capacity < whole && !Reserve(connection, whole)) return connection;
  const size_t filled = connection->in_filled;
  const Received received =
      ReceiveSome(connection->fd.get(), std::span(connection->in.get() + filled, whole - filled));
  if (received.bytes < 0) {
    Drop(connection, PeerIsGone(*connection, received.error));
    return nullptr;
  }
  if (received.bytes == 0) return connection;
  *read = static_cast<size_t>(received.bytes);
  counters_.bytes_received += static_cast<uint64_t>(received.bytes);
  connection->in_filled += static_cast<uint32_t>(received.bytes);
  connection->in_last = MonotonicNow();
  if (connection->in_filled < whole || whole == kFrameHeadBytes) return connection;
  // Whole. It is no longer the connection's, which may be gone when the callback returns.
  const std::unique_ptr<uint8_t[]> frame = std::move(connection->in);
  const size_t capacity = std::exchange(connection->in_capacity, 0U);
  connection->in_filled = 0;
  const ConnectionId id = connection->id;
  connection = Deliver(connection, std::span(frame.get(), whole));
  Release(id, capacity);
  return connection;
}

WireConnection* Wire::Deliver(WireConnection* connection, std::span<uint8_t> frame) {
  const SecureChannel::Opened opened = connection->channel->Open(frame);
  if (opened.refusal != Refusal::kNone) {
    Count(opened.refusal);
    Drop(connection, DataLoss("a frame on the connection to node {} is not authentic ({})",
                              connection->peer.node, RefusalName(opened.refusal)));
    return nullptr;
  }
  ++counters_.frames_received;
  const ConnectionId id = connection->id;
  callbacks_.on_frame(id,
                      {reinterpret_cast<const char*>(opened.plain.data()), opened.plain.size()});
  return Find(id);
}

// Makes room for a frame of `bytes` and keeps what is there of it. False: not now; the connection
// waits.
bool Wire::Reserve(WireConnection* connection, size_t bytes) {
  const size_t grows = bytes - std::min<size_t>(bytes, connection->in_capacity);
  const bool fits = incoming_bytes_ + grows <= options_.incoming_bytes_total;
  if (!fits && bytes > kUnreservedBytes && favoured_ != connection->id) {
    // One at a time may go beyond the limit, so that those who hold parts cannot all wait for each
    // other.
    if (favoured_ != 0) {
      ++counters_.paused;
      connection->waiting = true;
      waiting_.push_back(connection->id);
      SetEvents(connection);
      return false;
    }
    favoured_ = connection->id;
  }
  auto room = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  std::copy_n(connection->in.get(), connection->in_filled, room.get());
  connection->in = std::move(room);
  connection->in_capacity = static_cast<uint32_t>(bytes);
  incoming_bytes_ += grows;
  return true;
}

void Wire::Release(ConnectionId id, size_t bytes) {
  incoming_bytes_ -= bytes;
  if (favoured_ == id) favoured_ = 0;
  if (!waiting_.empty()) WakeWaiting();
}

// All that may fit: they ask again when they are read, in this order, or nearly so.
void Wire::WakeWaiting() {
  size_t room =
      options_.incoming_bytes_total - std::min(options_.incoming_bytes_total, incoming_bytes_);
  bool favour = favoured_ == 0;
  while (!waiting_.empty()) {
    WireConnection* connection = Find(waiting_.front());
    if (connection != nullptr && connection->waiting) {
      if (room < kFrameBytesMost + kFrameOverheadBytes && !favour) return;
      if (room >= kFrameBytesMost + kFrameOverheadBytes)
        room -= kFrameBytesMost + kFrameOverheadBytes;
      else
        favour = false;
      connection->waiting = false;
      connection->in_last = MonotonicNow();
      SetEvents(connection);
    }
    waiting_.pop_front();
  }
}

// For one who is woken and has nothing to read, another could wait for ever: now and then all may
// try. Who has begun a frame and does not go on gives back what it keeps.
void Wire::SweepFrames(absl::Time now) {
  if (incoming_bytes_ == 0) return;
  std::vector<ConnectionId> stalled;
  for (const std::unique_ptr<WireConnection>& connection : connections_)
    if (connection != nullptr && connection->in_filled > 0 && !connection->waiting &&
        now - connection->in_last >= options_.silence)
      stalled.push_back(connection->id);
  for (const ConnectionId id : stalled) {
    WireConnection* connection = Find(id);
    if (connection == nullptr) continue;  // A callback has closed it.
    Count(Refusal::kTooSlow);
    Drop(connection, Unavailable("node {} has begun a frame and said nothing for {}",
                                 connection->peer.node, absl::FormatDuration(options_.silence)));
  }
  for (size_t count = waiting_.size(); count > 0; --count) {
    WireConnection* connection = Find(waiting_.front());
    waiting_.pop_front();
    if (connection == nullptr || !connection->waiting) continue;
    connection->waiting = false;
    connection->in_last = now;
    SetEvents(connection);
  }
}

// ---- Sending ------------------------------------------------------------------------------------

absl::Status Wire::Send(ConnectionId id, std::string_view bytes) {
  WireConnection* connection = Find(id);
  if (connection == nullptr) return NotFound("connection {:#x} is no more", id);
  if (connection->state != WireState::kOpen)
    return FailedPrecondition("connection {:#x} to node {} is not open yet", id,
                              connection->peer.node);
  if (bytes.empty() || bytes.size() > kFrameBytesMost)
    return InvalidArgument("a frame of {} bytes; 1 to {} go into one", bytes.size(),
                           kFrameBytesMost);
  const size_t frame_bytes = bytes.size() + kFrameOverheadBytes;
  const size_t grows = QueueGrowth(*connection, frame_bytes);
  if (connection->out_bytes + grows > options_.outgoing_bytes_max ||
      connection->out_frames >= options_.outgoing_frames_max ||
      outgoing_bytes_ + grows > options_.outgoing_bytes_total) {
    ++counters_.queue_full;
    return ResourceExhausted(
        "{} B in {} frames wait for node {}, {} B in all: it takes them too slowly; close the "
        "connection, or send less",
        connection->out_bytes, connection->out_frames, connection->peer.node, outgoing_bytes_);
  }
  if (connection->channel->spent())
    return FailedPrecondition(
        "connection {:#x} to node {} has sent all {} frames that a key may seal: connect again", id,
        connection->peer.node, connection->channel->sent());
  const Refusal refusal =
      connection->channel->Seal({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                                QueueSpace(connection, frame_bytes));
  PERDURE_CHECK(refusal == Refusal::kNone);
  ++counters_.frames_sent;
  MarkDirty(connection);
  return absl::OkStatus();
}

// What one more frame makes the queue grow by. A connection with one frame to send has it in a
// piece of just that size; one with more has them together in larger ones.
size_t Wire::QueueGrowth(const WireConnection& connection, size_t bytes) {
  const std::list<WireChunk>& out = connection.out;
  if (out.empty()) return bytes;
  return out.back().capacity - out.back().used >= bytes ? 0 : std::max(bytes, kChunkBytes);
}

// The place of one more frame at the end of the queue.
std::span<uint8_t> Wire::QueueSpace(WireConnection* connection, size_t bytes) {
  std::list<WireChunk>& out = connection->out;
  if (const size_t capacity = QueueGrowth(*connection, bytes); capacity > 0) {
    out.push_back({.bytes = std::make_unique_for_overwrite<uint8_t[]>(capacity),
                   .capacity = static_cast<uint32_t>(capacity)});
    connection->out_bytes += capacity;
    outgoing_bytes_ += capacity;
  }
  WireChunk& last = out.back();
  const std::span<uint8_t> space(last.bytes.get() + last.used, bytes);
  last.used += static_cast<uint32_t>(bytes);
  ++connection->out_frames;
  ++outgoing_frames_;
  return space;
}

void Wire::MarkDirty(WireConnection* connection) {
  if (connection->dirty || connection->wants_write) return;
  connection->dirty = true;
  if (dirty_.empty())
    loop_->Defer([this, alive = alive_] {
      if (*alive) FlushDirty();
    });
  dirty_.push_back(connection->id);
}

void Wire::FlushDirty() {
  std::vector<ConnectionId> now;
  now.swap(dirty_);
  for (const ConnectionId id : now) {
    WireConnection* connection = Find(id);
    if (connection == nullptr) continue;
    connection->dirty = false;
    Flush(connection);
  }
  if (dirty_.empty()) {  // Keep the memory for the next round.
    now.clear();
    dirty_.swap(now);
  }
}

void Wire::Flush(WireConnection* connection) {
  if (!SendQueued(connection)) {
    const int error = errno;
    return Drop(connection, PeerIsGone(*connection, error));
  }
  const bool wants_write = !connection->out.empty();
  if (wants_write == connection->wants_write) return;
  connection->wants_write = wants_write;
  SetEvents(connection);
}

// False: the connection is broken, errno says how.
bool Wire::SendQueued(WireConnection* connection) {
  std::list<WireChunk>& out = connection->out;
  size_t sent_in_turn = 0;
  while (!out.empty() && sent_in_turn < kSendBytesTurn) {
    std::array<iovec, kChunksPerSend> pieces;
    size_t count = 0;
    for (WireChunk& chunk : out) {
      if (count == pieces.size()) break;
      const size_t skip = count == 0 ? connection->out_sent : 0;
      pieces[count++] = {.iov_base = chunk.bytes.get() + skip, .iov_len = chunk.used - skip};
    }
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = count;
    const ssize_t result = ::sendmsg(connection->fd.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
    counters_.bytes_sent += static_cast<uint64_t>(result);
    sent_in_turn += static_cast<size_t>(result);
    TakeSent(connection, static_cast<size_t>(result));
  }
  return true;
}

// Lets go of what was sent, and counts the frames that went with it: their lengths stand in the
// queue, in the clear.
void Wire::TakeSent(WireConnection* connection, size_t bytes) {
  std::list<WireChunk>& out = connection->out;
  while (bytes > 0) {
    WireChunk& first = out.front();
    const size_t step = std::min<size_t>(bytes, first.used - connection->out_sent);
    bytes -= step;
    connection->out_sent += static_cast<uint32_t>(step);
    while (connection->out_frame_end < first.used) {
      const uint8_t* head = first.bytes.get() + connection->out_frame_end;
      const uint32_t plain = head[0] | head[1] << 8 | head[2] << 16 | uint32_t{head[3]} << 24;
      const uint32_t end =
          connection->out_frame_end + plain + static_cast<uint32_t>(kFrameOverheadBytes);
      if (end > connection->out_sent) break;
      connection->out_frame_end = end;
      --connection->out_frames;
      --outgoing_frames_;
    }
    if (connection->out_sent < first.used) return;
    connection->out_bytes -= first.capacity;
    outgoing_bytes_ -= first.capacity;
    connection->out_sent = connection->out_frame_end = 0;
    out.pop_front();
  }
}

}  // namespace perdure
