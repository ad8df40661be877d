// A node's ranks where the trainer is not ours: one process of the user's command per rank, with
// the environment that torchrun gives (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT ...).
// The trainer keeps its own state; what comes of it is known by its exit codes and, if it wants, by
// the lines that it leaves in PERDURE_PROGRESS.
//
//   all ranks ended with 0            complete
//   one ended otherwise               the generation fails: all are ended, and begin anew
//   one ended with 93                 the job fails, and nothing begins anew: a person must look
//   told to leave                     however they end; who has not in time is killed
//
// An agent's; lives in its EventLoop, whose thread calls everything. Two generations of a trainer
// never run at once, because they would write into one directory: a node whose lease has ended
// kills its own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/agent/node_ranks.h"
#include "runtime/agent/progress_file.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/base/unique_fd.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

struct CommandRanksOptions {
  NodeId node = 0;
  std::vector<std::string> command;      // Searched for in PATH.
  std::string directory;                 // Where it runs.
  int signal = 15;                       // That tells it to leave.
  std::vector<std::string> environment;  // "NAME=value", the same for all ranks, beside our own.
  std::string log_directory;             // There already; a file for each slot.
  std::string address;                   // Where other nodes reach this one.
  std::string progress_path;             // PERDURE_PROGRESS.
  bool must_speak = false;               // Who says nothing is nowhere.
  // A rank that ended badly may have done so because another did, which then counts.
  absl::Duration settle = absl::Seconds(1);
  absl::Duration grace = absl::Seconds(5);  // From SIGTERM to SIGKILL, where no leaving was asked.
};

class CommandRanks : public NodeRanks {
 public:
  struct Hooks {
    std::function<void(Member::Event event)> tell;  // Agent::Tell.
    // For people; each may be empty.
    std::function<void(const RankFailure& failure)> failed = {};
    std::function<void(Generation generation)> connected = {};  // The ranks have been started.
    // They have left because they were told to, after so long.
    std::function<void(Generation generation, absl::Duration took, int killed)> left = {};
  };

  // `loop` and `oom` outlive it.
  CommandRanks(EventLoop* loop, OomKills* oom, CommandRanksOptions options, Hooks hooks);
  ~CommandRanks() override;

  void Do(const Member::MakeRanks& order) override;
  void Do(const Member::Connect& order) override;
  void Do(const Member::Load& order) override;
  void Do(const Member::Run& order) override;
  void Do(const Member::Renew& order) override;
  void Do(const Member::StopRanks& order) override;
  void Do(const Member::KillRanks& order) override;
  // There is no state here.
  void Do(const Member::FreezeState&) override {}
  void Do(const Member::WriteState&) override {}
  void Do(const Member::VerifyFile&) override {}
  void Do(const Member::SettleState&) override {}

  // Ends all processes; `then` is called when the last is gone. No order may follow.
  void End(std::function<void()> then);

  std::vector<RankProcess> processes() const;
  Generation generation() const { return generation_; }

 private:
  struct Rank {
    int32_t local_rank = 0;
    std::unique_ptr<SupervisedProcess> process;  // Null: not started, or ended.
    int64_t log_begins = 0;
  };

  std::vector<std::string> EnvironmentOf(int32_t rank, int32_t local_rank) const;
  absl::Status Start(int32_t rank, Rank& seat);
  void Ended(int32_t rank, const ProcessEnd& end);
  void Fail(int32_t rank, EvidenceKind kind, int64_t number, std::string words, pid_t pid = 0);
  void TellFailed();
  std::string LogOf(int32_t local_rank) const;
  void SignalAll(int signal);
  void KillAll();
  void EndAll();
  void LookForProgress();
  void CheckGone();
  bool AnyLives() const;

  EventLoop* const loop_;
  OomKills* const oom_;
  const CommandRanksOptions options_;
  const Hooks hooks_;
  ProgressFile progress_;

  Generation generation_ = 0;
  msg::Prepare prepare_;
  std::map<int32_t, Rank> ranks_;  // By rank.
  UniqueFd port_;                  // Keeps MASTER_PORT for rank 0, if it is of this node.
  std::map<int32_t, std::string> addresses_;  // Of all ranks.
  std::vector<std::string> hosts_;            // Of all nodes with ranks, by the first of these.
  bool running_ = false, stopping_ = false, asked_ = false, failed_ = false;
  bool speaks_ = false;  // The trainer says how far it is.
  int killed_ = 0;
  absl::Time started_, asked_at_;
  Member::RankFailed failure_;  // While failed_,
  bool told_ = false;           // and whether it was told.
  EventLoop::TimerId lease_timer_, progress_timer_, settle_timer_;
  std::optional<std::function<void()>> ended_;
};

// The checkpoints of a trainer that keeps its own: there are none that we know.
class ForeignCheckpoints : public CheckpointStore {
 public:
  void Leads() override {}
  void LeadEnds() override {}
  void Do(const Coordinator::MeasureRoom& order,
          std::function<void(Coordinator::Measured)> then) override;
  void Do(const Coordinator::JoinParts& order,
          std::function<void(Coordinator::PartsJoined)> then) override;
  void Do(const Coordinator::ChooseCheckpoint& order,
          std::function<void(Coordinator::CheckpointChosen)> then) override;
  void Do(const Coordinator::AllPresent&) override {}
  void Do(const Coordinator::SaveOver&) override {}
  void Do(const Coordinator::Noted&) override {}
  void Do(const Coordinator::GoodSteps&) override {}
  absl::StatusOr<CommitRecord> Publish(const LogEntry& commit, Slot term, int32_t attempt) override;
  absl::StatusOr<ControlLog::NoteBody> NoteBody(uint64_t tag) override;
};

}  // namespace perdure
