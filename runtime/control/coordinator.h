// Who runs the job: takes the lead in the run log, gathers nodes, decides which layout they take,
// starts generations, grants leases, replaces what fails, commits checkpoints, ends the job.
//
// A role of one agent, at a time: a Coordinator is made when the agent's Member asks for it
// (TakeLead) and destroyed when it resigns. It holds no state that a successor needs: that is the
// run log and what members report. A pure machine, see docs/architecture.md, "Control plane".
//
// Whatever it does, a member does not step without its lease, and nothing counts without a slot of
// the log; so its own mistakes about who is alive cost time only.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "runtime/control/authority.h"
#include "runtime/control/checkpoint_commit.h"
#include "runtime/control/control_options.h"
#include "runtime/control/failure_detector.h"
#include "runtime/control/layout_planner.h"
#include "runtime/control/log_view.h"
#include "runtime/control/message.h"
#include "runtime/control/slow_ranks.h"

namespace perdure {

class Coordinator {
 public:
  struct Identity {
    Author me;
    NodeId nodes = 1;  // In the job's allocation: node ids are below it.
    // Of the coordinators that this life of the agent has made: no two have records in common.
    uint32_t number = 1;
  };

  // So many finished steps show that a checkpoint can be trained on.
  static constexpr StepIndex kGoodSteps = 2;

  // ---- events; `now` is the node's monotonic clock

  struct Tick {};
  struct Received {
    Endpoint from;
    ControlMessage message;
  };
  struct Closed {
    NodeId node = 0;
  };
  // The record that is in the slot of an Append now, which may be somebody else's; nothing: it
  // could not be found out.
  struct Appended {
    std::optional<LogEntry> entry;
  };
  // Instead of it: what a COMMIT or a note says could not be made, so nothing was written.
  struct Unpublished {};
  struct LogRead {  // Answers ReadLog; nothing: the log could not be read.
    absl::Time asked;
    std::optional<std::vector<LogEntry>> entries;
  };
  struct Measured {  // Answers MeasureRoom.
    Generation generation = 0;
    StepIndex step = 0;
    bool ok = false;
  };
  // Answers JoinParts: by file the member that reads it back, as an index into members(), and what
  // that one must know to do it (msg::Verify's).
  struct PartsJoined {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t attempt = 0;
    std::vector<int> readers;
    std::vector<std::string> parts;
    bool ok = false;
  };
  // Answers ChooseCheckpoint.
  struct CheckpointChosen {
    uint64_t question = 0;
    std::optional<StepIndex> step;            // None: there is no checkpoint, the run begins.
    std::string packed;                       // For the ranks, see Resume; 1 KiB at most.
    bool ok = false;                          // Not: there are some but none can be used,
    int32_t exit_code = kExitPersonMustLook;  // so the job ends with this code
    std::string words;                        // and says so.
  };
  // Put a record into the log that says something of the shell's own: once, as soon as it may be,
  // with those asked for before it. `tag` is for whoever makes its body. It gets lost with this
  // coordinator, and when no body can be made.
  struct Note {
    uint64_t tag = 0;
  };
  struct WoundUp {};  // Answers WindUp.
  struct SaveNow {};  // Somebody asked for a checkpoint.
  struct Drain {      // A node is (no longer) to be used, whatever it says itself.
    NodeId node = 0;
    bool drained = true;
  };
  struct EndJob {  // Save, stop, leave with this code.
    int32_t exit_code = 0;
  };
  using Event = std::variant<Tick, Received, Closed, Appended, Unpublished, LogRead, Measured,
                             PartsJoined, CheckpointChosen, Note, WoundUp, SaveNow, Drain, EndJob>;

  // ---- effects, to be done in order

