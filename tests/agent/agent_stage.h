// Agents of one or more jobs in one loop, as they are, on loopback and a real run directory. What
// is not real is the ranks: they step together, a few milliseconds each, and hold no state.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/agent/agent.h"
#include "runtime/control/rank_guard.h"

namespace perdure {

class StageRanks;

// Where the ranks of all agents meet: a step of a generation is finished when all its ranks run and
// may step.
class Lockstep {
 public:
  explicit Lockstep(EventLoop* loop) : loop_(loop) {}

  void Join(StageRanks* ranks) { all_.insert(ranks); }
  void Leave(StageRanks* ranks) { all_.erase(ranks); }
  // Finishes the step of each generation that can; call it again and again.
  void Step();

  StepIndex step() const { return step_; }
  Generation generation() const { return generation_; }
  // A step that was not the next one, or of a generation that is over. Empty: none.
  const std::string& wrong() const { return wrong_; }
  StepIndex steps_max = 0;  // The last that is trained; 0: there is none.

 private:
  EventLoop* loop_;
  std::set<StageRanks*> all_;
  StepIndex step_ = 0;
  Generation generation_ = 0;
  std::string wrong_;
};

class StageRanks : public NodeRanks {
 public:
  StageRanks(Lockstep* lockstep, EventLoop* loop) : lockstep_(lockstep), loop_(loop) {
    lockstep_->Join(this);
  }
  ~StageRanks() override;

  Member::Adopted Adopted() override;
  void Do(const Member::MakeRanks& order) override;
  void Do(const Member::Connect& order) override { connected_ += order.table.count; }
  void Do(const Member::Load& order) override;
  void Do(const Member::Run& order) override;
  void Do(const Member::Renew& order) override;
  void Do(const Member::StopRanks& order) override;
  void Do(const Member::KillRanks& order) override;
  void Do(const Member::FreezeState& order) override;
  void Do(const Member::WriteState& order) override;
  void Do(const Member::VerifyFile& order) override;
  void Do(const Member::SettleState& order) override;

  std::function<void(Member::Event)> tell;  // To the agent, from the loop.
  bool deaf = false;                        // They do not stop when they are asked to.
  std::string bad_checkpoint;               // That they cannot load.
  std::vector<msg::Settle> settled;

 private:
  friend class Lockstep;
  void Tell(Member::Event event);
  void Stopped(bool keep);

  Lockstep* const lockstep_;
  EventLoop* const loop_;
  msg::Prepare prepare_;
  RankGuard guard_;
  bool running_ = false, freeze_ = false, freezes_last_ = false;
  int32_t connected_ = 0;
  StepIndex finished_ = 0, frozen_ = -1, last_step_ = -1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// Parts that are there at once, and checkpoints that hold nothing. All that is known of them is in
// the run log.
class StageStore : public CheckpointStore {
 public:
  explicit StageStore(std::string run_directory) : run_directory_(std::move(run_directory)) {}
  void Do(const Coordinator::MeasureRoom& order,
          std::function<void(Coordinator::Measured)> then) override;
  void Do(const Coordinator::JoinParts& order,
          std::function<void(Coordinator::PartsJoined)> then) override;
  void Do(const Coordinator::ChooseCheckpoint& order,
          std::function<void(Coordinator::CheckpointChosen)> then) override;
  void Leads() override { ++leads; }
  void LeadEnds() override { ++ends; }
  void Do(const Coordinator::AllPresent& said) override { present.push_back(said); }
  void Do(const Coordinator::SaveOver& said) override { over.push_back(said); }
  void Do(const Coordinator::Noted& said) override { noted.push_back(said.tag); }
  void Do(const Coordinator::GoodSteps& said) override { good.push_back(said.generation); }
  absl::StatusOr<CommitRecord> Publish(const LogEntry& commit, Slot term, int32_t attempt) override;
  absl::StatusOr<ControlLog::NoteBody> NoteBody(uint64_t tag) override;

  absl::Status publishes;           // What Publish says.
  absl::Status notes;               // What NoteBody says,
  std::vector<uint64_t> noted;      // and which notes are in the log.
  std::vector<Generation> good;     // With good steps behind a checkpoint.
  std::vector<std::string> joined;  // What the ranks of the last save wrote.
  std::vector<Coordinator::ChooseCheckpoint> asked;
  int leads = 0, ends = 0;  // How often it was told so.
  std::vector<Coordinator::AllPresent> present;
  std::vector<Coordinator::SaveOver> over;

 private:
  const std::string run_directory_;
  std::set<std::string> bad_;
};

struct StageNode {
  StageNode(Lockstep* lockstep, EventLoop* loop, const std::string& run_directory)
      : ranks(lockstep, loop), store(run_directory) {}
  StageRanks ranks;
  StageStore store;
  std::unique_ptr<ControlLog> own_log;  // Where it is not shared.
  std::unique_ptr<Agent> agent;
  std::vector<std::string> remarks;
  std::vector<Coordinator::Evidence> evidence;
  std::optional<int> exit_code;
};

class AgentStage {
 public:
  explicit AgentStage(const std::string& run_directory);
  ~AgentStage();

  // What every agent is told, to be changed before nodes come.
  AgentOptions options;

  // A new life of the node's agent, in place of the one before.
  StageNode& Start(NodeId node, uint64_t job = 1, bool own_log = false);
  void Kill(NodeId node, uint64_t job = 1);       // Its agent and its ranks are gone.
  void KillAgent(NodeId node, uint64_t job = 1);  // The ranks live on.
  void StartAgent(NodeId node, uint64_t job = 1);
  StageNode& at(NodeId node, uint64_t job = 1) { return *nodes_.at({job, node}); }
  bool Has(NodeId node, uint64_t job = 1) const { return nodes_.contains({job, node}); }

  // Rounds of the loop until `done`; false after a time that is long even under sanitizers.
  bool Until(const std::function<bool()>& done, absl::Duration within = absl::Seconds(60));
  void For(absl::Duration time);
  // Until so many more steps are finished.
  bool Steps(int64_t steps);

  // Of job `job`; nobody: null.
  StageNode* Lead(uint64_t job = 1);
  std::vector<Record> Records() const;
  int Count(RecordType type) const;
  EventLoop* loop() { return loop_.get(); }
  Lockstep& lockstep() { return *lockstep_; }
  ControlLog* log() { return log_.get(); }
  std::string Story() const;  // What everybody remarked, for failures.

 private:
  const std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<ControlLog> log_;
  std::unique_ptr<Lockstep> lockstep_;
  std::map<std::pair<uint64_t, NodeId>, std::unique_ptr<StageNode>> nodes_;
  EventLoop::TimerId timer_;
  void Beat();
};

}  // namespace perdure
