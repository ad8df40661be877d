// Authenticated, encrypted, bounded messages between the agents of one job.
//
// One listener at one address of one interface, any number of connections either way, frames of 1 B
// to 1 MiB on each, in order, whole. Any user of a shared machine can reach the listener: until a
// connection has proved that it holds K_job it gets no word, a fixed place at most (admission.h),
// and 116 bytes of it are read. What peers may make this process keep is bounded, too: see
// WireUsage.
//
// An agent owns it. One thread, that of its EventLoop. Callbacks are called from the loop only,
// never from inside a call of the Wire; they may call anything of it but the destructor. A
// connection is dropped at the first byte that is wrong, never repaired.
//
// There is no keep-alive: the caller's heartbeats tell who is alive. For WireOptions::silence the
// peer's kernel may leave what was sent unacknowledged, or its window shut, and the peer a frame
// that it has begun without another byte; then the connection ends. An end is not authenticated
// (anybody on the path can cut a connection): it means "unknown", a leave is a frame.
//
// An idle connection has no buffers, and wires of one loop share what they read into; tests/wire/
// wire_memory_test.cc measures both.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/wire/admission.h"
#include "runtime/wire/event_loop.h"
#include "runtime/wire/job_key.h"
#include "runtime/wire/refusal.h"
#include "runtime/wire/secure_channel.h"
#include "runtime/wire/wire_sockets.h"

namespace perdure {

struct WireConnection;

using ConnectionId = uint64_t;  // Never used twice by a wire; 0: none.

struct WirePeer {
  uint64_t job = 0;
  uint32_t node = 0;
  uint64_t incarnation = 0;
  friend bool operator==(const WirePeer&, const WirePeer&) = default;
};

struct WireOptions {
  std::string run_id;
  uint64_t job = 0;
  AgentIdentity self;
  uint32_t nodes = 0;     // Of the job: node numbers from here on are refused. 0: any.
  std::string interface;  // Where to listen: "ib0" or "10.0.0.5". Empty: outgoing only.
  uint16_t port = 0;      // 0: the kernel chooses.

  uint32_t connections_max = 8192;                  // At most kConnectionsMost.
  size_t outgoing_bytes_max = size_t{4} << 20;      // Queued per connection,
  uint32_t outgoing_frames_max = 1024;              // and frames,
  size_t outgoing_bytes_total = size_t{256} << 20;  // and in all; each has room for one frame.
  size_t incoming_bytes_total = size_t{64} << 20;   // Of frames that have come in part.
  uint64_t frames_max = kFramesMax;                 // Of a connection, each way.
  AdmissionLimits admission;

  absl::Duration attempt_time = absl::Seconds(5);       // To connect and be answered, once.
  absl::Duration retry_first = absl::Milliseconds(20);  // Doubles with each attempt, up to
  absl::Duration retry_last = absl::Seconds(1);         // this; half to one and a half of it.
  absl::Duration silence = absl::Seconds(15);
};

struct WireCallbacks {
  // Proved: `peer` holds the key. `incoming`: it has connected to us.
  std::function<void(ConnectionId, const WirePeer& peer, bool incoming)> on_open;
  // `bytes` live until it returns.
  std::function<void(ConnectionId, std::string_view bytes)> on_frame;
  // The connection is gone, and its id with it. Of one that was open or that Connect began, unless
  // the caller has closed it. Unavailable: the peer is gone, or could not be reached in time.
  // DataLoss: what came was not what was sent.
  std::function<void(ConnectionId, const absl::Status&)> on_close;
};

// For metrics. Counts since the beginning.
struct WireCounters {
  uint64_t accepted = 0;  // TCP connections, of anybody.
  uint64_t opened_incoming = 0, opened_outgoing = 0;
  uint64_t attempts = 0;  // Outgoing connections tried, retries among them.
  uint64_t frames_sent = 0, frames_received = 0;
  uint64_t bytes_sent = 0, bytes_received = 0;  // On open connections, as on the network.
  uint64_t queue_full = 0;                      // Sends that were refused.
  uint64_t paused = 0;                          // Connections that had to wait for memory.
  std::array<uint64_t, kRefusals> refused{};    // By kind: see RefusalName.
  uint64_t operator[](Refusal refusal) const { return refused[static_cast<size_t>(refusal)]; }
};

// What the wire keeps now, in bytes and numbers, and what it may keep at most.
struct WireUsage {
  uint32_t connections = 0;  // Open, and under way.
  uint32_t half_open = 0;    // Unproved, holding a place.
  uint32_t unconfirmed = 0;  // Incoming, hello proved, confirmation awaited.
  uint64_t outgoing_bytes = 0, outgoing_frames = 0;
  uint64_t incoming_bytes = 0;
  uint64_t table_bytes = 0;  // The wire itself, with its tables about strangers at their largest.
  // No peer can make it keep more: all of the above, at its limits. The loop's read buffer, which
  // all wires share, comes on top.
  uint64_t bytes_bound = 0;
  std::string Text() const;  // One line, for people.
};

class Wire {
 public:
  static constexpr uint32_t kConnectionsMost = 1 << 20;

  // InvalidArgument: the options. Other errors: the port cannot be had. `loop` outlives the wire.
  static absl::StatusOr<std::unique_ptr<Wire>> New(EventLoop* loop, JobKey key, WireOptions options,
                                                   WireCallbacks callbacks);
  // Closes everything; no callback is called.
  ~Wire();
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  // Where peers reach this agent.
  const WireAddress& address() const { return terms_.address; }