  struct Send {
    Endpoint to;
    ControlMessage message;
  };
  // Put the record into its slot, which is entry.slot and no other; answered by Appended. A COMMIT
  // needs its manifest first, a note the body that goes by entry.note.
  struct Append {
    LogEntry entry;
    int32_t attempt = 0;  // COMMIT: of the save.
  };
  struct ReadLog {
    Slot from = 0;
    absl::Time asked;  // Comes back with the answer, which may belong to an older question.
  };
  // To be left where the run log is, over the one before.
  struct LeavePulse {
    Pulse pulse;
  };
  struct MeasureRoom {
    Generation generation = 0;
    StepIndex step = 0;
  };
  struct JoinParts {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t attempt = 0;
    std::vector<std::string> packed;  // By member: what its ranks wrote.
  };
  // The state is to be loaded from a checkpoint: which? A question comes again under its number
  // when it is not answered for long; who is at it still need not begin anew. It is not for a
  // coordinator that is replaced: what it calls bad may have been mended since.
  struct ChooseCheckpoint {
    Slot term = 0;  // Of who asks.
    uint64_t question = 0;
    bool last_is_bad = false;  // What was chosen before is not what was committed:
    std::string last;          // CheckpointChosen.packed of it.
    Gaps gaps;                 // Of the run that is to go on from it.
  };
  // All ranks of the generation have addresses, hence work; they are told to meet, and to load
  // Resume.checkpoint where there is one.
  struct AllPresent {
    Generation generation = 0;
    std::string checkpoint;  // Empty: from memory, or the run begins.
    StepIndex step = 0;      // Where it begins.
  };
  // A save is over: its COMMIT is in the log, which may come later than that it was given up; or it
  // was given up.
  struct SaveOver {
    Generation generation = 0;
    StepIndex step = 0;
    bool committed = false;
  };
  struct Noted {  // The record of Note is in the log.
    uint64_t tag = 0;
  };
  // The generation has begun with a checkpoint and finished two steps since. Said again by a
  // coordinator that takes over.
  struct GoodSteps {
    Generation generation = 0;
  };
  // The START of `generation` says that the run has gone back for a bad step.
  struct WentBack {
    Generation generation = 0;
    BadStep bad;
  };
  // Nobody steps any more, nor will: what is still done beside training is to be brought to its
  // end. What is noted until that is answered comes before END.
  struct WindUp {};
  struct Evidence {  // Against a node, for the book.
    NodeId node = 0;
    EvidenceKind kind = EvidenceKind::kNodeLost;
    int64_t number = 0;  // As in EvidenceEntry.
    int32_t rank = -1;   // Of kSlow: which one.
  };
  struct Remark {  // A decision and its reason, for journal and log.
    std::string text;
  };
  struct Resign {  // Destroy me.
    std::string reason;
  };
  struct Finished {  // END is written; members are told.
    int32_t exit_code = 0;
  };
  using Effect = std::variant<Send, Append, ReadLog, LeavePulse, MeasureRoom, JoinParts,
                              ChooseCheckpoint, AllPresent, SaveOver, Noted, GoodSteps, WentBack,
                              WindUp, Evidence, Remark, Resign, Finished>;
  using Effects = std::vector<Effect>;

  enum class Phase : uint8_t {
    kClaiming,   // LEAD is not written yet.
    kGathering,  // Who is there?
    kRunning,    // Members step, and are granted leases.
    kStopping,   // Members let go of a generation.
    kWaiting,    // For nodes.
    kChoosing,   // A checkpoint.
    kStarting,   // START is not written yet.
    kForming,    // Members make ranks, connect and load.
    kEnding,     // Nobody steps; END is not written yet.
    kEnded,
    kResigned,
  };

  Coordinator(const ControlOptions& options, const LayoutRule& rule, const Identity& identity,
              LogView view, absl::Time now);

  void Step(absl::Time now, const Event& event, Effects& effects);
  absl::Time NextDeadline() const;

