// A node's ranks as they are: processes, one per slot, that live from generation to generation.
// Turns Member's orders into frames, and what the processes say and how they end into Member's
// events; looks for the state that a new generation resumes from, here and on other nodes.
//
// An agent's; lives in its EventLoop, whose thread calls everything, and never waits for a rank. It
// decides nothing about the run. Processes die with this object, and with their agent.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/node_ranks.h"
#include "runtime/agent/rank_frames.h"
#include "runtime/agent/rank_link.h"
#include "runtime/agent/snapshot_fetch.h"
#include "runtime/agent/snapshot_shelf.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/control/layout.h"
#include "runtime/control/save_watch.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

struct ProcessRanksOptions {
  NodeId node = 0;
  std::vector<std::string> argv;         // Of a rank's process; argv[0] is the path.
  std::vector<std::string> environment;  // "NAME=value", beside our own.
  std::string log_directory;             // There already; a file for each slot.
  std::string config;                    // The resolved run.toml; the layout's axes come with each
                                         // generation.
  std::string data_directory, run_directory, run_id;
  int64_t ranks_per_file = 1;
  int64_t cores = 1;             // That the node's ranks share.
  int64_t threads_per_rank = 1;  // numerics.threads.
  int64_t until_step = -1;
  bool peers = true;  // Snapshots go to ranks of other nodes, too.
  // From when on it is said that a rank is slow at saving, once per doubling.
  absl::Duration save_patience = absl::Minutes(2);
  size_t queue_bytes_max = size_t{64} << 20;      // To a rank that does not read.
  absl::Duration broken_max = absl::Seconds(2);   // Without a stop for a rank that broke off.
  absl::Duration leave_grace = absl::Seconds(2);  // Until SIGTERM, and from there to SIGKILL.
  SnapshotFetch::Options fetch;
};

struct ProcessRanksHooks {
  std::function<void(Member::Event event)> tell;  // Agent::Tell.
  // The layouts of those generations, as their START records say, once all are in the log. Another
  // error than OK: they will not be. Answered from the loop, not from inside the call.
  std::function<void(std::vector<Generation> generations,
                     std::function<void(absl::StatusOr<std::vector<PlacedLayout>>)> then)>
      layouts;
  SendSnapshotFrame send_snapshot = {};  // Agent::SendSnapshot. Empty: nothing is fetched.
  // For people; each may be empty.
  std::function<void(const RankFailure& failure)> failed = {};
  std::function<void(Generation generation, const StepReport& report)> step = {};
  std::function<void(Generation generation)> connected = {};  // All of the node's ranks are.
  std::function<void(Generation generation, StepIndex step, const Digest& certificate)>
      certificate = {};
  // Training waits with the state of `step` until the save before is settled. Each node says so,
  // and what its ranks do for that save.
  std::function<void(StepIndex step, StepIndex unsettled,
                     const std::vector<SaveWatch::Stall>& under_way)>
      waiting = {};
  // What ranks of this node have been doing for long for the save of `step`.
  std::function<void(StepIndex step, const std::vector<SaveWatch::Stall>& stalls)> stalls = {};
  std::function<void(int32_t local_rank, int32_t rank, const Json& report)> health = {};
  std::function<void(int32_t local_rank, int32_t rank, const Json& evidence)> evidence = {};
  std::function<void(const std::string& line)> remark = {};
  std::function<void(int32_t local_rank, const from_rank::Written& written)> written = {};
};

class ProcessRanks final : public NodeRanks {
 public:
  // `shelf` may be null: no snapshots. Pointers outlive it.
  ProcessRanks(EventLoop* loop, OomKills* oom, SnapshotShelf* shelf,
               const ProcessRanksOptions& options, ProcessRanksHooks hooks);
  ~ProcessRanks() override;  // Kills what runs.

  Member::Adopted Adopted() override;
  void Do(const Member::MakeRanks& order) override;
  void Do(const Member::Connect& order) override;
  void Do(const Member::Load& order) override;
  void Do(const Member::Run& order) override;
  void Do(const Member::Renew& order) override;
  void Do(const Member::StopRanks& order) override;
  void Do(const Member::KillRanks& order) override;
  void Do(const Member::FreezeState& order) override;
  void Do(const Member::WriteState& order) override;
  void Do(const Member::VerifyFile& order) override;
  void Do(const Member::SettleState& order) override;
  void Take(NodeId from, SnapshotFrame frame) override;
  void Lost(NodeId node) override;

  // Flips a bit of a rank's memory in the first step from `step` on that it begins: a drill, or a
  // test. NotFound: no rank sits there.
  absl::Status Corrupt(int32_t local_rank, StepIndex step, const Flip& flip);

  // Ends all processes, as softly as they let it; `then` is called when the last is gone. No order
  // may follow.
  void End(std::function<void()> then);

  // For status and for people: what each rank does.
  struct Running {
    int32_t local_rank = 0;
    int32_t rank = -1;
    pid_t pid = 0;
    std::vector<Activity> activities;  // The newest last.
  };
  std::vector<Running> running() const;
  std::vector<RankProcess> processes() const;
  // Of the newest generation that was prepared.
  const LayoutShape& shape() const { return prepare_.shape; }
  Generation generation() const { return generation_; }
  const SnapshotFetch* fetch() const { return fetch_.get(); }