  // Tries, again and again with random pauses, until `deadline` on MonotonicNow()'s clock; then
  // on_open or on_close follows. `incarnation` 0: whichever life of that node.
  ConnectionId Connect(const WireAddress& to, uint32_t node, uint64_t incarnation,
                       absl::Time deadline);

  // Queues one frame and returns; it is sent at the end of the loop's round. ResourceExhausted: the
  // peer takes its frames too slowly, nothing was queued. NotFound: no such connection any more.
  // FailedPrecondition: not open yet. InvalidArgument: an empty frame, or one above 1 MiB.
  absl::Status Send(ConnectionId connection, std::string_view bytes);

  // Tries once to send what is queued, and closes. No callback follows. Who must know that the last
  // frame has arrived waits for an answer to it.
  void Close(ConnectionId connection);

  const WireCounters& counters() const { return counters_; }
  WireUsage Usage() const;

 private:
  struct HalfOpen {
    UniqueFd fd;
    WireAddress from;
    std::array<uint8_t, kHelloBytes> hello{};
    size_t got = 0;
  };
  struct Unconfirmed {
    absl::Time deadline;
    ConnectionId connection = 0;
  };
  // What has come of a hello: a refusal, or whether it is whole.
  struct Progress {
    Refusal refusal = Refusal::kNone;
    bool whole = false;
  };

  Wire(EventLoop* loop, JobKey key, WireOptions options, WireCallbacks callbacks);

  // Connections by id.
  WireConnection* Find(ConnectionId id) const;
  WireConnection* NewConnection();
  void Forget(WireConnection* connection);  // Without a word to the caller.
  void Drop(WireConnection* connection, const absl::Status& status);
  absl::Status Watch(WireConnection* connection, uint32_t events);
  void SetEvents(WireConnection* connection);
  void OnEvents(ConnectionId id, uint32_t events);
  void Opened(WireConnection* connection);

  // Who comes (wire_incoming.cc).
  absl::Status Listen();
  void AcceptSome();
  void Greet(UniqueFd fd, const WireAddress& from);
  static Progress ReadHello(HalfOpen* half_open);
  void OnHalfOpen(uint32_t place);
  bool Prove(UniqueFd fd, std::span<const uint8_t, kHelloBytes> hello);
  void ReadConfirmation(WireConnection* connection);
  void Refuse(Refusal refusal, UniqueFd fd);
  void Count(Refusal refusal) { ++counters_.refused[static_cast<size_t>(refusal)]; }
  void ArmSweep();
  void Sweep();
  void SweepStrangers(absl::Time now);
  void SweepFrames(absl::Time now);

  // Whom we go to (wire_outgoing.cc).
  void BeginAttempt(ConnectionId id);
  void SendHello(WireConnection* connection);
  void ReadAnswer(WireConnection* connection);
  void RetryLater(WireConnection* connection, std::string why);

  // Frames on open connections (wire_flow.cc).
  void ReadFrames(WireConnection* connection);
  // Each returns the connection; null: it is gone.
  WireConnection* TakeFrames(WireConnection* connection, std::span<uint8_t> bytes);
  void DropImpossible(WireConnection* connection, Refusal refusal);
  WireConnection* ReadRest(WireConnection* connection, size_t* read);
  WireConnection* Deliver(WireConnection* connection, std::span<uint8_t> frame);
  bool Reserve(WireConnection* connection, size_t bytes);
  void Release(ConnectionId id, size_t bytes);
  void WakeWaiting();
  static size_t QueueGrowth(const WireConnection& connection, size_t bytes);
  std::span<uint8_t> QueueSpace(WireConnection* connection, size_t bytes);
  void MarkDirty(WireConnection* connection);
  void FlushDirty();
  void Flush(WireConnection* connection);
  bool SendQueued(WireConnection* connection);
  void TakeSent(WireConnection* connection, size_t bytes);

  EventLoop* const loop_;
  const JobKey key_;
  const WireOptions options_;
  const WireCallbacks callbacks_;
  HandshakeTerms terms_;  // This agent's own, as responder.

  UniqueFd listener_;
  Admission admission_;
  ReplayFilter replays_;
  std::vector<HalfOpen> half_open_;      // [place], as many as were ever held.
  std::deque<Unconfirmed> unconfirmed_;  // By deadline; some have opened or gone since.
  uint32_t unconfirmed_count_ = 0;
  EventLoop::TimerId sweep_, accept_again_;

  std::vector<std::unique_ptr<WireConnection>> connections_;  // By the id's low bits.
  std::vector<uint32_t> free_;
  uint64_t generation_ = 0;
  uint32_t connections_count_ = 0;

  std::vector<ConnectionId> dirty_;   // They have something to send.
  std::deque<ConnectionId> waiting_;  // They wait for memory to read on.
  ConnectionId favoured_ = 0;         // The one that may go beyond the limit to finish its frame.
  size_t incoming_bytes_ = 0, outgoing_bytes_ = 0;
  uint64_t outgoing_frames_ = 0;
  WireCounters counters_;
  std::shared_ptr<bool> alive_;  // False once the wire is gone, for work that was deferred.
};

}  // namespace perdure