  Phase phase() const { return phase_; }
  Slot term() const { return term_; }
  const PlacedLayout& layout() const { return layout_; }
  const std::vector<NodeId>& members() const { return members_; }
  const LogView& view() const { return view_; }
  const Resume& resume() const { return resume_; }  // Of layout().
  size_t ready() const { return ready_; }           // Members that hold its state.
  StepIndex saving() const { return saving_; }      // Whose state is being saved; -1: none.
  // Of the newest generation of this job: steps that are finished, and what failed first.
  StepIndex finished() const { return finished_; }
  const std::optional<Failure>& cause() const { return cause_; }
  // Nodes that have been found slow, or are done without because they were; by node.
  struct SlowNode {
    NodeId node = 0;
    int64_t percent = 0;  // The worst of its ranks; 0: another coordinator knew.
    bool avoided = false;
    friend bool operator==(const SlowNode&, const SlowNode&) = default;
  };
  std::vector<SlowNode> slow() const;

 private:
  // What is known of a node.
  struct Peer {
    bool present = false;  // It reports, and was not lost since.
    bool stuck = false;    // Its ranks did not stop; not to be used until they have.
    bool drained = false;
    int64_t slow_percent = 0;  // It has slow ranks: the worst of them; 0: it has none.
    bool avoided = false;      // It was slow, and is not used if that can be,
    int slow_times = 0;        // for the slow_times-th time,
    absl::Time retry_at;       // until then.
    bool member = false;                     // Of layout_.
    msg::Report report;                      // Its newest; incarnation 0: none.
    std::optional<Generation> stopped;       // Stopped of this generation has come,
    std::vector<Holding> holdings;           // with this.
    absl::Time told = absl::InfinitePast();  // When it was last sent a command.
    bool gathered = false;                   // Counted in gathered_,
    bool stop_counted = false;               // in stop_missing_,
    bool addressed = false;                  // in addressed_,
    bool ready = false;                      // in ready_,
    bool done = false;                       // in done_.
    int32_t wrote = 0;                       // Attempt at this save that it has written,
    std::string packed;                      // and what.
    std::vector<int32_t> verifying;          // Files whose vote is missing.
  };
  struct Pending {
    LogEntry entry;
    int32_t attempt = 0;
    absl::Time asked = absl::InfiniteFuture();  // When it was first tried.
    int32_t tries = 0;
  };

  void On(const Tick&, Effects&) {}
  void On(const Received& event, Effects& effects);
  void On(const Closed& event, Effects& effects);
  void On(const Appended& event, Effects& effects);
  void On(const Unpublished& event, Effects& effects);
  void On(const LogRead& event, Effects& effects);
  void On(const Measured& event, Effects& effects);
  void On(const PartsJoined& event, Effects& effects);
  void On(const CheckpointChosen& event, Effects& effects);
  void On(const Note& event, Effects& effects);
  void On(const WoundUp& event, Effects& effects);
  void On(const SaveNow& event, Effects& effects);
  void On(const Drain& event, Effects& effects);
  void On(const EndJob& event, Effects& effects);

  // coordinator.cc: lead, log, reports.
  void OnReport(NodeId node, const msg::Report& report, Effects& effects);
  void Advance(NodeId node, const msg::Report& before, Effects& effects);
  bool Hear(NodeId node, const msg::Report& report);
  void AnswerReport(NodeId node, Effects& effects);
  void Reconcile(NodeId node, Effects& effects);
  void Tell(NodeId node, ControlMessage message, Effects& effects);
  void Post(LogEntry entry, int32_t attempt, Effects& effects);
  void IssueAppend(Effects& effects);
  void Won(const LogEntry& entry, uint64_t note, Effects& effects);
  bool Posted(EntryKind kind) const;
  void Timers(Effects& effects);
  void LeavesPulse(Effects& effects);
  void Detect(const FailureDetector::Event& event, Effects& effects);
  void OnFound(const FailureDetector::NodeLost& found, Effects& effects);
  void OnFound(const FailureDetector::Stalled& found, Effects& effects);
  void OnFound(const auto&, Effects&) {}
  void StopWithoutBoundary(Effects& effects);
  void PhaseIsLate(Effects& effects);
  void Resigns(std::string reason, Effects& effects);
  Endpoint At(NodeId node) const { return {identity_.me.at.job, node}; }
  void Say(std::string text, Effects& effects);

