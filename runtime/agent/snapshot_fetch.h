// Bytes of snapshots from node to node, over the agents' authenticated connections: SnapshotServer
// answers, SnapshotFetch asks and writes what comes into files of its own node. What they are worth
// is for the rank that reads them to say: it checks digests.
//
// The receiver drives: it keeps a window of questions open at each node, so a node never has more
// than that on its way to one other, and the control plane's messages on the same connection get
// through. Both belong to an agent; its loop's thread calls everything.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/peer_frame.h"
#include "runtime/base/unique_fd.h"
#include "runtime/train/trainer.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

// Peers::SendSnapshot.
using SendSnapshotFrame = std::function<absl::Status(NodeId to, const SnapshotFrame& frame)>;

class SnapshotServer {
 public:
  // Questions of one node that may wait; more are refused as busy.
  static constexpr size_t kWaitingMax = 32;
  // The file of a snapshot that this node holds, whole; NotFound and other errors: it does not.
  using PathOf = std::function<absl::StatusOr<std::string>(const Fetch& fetch)>;

  SnapshotServer(EventLoop* loop, PathOf path_of, SendSnapshotFrame send);
  ~SnapshotServer();
  SnapshotServer(const SnapshotServer&) = delete;
  SnapshotServer& operator=(const SnapshotServer&) = delete;

  void Answer(NodeId from, const Fetch& fetch);
  size_t waiting() const;

 private:
  void Arm(absl::Duration after);
  void Work();
  SnapshotFrame AnswerOf(const Fetch& fetch) const;

  EventLoop* const loop_;
  const PathOf path_of_;
  const SendSnapshotFrame send_;
  std::map<NodeId, std::deque<Fetch>> waiting_;
  EventLoop::TimerId timer_;
};

class SnapshotFetch {
 public:
  struct Options {
    size_t window = 8;                          // Questions open at one node.
    absl::Duration timeout = absl::Seconds(5);  // Without an answer: the next holder.
    absl::Duration retry = absl::Milliseconds(50);
  };
  struct Order {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t rank = 0;
    std::vector<ByteRange> ranges;
    std::vector<NodeId> holders;  // In order of preference.
    // To write; made anew, as long as the holder's, with holes where nothing was asked for.
    std::string path;
  };
  struct Counters {
    uint64_t pieces = 0, bytes = 0, refused = 0, timeouts = 0;
    uint64_t strange = 0;  // Answers to no question, or not of its length.
  };

  SnapshotFetch(EventLoop* loop, const Options& options, SendSnapshotFrame send);
  ~SnapshotFetch();  // Nobody is told any more.
  SnapshotFetch(const SnapshotFetch&) = delete;
  SnapshotFetch& operator=(const SnapshotFetch&) = delete;

  // `then` is called once, from the loop: OK, all ranges are in the file; Unavailable: no holder
  // gave it, the message says what each did; else the file's trouble. The file stays.
  using Then = std::function<void(const absl::Status&)>;
  void Begin(Order order, Then then);
  // Nobody is told of what is under way.
  void CancelAll();
  bool idle() const { return jobs_.empty(); }

  void Take(NodeId from, const SnapshotPiece& piece);
  void Take(NodeId from, const Refused& refused);
  // Questions to that holder may not have arrived, or their answers not here: asked again, within
  // the time that it has.
  void Lost(NodeId holder);
  const Counters& counters() const { return counters_; }

 private:
  struct Part {
    uint64_t offset = 0;
    uint32_t bytes = 0;
  };
  struct Job {
    Order order;
    Then then;
    UniqueFd file;
    uint64_t file_bytes = 0;
    std::deque<Part> parts;  // That nobody was asked for yet.
    size_t open = 0;         // Questions.
    size_t holder = 0;
    absl::Time heard;     // When a piece last came, or since when one was to come.
    std::string trouble;  // What the holders before did.
  };
  struct Question {
    uint64_t job = 0;
    NodeId holder = 0;
    Part part;
  };

  absl::Status Open(Job& job) const;
  absl::Status Write(Job& job, const Part& part, const SnapshotPiece& piece) const;
  void Pump();
  bool Ask(uint64_t id, Job& job);
  void NextHolder(uint64_t id, Job& job, const std::string& why);
  void Withdraw(const std::function<bool(const Question&)>& which);
  void Finish(uint64_t id, absl::Status status);
  void Arm();

  EventLoop* const loop_;
  const Options options_;
  const SendSnapshotFrame send_;
  std::map<uint64_t, Job> jobs_;
  std::map<uint64_t, Question> questions_;
  std::map<NodeId, size_t> open_;  // Questions at each node.
  uint64_t jobs_begun_ = 0, asked_ = 0;
  EventLoop::TimerId timer_;
  Counters counters_;
  std::shared_ptr<bool> wanted_ = std::make_shared<bool>(true);  // False: nobody is told.
};

}  // namespace perdure
