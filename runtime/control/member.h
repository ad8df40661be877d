// An agent's view of its job: who coordinates, what this node's ranks are to do, until when they
// may step. One per agent; a pure machine, see docs/architecture.md, "Control plane".
//
// It finds the coordinator by the run log (the newest LEAD says who), reports to it, does what it
// says, and offers its own agent as coordinator when nobody answers. It decides nothing about the
// run. Ranks do not need it between failures but for their lease.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/control_options.h"
#include "runtime/control/log_view.h"
#include "runtime/control/message.h"

namespace perdure {

class Member {
 public:
  struct Identity {
    Author me;
    uint64_t slots = 1;   // Bit i: local rank i can be used.
    uint32_t domain = 0;  // Of failures.
  };
  // Ranks that outlived their agent, now this one's.
  struct Adopted {
    Generation generation = 0;  // 0: there are none.
    StepIndex finished = 0;
    StepIndex frozen = -1;  // The step of the state that they keep for a checkpoint; -1: none.
    // Not empty: the ranks are gone, and this is what they have left.
    std::vector<Holding> holdings{};
  };

  // ---- events; `now` is the node's monotonic clock

  struct Tick {};
  struct Received {
    Endpoint from;
    ControlMessage message;
  };
  struct Closed {  // The connection to `peer` ended.
    Endpoint peer;
  };
  // What ReadLog found: the records from slot `from` on; nothing when the log could not be read.
  struct LogRead {
    absl::Time asked;
    Slot from = 0;
    std::optional<std::vector<LogEntry>> entries;
    std::optional<Pulse> pulse;  // As it was then.
  };
  struct LeadLost {};  // This agent's coordinator has resigned.
  // Of this node's ranks.
  struct RanksMade {
    Generation generation = 0;
    std::vector<std::string> addresses;
  };
  struct RanksLoaded {
    Generation generation = 0;
  };
  struct Progress {
    Generation generation = 0;
    StepIndex finished = 0;
    bool complete = false;  // Nothing is left to train or to save; the ranks have stopped.
    // They go on only when the state that they froze is settled: another is due, or it is the last.
    bool waits = false;
    std::vector<WorkDone> works = {};  // By the order of Prepare's ranks; empty: not known.
    bool no_snapshots = false;         // They keep none, or do not any more.
  };
  // Told after the Progress of the last step that it finished: failures are counted by step.
  struct RankFailed {
    Generation generation = 0;
    int32_t local_rank = 0;
    EvidenceKind kind = EvidenceKind::kRankCrashed;
    int64_t number = 0;      // As in EvidenceEntry.
    bool slot_lost = false;  // Its device is.
  };
  // They have come to a bad step and stand. Told after the Progress of the last one before it.
  struct RanksFoundBad {
    Generation generation = 0;
    BadStep bad;
  };
  struct RanksStopped {  // None of them steps again, whatever happens.
    Generation generation = 0;
    std::vector<Holding> holdings;
  };
  // Whether they were asked or not. Told before the Progress of any later step: who is past a step
  // and does not hold its state will never hold it.
  struct Frozen {
    Generation generation = 0;
    StepIndex step = 0;
  };
  struct Written {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t attempt = 0;
    bool ok = false;
    std::string packed;  // What they wrote, for whoever joins the parts; see msg::Wrote.
  };
  struct Verified {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t attempt = 0;
    int32_t file = 0;
    bool ok = false;
  };
  struct Leave {};  // The node is to be given back.
  using Event =
      std::variant<Tick, Received, Closed, LogRead, LeadLost, RanksMade, RanksLoaded, Progress,
                   RankFailed, RanksFoundBad, RanksStopped, Frozen, Written, Verified, Leave>;

  // ---- effects, to be done in order

  struct Send {
    Endpoint to;
    ControlMessage message;
  };
  struct ReadLog {
    Slot from = 0;
    absl::Time asked;  // Comes back with the answer.
  };
  struct TakeLead {};  // Make a Coordinator on view().
  struct DropLead {};  // Destroy it, if there is one: somebody else leads.
  struct MakeRanks {
    msg::Prepare prepare;
  };
  struct Connect {  // A part of the addresses of all ranks.
    msg::Table table;
  };
  struct Load {  // All parts have come.
    Generation generation = 0;
  };
  struct Run {
    Generation generation = 0;
  };
  struct Renew {
    Generation generation = 0;
    absl::Time until;
  };
  struct StopRanks {
    Generation generation = 0;
    bool at_boundary = false;
    // The generation stands still. Who is not waiting for another rank is to be killed at once.
    bool stalled = false;
  };
  struct KillRanks {  // They did not stop; answered by RanksStopped with what is left.
    Generation generation = 0;
  };
  // A state that they have frozen by themselves meanwhile, later than save.after, is what was asked
  // for; but with save.pause only one that they wait with.
  struct FreezeState {
    msg::Save save;
  };
  // May come again, also from an agent that is younger than the attempt: what was written is said
  // again, and nothing is written twice.
  struct WriteState {
    msg::Write write;
  };
  struct VerifyFile {
    msg::Verify verify;
  };
  struct SettleState {
    msg::Settle settle;
  };
  struct Exit {
    int32_t code = 0;
  };
  using Effect =
      std::variant<Send, ReadLog, TakeLead, DropLead, MakeRanks, Connect, Load, Run, Renew,
                   StopRanks, KillRanks, FreezeState, WriteState, VerifyFile, SettleState, Exit>;
  using Effects = std::vector<Effect>;