  // coordinator_generation.cc: from one generation to the next.
  void Gather(NodeId node, Effects& effects);
  void OnMemberReport(NodeId node, const msg::Report& before, Effects& effects);
  void BeginStop(bool at_boundary, std::string why, Effects& effects);
  bool StoppedFor(const Peer& peer) const;
  bool Stalls() const;
  void CountStopped(NodeId node);
  void TryStopped(Effects& effects);
  void Form(Effects& effects);
  msg::Prepare PrepareFor(NodeId node) const;
  void OnStopped(NodeId node, const msg::Stopped& m, Effects& effects);
  void OnPresent(NodeId node, const msg::Present& m, Effects& effects);
  void MakeTables();
  void SendTables(NodeId node, Effects& effects);
  void TryGo(Effects& effects);
  void MembersFail(std::string why, Effects& effects);
  void TryEnd(Effects& effects);
  bool EndsWell() const;
  void LeaveUnsaved(Effects& effects);
  void TakeOver(PlacedLayout layout);
  void Runs(StepIndex finished, Effects& effects);

  // coordinator_decide.cc: what is next, and with which state.
  void Learn(NodeId node, const msg::Report& before, Effects& effects);
  void FindBad(const BadStep& bad);
  void Blame(EvidenceKind kind, int64_t number, std::optional<NodeId> node);
  bool RanBefore() const;
  Failure Ended() const;
  Gaps NextGaps() const;
  bool GoesNowhere(Effects& effects);
  Situation Survey() const;
  void Decide(Effects& effects);
  Resume NewestInMemory() const;
  bool WorthSaving(const Resume& resume) const;
  void Choose(Effects& effects);
  void AskWhichCheckpoint(Effects& effects);
  void Start(Resume resume, std::optional<StepIndex> checkpoint, Effects& effects);
  void ConsiderChange(Effects& effects);
  bool SavesFirst(const std::string& why, Effects& effects);

  // coordinator_slow.cc: ranks that are slow.
  void HearWork(NodeId node, Effects& effects);
  int64_t Rounds(int32_t data) const;
  bool LeavesSlow(Effects& effects);
  void Avoid(NodeId node, int times);
  void RetrySlow();

  // coordinator_save.cc: checkpoints.
  void SaveTimers(Effects& effects);
  void OnSaving(NodeId node, const msg::Report& report, Effects& effects);
  bool NeverWhole(const msg::Report& report) const;
  void LetGo(Effects& effects);
  void OnWrote(NodeId node, const msg::Wrote& m, Effects& effects);
  void OnVoted(NodeId node, const msg::Voted& m, Effects& effects);
  void DoCommit(const CheckpointCommit::Event& event, Effects& effects);
  void OnCommit(const CheckpointCommit::Measure& e, Effects& effects);
  void OnCommit(const CheckpointCommit::Write& e, Effects& effects);
  void OnCommit(const CheckpointCommit::Join& e, Effects& effects);
  void OnCommit(const CheckpointCommit::Verify& e, Effects& effects);
  void OnCommit(const CheckpointCommit::Publish& e, Effects& effects);
  void OnCommit(const CheckpointCommit::Settle& e, Effects& effects);
  void TellVerify(NodeId node, int32_t file, Effects& effects);
  void AfterSave(bool given_up, Effects& effects);
  StepIndex Past() const;
  void Drop(NodeId node, StepIndex step, Effects& effects);
  void TellSettled(NodeId node, StepIndex step, Effects& effects);
  void DropSave(Effects& effects);
  bool AllWait() const;
  int MemberIndex(NodeId node) const;