 private:
  struct Slot {
    std::unique_ptr<RankLink> link;  // Null: no process.
    bool leaves = false;             // It was asked to.
    bool doomed = false;             // It was killed, or has said that it ends.
    int corruptions = 0;             // That processes of this slot had.
    int planted = 0;                 // Flips on purpose, of which none of these came yet.
    // In the generation:
    int32_t rank = -1;  // -1: none; the rest is meaningless.
    bool prepared = false, loaded = false, done = false, broken = false;
    bool gone = false;  // It does not step any more: stopped or ended.
    bool complete = false;
    bool present = false, connected = false;
    bool restless = true;  // It has not been seen to wait since the generation stands still.
    std::string address;
    int64_t finished = 0;
    WorkDone work;
    bool no_snapshots = false;
    int64_t frozen = -1;
    std::string file;  // Of the frozen state.
    std::string does;  // In watch_: what it writes.
    std::optional<from_rank::Written> written;
    std::string broken_reason;
    // What it needs, while it is being looked for.
    std::vector<std::string> paths;
    size_t missing = 0;
  };
  using Slots = std::map<int32_t, Slot>;

  // process_ranks.cc: processes and generations.
  absl::Status StartProcess(int32_t local_rank, Slot& slot);
  void DropLink(Slot& slot);
  void Prepare(const absl::StatusOr<std::vector<PlacedLayout>>& layouts);
  to_rank::Prepare PrepareOf(int32_t local_rank, const Slot& slot) const;
  void OnEnd(int32_t local_rank, const RankLink* link, const ProcessEnd& end,
             const std::string& wrong);
  void Fail(int32_t local_rank, EvidenceKind kind, int64_t number, bool slot_lost,
            std::string words);
  std::string LastWords(const Slot& slot) const;
  void LookForHung();
  void KillHung(int32_t local_rank, Slot& slot, const std::string& why);
  void CheckStopped();
  void CheckEnded();
  void SendAll(const to_rank::Frame& frame);
  void Tell(Member::Event event);
  bool All(bool Slot::*flag) const;
  std::vector<int32_t> PeersOf(const PlacedLayout& layout) const;
  std::string AttemptName(StepIndex step, perdure::Slot term, int32_t attempt) const;
  void WatchSave(StepIndex step);
  void TellStalls();
  void EndWatch();

  // process_ranks_frames.cc: what ranks say.
  void OnFrame(int32_t local_rank, from_rank::Frame frame);
  void On(Slots::value_type& slot, const from_rank::Health& frame);
  void On(Slots::value_type& slot, const from_rank::Present& frame);
  void On(Slots::value_type& slot, const from_rank::Connected& frame);
  void On(Slots::value_type& slot, const from_rank::Certificate& frame);
  void On(Slots::value_type& slot, const from_rank::Loaded& frame);
  void On(Slots::value_type& slot, const from_rank::Progress& frame);
  void On(Slots::value_type& slot, const from_rank::Step& frame);
  void On(Slots::value_type& slot, const from_rank::FoundBad& frame);
  void On(Slots::value_type& slot, const from_rank::Waiting& frame);
  void On(Slots::value_type& slot, const from_rank::Frozen& frame);
  void On(Slots::value_type& slot, const from_rank::Written& frame);
  void On(Slots::value_type& slot, const from_rank::Voted& frame);
  void On(Slots::value_type& slot, const from_rank::Need& frame);
  void On(Slots::value_type& slot, const from_rank::OlderMayGo& frame);
  void On(Slots::value_type& slot, const from_rank::NoSnapshots& frame);
  void On(Slots::value_type& slot, const from_rank::Remark& frame);
  void On(Slots::value_type& slot, const from_rank::Evidence& frame);
  void On(Slots::value_type& slot, const from_rank::Error& frame);
  void On(Slots::value_type& slot, const from_rank::BrokenOff& frame);
  void On(Slots::value_type& slot, const from_rank::Stopped& frame);
  void On(Slots::value_type& slot, const from_rank::Done& frame);
  bool Current(const Slot& slot, Generation generation) const;
  void TellProgress();
  void TellWritten();
  absl::StatusOr<std::string> PackWritten() const;
  void Found(int32_t local_rank, Generation generation, const absl::Status& status);
  std::vector<NodeId> HoldersOf(int32_t rank) const;

  EventLoop* const loop_;
  OomKills* const oom_;
  SnapshotShelf* const shelf_;
  const ProcessRanksOptions options_;
  const ProcessRanksHooks hooks_;
  std::unique_ptr<SnapshotServer> server_;
  std::unique_ptr<SnapshotFetch> fetch_;

  Slots slots_;
  msg::Prepare prepare_;
  Generation generation_ = 0;
  uint64_t preparing_ = 0;  // Rises with each generation and stop: an answer that is late is none.
  bool stopping_ = false;   // A RanksStopped is owed.
  int hung_looks_ = 0;      // For who hangs, in this generation.
  EventLoop::TimerId hung_timer_;
  bool waits_ = false;
  bool made_ = false, loaded_ = false;
  bool found_bad_ = false;  // A step, and the member was told.
  int64_t finished_ = 0;
  int64_t frozen_ = -1;
  StepIndex told_waiting_ = -1;  // With whose state training waits, as people know.
  SaveWatch watch_;              // Of the save of
  StepIndex watched_ = -1;       // this step; -1: none.
  EventLoop::TimerId watch_timer_;
  std::map<int64_t, std::pair<int32_t, std::string>> reading_;  // By file: who, in watch_ what.
  std::optional<msg::Write> write_;   // The newest order.
  std::vector<int32_t> peers_;        // Of this generation's ranks; empty: none.
  std::optional<PlacedLayout> held_;  // Of the generation that is resumed,
  std::vector<int32_t> held_peers_;   // and its peers.
  std::optional<to_rank::Prepare::Checkpoint> checkpoint_;
  EventLoop::TimerId broken_timer_;
  std::optional<std::function<void()>> ended_;  // Of End.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace perdure