  Member(const ControlOptions& options, const Identity& identity, const Adopted& adopted,
         absl::Time now);

  void Step(absl::Time now, const Event& event, Effects& effects);
  // When to send Tick if nothing else happens before.
  absl::Time NextDeadline() const;

  const LogView& view() const { return view_; }
  NodeStage stage() const { return stage_; }
  Generation generation() const { return generation_; }
  Slot term() const { return term_; }
  bool exited() const { return exited_; }

 private:
  void On(const Tick&, Effects&) {}
  void On(const Received& event, Effects& effects);
  void On(const Closed& event, Effects& effects);
  void On(const LogRead& event, Effects& effects);
  void On(const LeadLost& event, Effects& effects);
  void On(const RanksMade& event, Effects& effects);
  void On(const RanksLoaded& event, Effects& effects);
  void On(const Progress& event, Effects& effects);
  void On(const RankFailed& event, Effects& effects);
  void On(const RanksFoundBad& event, Effects& effects);
  void On(const RanksStopped& event, Effects& effects);
  void On(const Frozen& event, Effects& effects);
  void On(const Written& event, Effects& effects);
  void On(const Verified& event, Effects& effects);
  void On(const Leave& event, Effects& effects);

  void OnMessage(const msg::Answer& m, Effects& effects);
  void OnMessage(const msg::Announce&, Effects&) {}
  void OnMessage(const msg::Stop& m, Effects& effects);
  void OnMessage(const msg::Prepare& m, Effects& effects);
  void OnMessage(const msg::Table& m, Effects& effects);
  void OnMessage(const msg::Go& m, Effects& effects);
  void OnMessage(const msg::Save& m, Effects& effects);
  void OnMessage(const msg::Write& m, Effects& effects);
  void OnMessage(const msg::Verify& m, Effects& effects);
  void OnMessage(const msg::Settle& m, Effects& effects);
  void OnMessage(const msg::Bye& m, Effects& effects);
  // Not a member's to hear.
  void OnMessage(const auto&, Effects&) {}

  void Follow(Slot term, const Endpoint& leader, bool heard, Effects& effects);
  void Seek(Effects& effects);
  void Lead(Effects& effects);
  bool OwnJobLeads() const;
  int64_t PlaceInLine() const;
  absl::Time TurnToLead() const;  // Infinite: while it leads, or has to read the log first.
  void BeginStop(bool at_boundary, bool stalled, Effects& effects);
  void Enter(NodeStage stage);
  void Report(Effects& effects);
  void SendStopped(Effects& effects);
  // At what is frozen; 0: none yet.
  int32_t WrittenAttempt() const { return wrote_.has_value() ? wrote_->attempt : 0; }
  void SendWrote(Effects& effects);
  void Unfreeze();
  void SendPresent(Effects& effects);
  void Timers(Effects& effects);

  ControlOptions options_;
  Identity identity_;
  absl::Time now_;
  // An agent that comes back does not know whom it followed. Readings asked for from here on show
  // every LEAD that it may have known; before one of them has come it follows nobody.
  absl::Time trusts_log_;
  bool trusts_ = false;
  LogView view_;

  // The coordinator.
  Slot term_ = 0;
  bool has_term_ = false;
  Endpoint leader_;
  absl::Time heard_;      // Or since when one is missed.
  bool closed_ = false;   // Its connection ended since.
  bool leading_ = false;  // It is this agent's own.
  absl::Time seek_due_;   // When to read the log, or to give up the reading under way.
  static constexpr int kProbesMin = 3;
  int probes_ = 0;       // That another job's coordinator did not answer.
  bool viewed_ = false;  // The log was read since the coordinator was last heard,
  absl::Time viewed_at_ = absl::InfinitePast();  // first then.
  uint64_t pulse_ = 0;                           // Of the coordinator that is followed; 0: none,
  absl::Time beat_ = absl::InfinitePast();       // and when another one was found.

  int64_t place_ = 0;  // In the line of those who may lead.

  // Reports.
  uint64_t sequence_ = 0;
  int64_t echo_ = 0;
  absl::Time report_due_;
  bool changed_ = true;  // Report at once.
  static constexpr size_t kSentKept = 16;
  std::array<absl::Time, kSentKept> sent_;  // By sequence: when it was sent.

  // The ranks.
  NodeStage stage_ = NodeStage::kIdle;
  Generation generation_ = 0;
  StepIndex finished_ = 0;
  int32_t failed_local_rank_ = -1;
  EvidenceKind failure_ = EvidenceKind::kRankCrashed;
  int64_t failure_number_ = 0;
  bool leaving_ = false;
  absl::Time kill_due_ = absl::InfiniteFuture();
  std::vector<Holding> holdings_;
  msg::Prepare prepare_;
  std::vector<std::string> addresses_;
  std::vector<int32_t> parts_;  // First ranks of the parts of the table that have come, sorted.
  int32_t parts_ranks_ = 0;     // Ranks in them.
  absl::Time table_due_ = absl::InfiniteFuture();
  StepIndex frozen_ = -1;
  bool waits_ = false;
  std::vector<WorkDone> works_;
  bool no_snapshots_ = false;
  BadStep bad_;                      // Of generation_; stays when they have stopped.
  std::optional<msg::Wrote> wrote_;  // The newest attempt at writing what is frozen.
  std::vector<msg::Voted> votes_;    // On files of what is frozen.
  bool exited_ = false;
};

}  // namespace perdure