  ControlOptions options_;
  LayoutRule rule_;
  Identity identity_;
  LogView view_;
  absl::Time now_;

  Phase phase_ = Phase::kClaiming;
  absl::Time phase_due_ = absl::InfiniteFuture();  // When patience with this phase ends.
  Slot term_ = 0;
  uint32_t ids_ = 0;
  std::deque<Pending> pending_;                     // Records to append; the first is under way.
  absl::Time append_due_ = absl::InfiniteFuture();  // When to try it again.
  absl::Time poll_due_ = absl::InfiniteFuture();
  absl::Time pulse_due_ = absl::InfinitePast();
  uint64_t pulses_ = 0;
  Authority authority_;
  Fence fence_;
  FailureDetector detector_;
  FailureDetector::Effects found_;
  SlowRanks slow_;
  absl::Time retry_due_ = absl::InfiniteFuture();  // When an avoided node may be used again.

  std::vector<Peer> peers_;  // By node.
  size_t gathered_ = 0;
  std::vector<NodeId> gathered_nodes_;  // Of the generation that may be taken over.
  absl::Time changed_at_;               // When the set of usable nodes changed last.
  absl::Time waiting_since_ = absl::InfiniteFuture();
  std::vector<NodeOffer> waits_with_;  // kWaiting: the nodes for which that was said.
  absl::Time look_again_ = absl::InfiniteFuture();

  PlacedLayout layout_;          // Of the newest generation that this coordinator answers for.
  std::vector<NodeId> members_;  // Its nodes, sorted.
  Generation stopping_ = 0;      // kStopping: this one and all before it.
  bool stop_at_boundary_ = false;
  size_t stop_missing_ = 0;  // Present nodes that have not stopped.
  Resume resume_;
  Decision decision_;  // kChoosing, kStarting: what was decided.
  uint64_t question_ = 0;
  absl::Time choose_due_ = absl::InfiniteFuture();  // When to ask it again.
  std::optional<CheckpointChosen> chosen_;
  std::string loads_;                 // The checkpoint of layout_; empty: none, or not known.
  bool last_is_bad_ = false;          // The checkpoint of the last START that needed one.
  std::string last_checkpoint_;       // It,
  std::optional<StepIndex> good_at_;  // and with how many steps it is a good one.
  // Of the newest generation of this job:
  StepIndex finished_ = 0;        // what members say at most,
  std::optional<Failure> cause_;  // what failed first and is no consequence of something else,
  BadStep bad_;                   // and the bad step that it came to.
  ProgressVerdict verdict_;       // On all that failed, when it was decided last.
  std::vector<std::vector<msg::Prepare::Assignment>> assignments_;  // By member index.
  std::vector<std::string> addresses_;                              // By rank.
  std::vector<msg::Table> tables_;
  size_t addressed_ = 0, ready_ = 0, done_ = 0;  // Members.
  absl::Time go_due_ = absl::InfiniteFuture();   // When the fence opens.
  std::optional<int32_t> ending_;                // The job is to end with this code,
  int last_generations_ = 0;                     // and has begun so many since.
  bool winding_up_ = false, wound_up_ = false;   // WindUp was said; was answered.

  std::optional<CheckpointCommit> commit_;  // Of layout_.
  std::vector<std::string> parts_;          // By file, of the attempt that is read back.
  absl::Time save_due_ = absl::InfiniteFuture();
  absl::Time save_give_up_ = absl::InfiniteFuture();
  StepIndex saving_ = -1;   // The step of the state that is being saved.
  StepIndex settled_ = -1;  // Of the last one,
  StepIndex dropped_ = -1;  // States up to this one: some of their owners were told to drop them.
  // The layout is to change and memory keeps nothing: ranks are asked to wait with a state until it
  // is saved. paused_: they do, and it is.
  bool pausing_ = false, paused_ = false;
};

}  // namespace perdure
