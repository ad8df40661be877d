#include "runtime/agent/peers.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The job of endpoints that stand for guests. No scheduler gives that number.
constexpr uint64_t kGuestJob = std::numeric_limits<uint64_t>::max();

// REQUIRES: it is one.
SnapshotFrame TakeSnapshotFrame(PeerFrame frame) {
  if (auto* fetch = std::get_if<Fetch>(&frame)) return *fetch;
  if (auto* piece = std::get_if<SnapshotPiece>(&frame)) return std::move(*piece);
  return std::get<Refused>(frame);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Peers>> Peers::New(EventLoop* loop, JobKey key,
                                                  const PeersOptions& options,
                                                  PeersCallbacks callbacks) {
  std::unique_ptr<Peers> peers(new Peers(loop, options, std::move(callbacks)));
  Peers* const p = peers.get();
  ASSIGN_OR_RETURN(
      peers->wire_,
      Wire::New(loop, std::move(key), options.wire,
                {.on_open = [p](ConnectionId id, const WirePeer& who,
                                bool incoming) { p->OnOpen(id, who, incoming); },
                 .on_frame = [p](ConnectionId id, std::string_view b) { p->OnFrame(id, b); },
                 .on_close = [p](ConnectionId id, const absl::Status&) { p->OnClose(id); }}));
  return peers;
}

Peers::Peers(EventLoop* loop, const PeersOptions& options, PeersCallbacks callbacks)
    : loop_(loop), options_(options), callbacks_(std::move(callbacks)) {}

Peers::~Peers() = default;

void Peers::LearnLeader(const Author& author, const LeadRecord& record) {
  if (author.at.job != options_.wire.job) {
    other_leader_ = OtherLeader{author, record};
    return;
  }
  leader_ = author.at.node;
  if (author.at.node == options_.wire.self.node) return;
  if (absl::StatusOr<WireAddress> address = ParseWireAddressText(record.address); address.ok())
    peers_[author.at.node].address = *address;
}

// ---- sending

void Peers::Send(const Endpoint& to, const ControlMessage& message) {
  std::string frame = EncodePeerFrame(message);
  if (to.job == options_.wire.job)
    (void)SendFrame(to.node, std::move(frame));
  else if (to.job == kGuestJob)
    SendGuest(to.node, frame);
  else
    VisitOther(to, std::move(frame));
}

void Peers::SendDirectory(NodeId to, const std::vector<NodeId>& nodes) {
  Directory directory;
  for (const NodeId node : nodes)
    if (const auto peer = peers_.find(node); peer != peers_.end() && peer->second.address)
      directory.entries.push_back({.node = node, .address = *peer->second.address});
  if (!directory.entries.empty()) (void)SendFrame(to, EncodePeerFrame(directory));
}

absl::Status Peers::SendSnapshot(NodeId to, const SnapshotFrame& frame) {
  PERDURE_CHECK(to != options_.wire.self.node);
  const Peer& peer = peers_[to];
  // What is known may be of an earlier life.
  const bool begins = peer.open.empty() && peer.connecting == 0;
  if (begins && leader_.has_value() && *leader_ != options_.wire.self.node && *leader_ != to)
    (void)SendFrame(*leader_, EncodePeerFrame(Where{{to}}));
  if (peer.open.empty() && !peer.address.has_value())
    return Unavailable("it is not known where node {} listens", to);
  return SendFrame(to, std::visit([](const auto& f) { return EncodePeerFrame(f); }, frame));
}

absl::Status Peers::SendFrame(NodeId to, std::string frame) {
  Peer& peer = peers_[to];
  if (!peer.open.empty()) {
    absl::Status sent = wire_->Send(peer.open.back(), frame);
    sent.ok() ? ++counters_.sent : ++counters_.dropped;
    return sent;
  }
  if (!peer.address.has_value() || peer.waiting.size() >= options_.waiting_frames_max ||
      peer.waiting_bytes + frame.size() > options_.waiting_bytes_max) {
    ++counters_.dropped;
    return ResourceExhausted("node {} cannot be told so much before it is reached", to);
  }
  peer.waiting_bytes += frame.size();
  peer.waiting.push_back(std::move(frame));
  if (peer.connecting == 0)
    peer.connecting = wire_->Connect(*peer.address, to, 0, MonotonicNow() + options_.connect_time);
  return absl::OkStatus();
}

void Peers::SendGuest(NodeId guest, const std::string& frame) {
  const auto at = guests_.find(guest);
  const bool sent = at != guests_.end() && wire_->Send(at->second, frame).ok();
  sent ? ++counters_.sent : ++counters_.dropped;
}

// ---- connections of the own job

void Peers::OnOpen(ConnectionId connection, const WirePeer& who, bool incoming) {
  if (who.node == kGuestNode) {
    guests_[next_guest_] = connection;
    guest_numbers_[connection] = next_guest_++;
    return;
  }
  Peer& peer = peers_[who.node];
  if (peer.incarnation != who.incarnation) {
    // Of a life that is over, whatever its kernel has not told yet.
    for (const ConnectionId old : peer.open) {
      nodes_.erase(old);
      wire_->Close(old);
    }
    const bool had = !peer.open.empty();
    peer.open.clear();
    peer.incarnation = who.incarnation;
    if (had && callbacks_.on_lost) callbacks_.on_lost(who.node);
    if (had) callbacks_.on_closed(who.node);
  }
  peer.open.push_back(connection);
  nodes_[connection] = who.node;
  if (peer.connecting == connection) peer.connecting = 0;
  if (!incoming) (void)wire_->Send(connection, EncodePeerFrame(Introduction{address()}));
  peer.waiting_bytes = 0;
  for (const std::string& frame : std::exchange(peer.waiting, {}))
    wire_->Send(connection, frame).ok() ? ++counters_.sent : ++counters_.dropped;
}

void Peers::OnFrame(ConnectionId connection, std::string_view bytes) {
  absl::StatusOr<PeerFrame> frame = DecodePeerFrame(bytes);
  const auto node = nodes_.find(connection);
  if (!frame.ok()) {
    ++counters_.malformed;
    wire_->Close(connection);
    OnClose(connection);
  } else if (node != nodes_.end()) {
    Handle(node->second, *std::move(frame));
  } else {
    HandleGuest(connection, *frame);
  }
}

void Peers::Handle(NodeId node, PeerFrame frame) {
  ++counters_.received;
  if (auto* message = std::get_if<ControlMessage>(&frame)) {
    callbacks_.on_message({.job = options_.wire.job, .node = node}, std::move(*message));
  } else if (const auto* introduction = std::get_if<Introduction>(&frame)) {
    peers_[node].address = introduction->address;
  } else if (const auto* directory = std::get_if<Directory>(&frame)) {
    for (const Directory::Entry& entry : directory->entries)
      if (entry.node < options_.wire.nodes && entry.node != options_.wire.self.node)
        LearnAddress(peers_[entry.node], entry.node, entry.address);
  } else if (const auto* where = std::get_if<Where>(&frame)) {
    SendDirectory(node, where->nodes);
  } else if (callbacks_.on_snapshot) {
    callbacks_.on_snapshot(node, TakeSnapshotFrame(std::move(frame)));
  }
}

void Peers::OnClose(ConnectionId connection) {
  if (const auto guest = guest_numbers_.find(connection); guest != guest_numbers_.end()) {
    guests_.erase(guest->second);
    guest_numbers_.erase(guest);
    return;
  }
  if (const auto node = nodes_.find(connection); node != nodes_.end()) {
    const NodeId lost = node->second;
    nodes_.erase(node);
    Lost(connection, lost);
    return;
  }
  // One that never opened.
  for (auto& [peer_node, peer] : peers_)
    if (peer.connecting == connection) return Unreached(peer_node, peer);
}

void Peers::LearnAddress(Peer& peer, NodeId node, const WireAddress& address) {
  const bool other = peer.address != address;
  peer.address = address;
  if (!other || peer.connecting == 0) return;
  wire_->Close(peer.connecting);
  peer.connecting = wire_->Connect(address, node, 0, MonotonicNow() + options_.connect_time);
}

// A node's next life listens elsewhere; where, whoever leads knows. Where that one listens is in
// the log.
void Peers::Unreached(NodeId node, Peer& peer) {
  peer.connecting = 0;
  counters_.dropped += peer.waiting.size();
  peer.waiting.clear();
  peer.waiting_bytes = 0;
  if (node != leader_) peer.address.reset();
  if (callbacks_.on_lost) callbacks_.on_lost(node);
}

void Peers::Lost(ConnectionId connection, NodeId node) {
  Peer& peer = peers_[node];
  std::erase(peer.open, connection);
  if (callbacks_.on_lost) callbacks_.on_lost(node);
  if (peer.open.empty()) callbacks_.on_closed(node);
}

// ---- between jobs

// Whoever holds this job's key without belonging to it may ask who leads, and nothing else.
void Peers::HandleGuest(ConnectionId connection, const PeerFrame& frame) {
  const auto* message = std::get_if<ControlMessage>(&frame);
  if (message == nullptr || !std::holds_alternative<msg::Probe>(*message)) {
    if (std::holds_alternative<Introduction>(frame)) return;
    ++counters_.malformed;
    wire_->Close(connection);
    OnClose(connection);
    return;
  }
  ++counters_.received;
  callbacks_.on_message({.job = kGuestJob, .node = guest_numbers_.at(connection)}, *message);
}

void Peers::VisitOther(const Endpoint& to, std::string frame) {
  if (visit_.wire == nullptr || visit_.to != to || visit_.connection == 0)
    if (!BeginVisit(to).ok()) {
      ++counters_.dropped;
      return;
    }
  if (visit_.open && visit_.wire->Send(visit_.connection, frame).ok()) {
    ++counters_.sent;
    return;
  }
  visit_.waiting = std::move(frame);
}

// A wire of its own, because the other job has another key; it only goes out.
absl::Status Peers::BeginVisit(const Endpoint& to) {
  if (!other_leader_.has_value() || other_leader_->author.at != to)
    return NotFound("no address of job {}, node {}", to.job, to.node);
  ASSIGN_OR_RETURN(const WireAddress address, ParseWireAddressText(other_leader_->record.address));
  if (visit_.wire == nullptr || visit_.to != to) {
    // Not at once: this may be one of its callbacks.
    if (visit_.wire != nullptr)
      loop_->Defer([old = std::shared_ptr<Wire>(std::move(visit_.wire))] {});
    visit_ = Visit{.to = to};
    ASSIGN_OR_RETURN(JobKey key, callbacks_.key_of_job(to.job));
    WireOptions options = options_.wire;
    options.job = to.job;
    options.self.node = kGuestNode;
    options.interface.clear();
    options.nodes = 0;
    options.connections_max = 1;
    ASSIGN_OR_RETURN(
        visit_.wire,
        Wire::New(loop_, std::move(key), options,
                  {.on_open =
                       [this](ConnectionId id, const WirePeer&, bool) {
                         visit_.open = true;
                         if (!visit_.waiting.empty() && visit_.wire->Send(id, visit_.waiting).ok())
                           ++counters_.sent;
                         visit_.waiting.clear();
                       },
                   .on_frame = [this](ConnectionId, std::string_view b) { OnVisitFrame(b); },
                   .on_close =
                       [this](ConnectionId, const absl::Status&) {
                         visit_.connection = 0;
                         visit_.open = false;
                       }}));
  }
  visit_.open = false;
  visit_.connection = visit_.wire->Connect(address, to.node, other_leader_->author.incarnation,
                                           MonotonicNow() + options_.connect_time);
  return absl::OkStatus();
}

void Peers::OnVisitFrame(std::string_view bytes) {
  const absl::StatusOr<PeerFrame> frame = DecodePeerFrame(bytes);
  const auto* message = frame.ok() ? std::get_if<ControlMessage>(&*frame) : nullptr;
  if (message == nullptr || !std::holds_alternative<msg::Leading>(*message)) {
    ++counters_.malformed;
    return;
  }
  ++counters_.received;
  callbacks_.on_message(visit_.to, *message);
}

}  // namespace perdure
