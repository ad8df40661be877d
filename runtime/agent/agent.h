// The agent of a node: the shell around Member and, while it leads, Coordinator. It carries their
// messages over authenticated connections, their records to the run log, their orders to the node's
// ranks, and gives them the time. It decides nothing.
//
// One per node; lives in an EventLoop, whose thread calls everything. Effects are carried out in
// order, and an event waits until those of the one before it have been. Destroyed from outside the
// loop's callbacks, or from a deferred one.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "runtime/agent/control_log.h"
#include "runtime/agent/node_ranks.h"
#include "runtime/agent/peers.h"
#include "runtime/agent/phase_watch.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"

namespace perdure {

struct AgentOptions {
  std::string run_directory;  // Where the run's key is.
  uint64_t job = 0;           // JobStart of its id and restart count.
  NodeId node = 0;
  NodeId nodes = 1;                     // Of the job.
  uint64_t slots = 1;                   // Bit i: local rank i can be used.
  uint32_t domain = 0;                  // Of failures.
  std::string interface = "127.0.0.1";  // To listen on: "ib0", "10.0.0.5".
  uint16_t port = 0;                    // 0: the kernel chooses.
  ControlOptions control;
  LayoutRule rule;
  PeersOptions peers;  // What of the above it repeats is overwritten.
};

struct AgentHooks {
  // A decision or an event, in words, for journal and log.
  std::function<void(const std::string& text)> remark;
  // All ranks of a generation that this agent's coordinator forms have addresses.
  std::function<void(const Coordinator::AllPresent& said)> formed;
  // Against a node, for the book. Only the coordinator's agent tells.
  std::function<void(const Coordinator::Evidence& evidence)> evidence;
  // The run has gone back for a bad step. Only the coordinator's agent tells; may be empty.
  std::function<void(const Coordinator::WentBack& went)> went_back = {};
  // A phase of a start or of a recovery, for the journal. Only the coordinator's agent tells.
  PhaseWatch::Tell phase = {};
  // The job is over for this node; called once, no other callback follows.
  std::function<void(int exit_code)> ended;
};

class Agent {
 public:
  // All pointers outlive the agent. Fails when the options are wrong or the port cannot be had.
  static absl::StatusOr<std::unique_ptr<Agent>> New(EventLoop* loop, ControlLog* log,
                                                    const AgentOptions& options, NodeRanks* ranks,
                                                    CheckpointStore* checkpoints, AgentHooks hooks);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // What happened to the node's ranks.
  void Tell(Member::Event event);
  // The node is to be given back: whoever coordinates stops using it.
  void Leave() { Tell(Member::Leave{}); }
  // To this agent's coordinator; false: it has none.
  bool TellLead(Coordinator::Event event);
  // The node's ranks have met all others of that generation.
  void RanksConnected(Generation generation);

  // To another node's NodeRanks::Take; see Peers::SendSnapshot.
  absl::Status SendSnapshot(NodeId to, const SnapshotFrame& frame) {
    return peers_->SendSnapshot(to, frame);
  }

  const Peers& peers() const { return *peers_; }
  const Member& member() const { return *member_; }
  const Coordinator* lead() const { return lead_.has_value() ? &*lead_ : nullptr; }
  const PhaseWatch* phases() const { return phases_.has_value() ? &*phases_ : nullptr; }

 private:
  struct ForLead {
    uint32_t number = 0;  // Of the coordinator that it is meant for.
    Coordinator::Event event;
  };
  using Waiting = std::variant<Member::Event, ForLead>;
  using Read = Member::ReadLog;

  Agent(EventLoop* loop, ControlLog* log, const AgentOptions& options, NodeRanks* ranks,
        CheckpointStore* checkpoints, AgentHooks hooks);
  absl::Status Begin();
  Author Me() const;

  void Post(Waiting waiting);
  void Work();
  void WorkLead(absl::Time now, const Coordinator::Event& event);
  void Watch(absl::Time now, const Coordinator::Event& event, const Coordinator::Effects& effects);
  void Arm();
  void OnMessage(const Endpoint& from, ControlMessage message);
  void Send(const Endpoint& to, const ControlMessage& message);

  // Member's effects.
  void Do(const Member::Send& effect) { Send(effect.to, effect.message); }
  void Do(const Member::ReadLog& effect);
  void Do(const Member::TakeLead& effect);
  void Do(const Member::DropLead&) { EndLead(); }
  void Do(const Member::Exit& effect);
  void Do(const auto& order) { ranks_->Do(order); }
  void ReadForMember(const Read& read);

  // Coordinator's.
  void DoLead(const Coordinator::Send& effect);
  void DoLead(const Coordinator::Append& effect);
  void DoLead(const Coordinator::ReadLog& effect);
  void DoLead(const Coordinator::LeavePulse& effect);
  void DoLead(const Coordinator::MeasureRoom& effect);
  void DoLead(const Coordinator::JoinParts& effect);
  void DoLead(const Coordinator::ChooseCheckpoint& effect);
  void DoLead(const Coordinator::WindUp& effect);
  void DoLead(const Coordinator::AllPresent& effect);
  void DoLead(const Coordinator::SaveOver& effect) { checkpoints_->Do(effect); }
  void DoLead(const Coordinator::Noted& effect) { checkpoints_->Do(effect); }
  void DoLead(const Coordinator::GoodSteps& effect) { checkpoints_->Do(effect); }
  void DoLead(const Coordinator::WentBack& effect);
  void DoLead(const Coordinator::Evidence& effect);
  void DoLead(const Coordinator::Remark& effect) { Remark(effect.text); }
  void DoLead(const Coordinator::Resign& effect);
  void DoLead(const Coordinator::Finished& effect);
  void EndLead();
  void ReadForLead(const Read& read, uint32_t number);
  ControlLog::Body BodyOf(const Coordinator::Append& append) const;

  void LogTrouble(const absl::Status& status);
  void Remark(const std::string& text);
  void Closed(NodeId node);
  void Exit(int exit_code);

  EventLoop* const loop_;
  ControlLog* const log_;
  AgentOptions options_;
  NodeRanks* const ranks_;
  CheckpointStore* const checkpoints_;
  AgentHooks hooks_;
  uint64_t incarnation_ = 0;

  std::unique_ptr<Peers> peers_;
  std::optional<Member> member_;
  std::optional<Coordinator> lead_;
  std::optional<PhaseWatch> phases_;  // Of lead_.
  absl::Time began_;
  bool leads_now_ = false;  // Its LEAD is in the log, and the store knows.
  uint32_t leads_ = 0;      // How many coordinators this agent has made: the number of the last.

  std::deque<Waiting> waiting_;
  bool working_ = false;
  EventLoop::TimerId timer_;
  // One reading at a time for each; the newest question waits for the one under way.
  bool member_reads_ = false, lead_reads_ = false;
  std::optional<Read> member_next_, lead_next_;
  // The last thing that was said about the log, and about pulses; said once.
  std::string log_trouble_, pulse_trouble_;
  std::optional<int> exit_code_;
  std::set<NodeId> left_;  // Nodes whose connections ended since the job did.
  bool exited_ = false;
  std::shared_ptr<bool> alive_;  // False once the agent is gone, for answers that come later.
};

}  // namespace perdure
