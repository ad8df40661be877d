// The connections of one agent, by who is at the other end: it sends to an endpoint, and whether
// there is a connection, who opens it and where the other one listens is settled here.
//
// An agent owns it; its loop's thread calls everything. Nothing is promised about delivery: what
// cannot be sent is dropped, because the control plane says again what has had no effect. What
// waits for a connection is bounded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/agent/peer_frame.h"
#include "runtime/agent/records.h"
#include "runtime/control/log_view.h"
#include "runtime/wire/wire.h"

namespace perdure {

struct PeersOptions {
  WireOptions wire;
  // How long it is tried to reach somebody before what waits for him is dropped.
  absl::Duration connect_time = absl::Seconds(2);
  size_t waiting_frames_max = 64;
  size_t waiting_bytes_max = size_t{4} << 20;
};

struct PeersCallbacks {
  std::function<void(const Endpoint& from, ControlMessage message)> on_message;
  // No connection to that node of the own job is left; there was one.
  std::function<void(NodeId node)> on_closed;
  // A question after a snapshot, or an answer to one, of a node of the own job. May be empty.
  std::function<void(NodeId from, SnapshotFrame frame)> on_snapshot = {};
  // A connection to that node was closed, or did not come about: what was under way over it may be
  // lost. May be empty.
  std::function<void(NodeId node)> on_lost = {};
  // The key of another job of this run, to ask its coordinator whether it lives.
  std::function<absl::StatusOr<JobKey>(uint64_t job)> key_of_job;
};

struct PeersCounters {
  uint64_t sent = 0, received = 0;
  uint64_t dropped = 0;    // Not sent: no address, or too much waits.
  uint64_t malformed = 0;  // Frames that could not be read; their connections were closed.
};

class Peers {
 public:
  static absl::StatusOr<std::unique_ptr<Peers>> New(EventLoop* loop, JobKey key,
                                                    const PeersOptions& options,
                                                    PeersCallbacks callbacks);
  ~Peers();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  const WireAddress& address() const { return wire_->address(); }
  const Wire& wire() const { return *wire_; }
  const PeersCounters& counters() const { return counters_; }

  // Who leads, as the run log says it; of this job or another one.
  void LearnLeader(const Author& author, const LeadRecord& record);

  void Send(const Endpoint& to, const ControlMessage& message);
  // Tells `to` where those `nodes` listen that this agent knows of.
  void SendDirectory(NodeId to, const std::vector<NodeId>& nodes);
  // To another node of the own job. Unlike control messages this is not said again by itself:
  // ResourceExhausted: too much waits for that node already. Unavailable: where it listens is not
  // known; whoever leads has been asked.
  absl::Status SendSnapshot(NodeId to, const SnapshotFrame& frame);

 private:
  struct Peer {
    std::vector<ConnectionId> open;  // The newest last; that one is used.
    uint64_t incarnation = 0;        // Of those.
    ConnectionId connecting = 0;
    std::optional<WireAddress> address;
    std::vector<std::string> waiting;
    size_t waiting_bytes = 0;
  };
  // To another job's coordinator.
  struct Visit {
    Endpoint to;
    std::unique_ptr<Wire> wire;
    ConnectionId connection = 0;
    bool open = false;
    std::string waiting;  // The newest frame.
  };
  struct OtherLeader {
    Author author;
    LeadRecord record;
  };

  Peers(EventLoop* loop, const PeersOptions& options, PeersCallbacks callbacks);
  void OnOpen(ConnectionId connection, const WirePeer& who, bool incoming);
  void OnFrame(ConnectionId connection, std::string_view bytes);
  void OnClose(ConnectionId connection);
  void Handle(NodeId node, PeerFrame frame);
  void HandleGuest(ConnectionId connection, const PeerFrame& frame);
  absl::Status SendFrame(NodeId to, std::string frame);
  void SendGuest(NodeId guest, const std::string& frame);
  void Lost(ConnectionId connection, NodeId node);
  void Unreached(NodeId node, Peer& peer);
  void LearnAddress(Peer& peer, NodeId node, const WireAddress& address);
  void VisitOther(const Endpoint& to, std::string frame);
  absl::Status BeginVisit(const Endpoint& to);
  void OnVisitFrame(std::string_view bytes);

  EventLoop* const loop_;
  const PeersOptions options_;
  const PeersCallbacks callbacks_;
  std::unique_ptr<Wire> wire_;
  std::map<NodeId, Peer> peers_;
  std::map<ConnectionId, NodeId> nodes_;  // Of open connections.
  // Who asks from another job, by a number that stands in for a node.
  std::map<NodeId, ConnectionId> guests_;
  std::map<ConnectionId, NodeId> guest_numbers_;
  NodeId next_guest_ = 0;
  std::optional<OtherLeader> other_leader_;
  std::optional<NodeId> leader_;  // Of the own job, by the run log.
  Visit visit_;
  PeersCounters counters_;
};

}  // namespace perdure
