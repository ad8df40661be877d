// The world that the control plane's machines are simulated in: clocks, network, file server,
// processes, the ranks' steps, and the faults of a Scenario. Virtual time; one thread; the same
// seed gives the same history on every compiler.
//
// The machines are the production's, every message passes through the production's encoder. What is
// not simulated is the work: a step is a delay and a hash of what went into it (step, leaves,
// ranks), so that a wrong membership, a lost or doubled leaf, a wrong or mixed state changes the
// hash. Checks are made by this world's own books (checker.h), which share nothing with the
// machines.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"
#include "runtime/control/rank_guard.h"
#include "tests/prng.h"
#include "tests/sim/checker.h"
#include "tests/sim/scenario.h"

namespace perdure::sim {

// In larger worlds what costs the square of their size is looked at in samples.
inline constexpr int32_t kNodesLookedAt = 64;

// Of a rank.
std::string Address(Generation generation, const Seat& seat);
// What is in a part file of a checkpoint, in whose words `packed` is.
std::string PartOf(const std::string& packed);

struct Outcome {
  std::string violation;  // Empty: none.
  Nanos violated_at = 0;
  uint64_t digest = 0;  // Of all that happened.
  uint64_t events = 0, messages = 0, message_bytes = 0;
  Nanos ended = 0;
  int64_t generations = 0, commits = 0, steps = 0, leads = 0;
  uint32_t faults_hit = 0;  // Bit by FaultKind: it struck something that was there.
  uint32_t resumed_from_memory = 0, adopted = 0;
  // Checkpoints that were found bad, runs that were complete, notes in the log, generations that
  // were told to be good, failures that the program caused by itself, the most of them at one step.
  int64_t bad = 0, complete = 0, noted = 0, good = 0, crashes = 0, failures_max = 0;
  // Layouts that were changed behind a checkpoint because memory keeps nothing.
  int64_t saved_first = 0;
  // Nodes that were named as slow, and left out for it.
  int64_t slow_named = 0, slow_left = 0;
  // Times that the run went back for a bad step, and that it had done so too often.
  int64_t rollbacks = 0, exhausted = 0;
};

class World {
 public:
  // `trace`: tell what happens on standard output.
  explicit World(const Scenario& scenario, bool trace = false);
  // To the end: three commits after the faults are over, or what is wrong.
  Outcome Run();

  // By hand, for measuring: to `until` or the first violation.
  const Outcome& RunUntil(Nanos until);
  // Breaks node `node` of the newest job now and for good.
  void Break(NodeId node);
  // Of the newest job; nothing: nobody leads.
  const Coordinator* Lead() const;
  Nanos now() const { return now_; }
  StepIndex newest_step() const { return newest_step_; }
  Generation stepping() const { return stepping_; }
  // Real time spent in coordinators, in ns, while `measure` is on.
  void Measure(bool measure) { measure_ = measure; }
  int64_t lead_nanos() const { return lead_nanos_; }

 private:
  using Index = uint32_t;  // Of an agent: job * nodes + node.

  enum class What : uint8_t {
    kDeliver,
    kTick,
    kBoot,
    kClosed,
    kLogExecute,
    kLogReply,
    kLeadReply,
    kRanksMade,
    kRanksLoaded,
    kRanksStopped,
    kContribute,
    kComplete,
    kApply,
    kSnapshot,
    kFrozen,
    kWritten,
    kVerified,
    kRankFailed,
    kRenewed,
    kFault,
    kHeal,
    kNextJob,
    kHardEnd,
    kNote,
    kChosen,
  };
  struct Happening {
    What what = What::kTick;
    Index agent = 0, from = 0;
    uint64_t version = 0;  // Of what it was meant for: void when that has changed.
    int64_t a = 0, b = 0, c = 0, d = 0;
    std::string bytes;
  };
  struct Due {
    Nanos at;
    uint64_t order;
    uint32_t slot;
    bool operator>(const Due& o) const { return at != o.at ? at > o.at : order > o.order; }
  };

  enum class Ranks : uint8_t { kNone, kMade, kLoading, kLoaded, kRunning };
  struct Held {
    Holding what;
    uint64_t value = 0;
    bool own = false;
  };
  struct RankGroup {  // The ranks of a node.
    Ranks state = Ranks::kNone;
    uint64_t version = 0;
    msg::Prepare prepare;
    RankGuard guard;
    StepIndex finished = 0;
    uint64_t value = 0;
    int32_t failed_local_rank = -1;
    bool contributed = false;
    bool stop_at_boundary = false;
    // kToFreeze: until another state is settled; kForLast: until the last one is; kPaused: until
    // the one is that they were asked to wait with.
    enum class Waits : uint8_t { kNo, kToContribute, kToApply, kToFreeze, kForLast, kPaused };
    Waits waits = Waits::kNo;
    bool AwaitsSettle() const { return waits >= Waits::kToFreeze; }
    StepIndex frozen = -1;
    uint64_t frozen_value = 0;
    int32_t attempt = 0;       // At writing it: the last that was begun,
    bool written = false;      // and done,
    bool written_told = true;  // with success, as they believe.
    int32_t connected = 0;
    BadStep bad;          // They have come to one, and stand.
    bool hung = false;    // They do not step any more, and do not know it.
    bool deaf = false;    // They end only by being killed.
    bool leased = false;  // A lease of their own generation has come.
    Nanos work = 0;       // What the step under way takes them,
    std::vector<WorkDone> works;
  };
  struct Agent {
    uint32_t job = 0;
    NodeId node = 0;
    bool alive = false, leaving = false, left = false;  // left: for good.
    uint64_t incarnation = 0;
    int64_t offset = 0, ppm = 0;  // Of its clock.
    uint64_t slots = 0;
    std::optional<Member> member;
    std::optional<Coordinator> lead;
    uint64_t lead_id = 0;
    Nanos tick_at = -1;
    Nanos paused = 0, ranks_paused = 0, isolated = 0, log_blind = 0;
    Nanos write_errors = 0, stubborn = 0, unkillable = 0, slow = 0;
    int64_t slow_percent = 100;
    RankGroup ranks;
    std::vector<Held> memory;
  };
  struct LogRequest {
    enum class Kind : uint8_t { kAppend, kLeadRead, kMemberRead, kPulse } kind = Kind::kAppend;
    Index agent = 0;
    uint64_t incarnation = 0, lead_id = 0;
    LogEntry entry;
    Slot from = 0;
    absl::Time asked;
    bool failed = false;  // The reply says so.
    std::vector<LogEntry> read;
    std::optional<LogEntry> found;
    std::optional<Pulse> pulse;
  };
  struct StepBooks {  // A step that is under way in one generation.
    int32_t ranks = 0;
    uint64_t leaves = 0;
    std::vector<std::pair<Index, uint64_t>> agents;  // With the version of their ranks.
  };
  struct GenerationBooks {
    uint32_t job = 0;
    PlacedLayout layout;
    Gaps gaps;
    std::vector<NodeId> nodes;
    std::map<StepIndex, StepBooks> steps;
    std::optional<StepIndex> freeze_after;
    bool freeze_last = false;  // Of what is asked for,
    StepIndex last_step = -1;  // and when it is known which that is.
    bool freeze_pause = false;
    StepIndex freeze_step = -1, pause_step = -1;
  };

  struct Checkpoint {  // Of the run, by COMMIT.
    StepIndex step = 0;
    Generation generation = 0;
    std::string name;
    Gaps gaps = {};
    uint64_t value = 0;
    enum class Bad : uint8_t { kNo, kSeenByStore, kSeenByRanks } bad = Bad::kNo;
    bool known = false;  // That it is bad.
  };
  struct NoteBooks {  // By tag.
    Index agent = 0;
    uint64_t lead_id = 0;
    Nanos told_at = 0;
    int in_log = 0, noted = 0;
    bool dropped = false;  // It had no body.
  };

  // world.cc
  uint32_t Put(Happening happening);
  void At(Nanos at, Happening happening);
  void Begin();
  bool HandleNext(Nanos until);
  void Handle(Happening& h);
  bool Defer(const Happening& h);
  Agent& Of(Index index) { return agents_[index]; }
  Index IndexOf(const Endpoint& e) const {
    return static_cast<Index>(e.job) * static_cast<Index>(scenario_.nodes) + e.node;
  }
  absl::Time Local(const Agent& agent, Nanos at) const;
  Nanos Global(const Agent& agent, absl::Time local) const;
  void StepMember(Index index, const Member::Event& event);
  void StepLead(Index index, const Coordinator::Event& event);
  void Perform(Index index, Member::Effects& effects);
  void PerformLead(Index index, Coordinator::Effects& effects);
  void ScheduleTick(Index index);
  void Boot(Index index);
  void Violate(std::string what);
  bool Tracing() const { return trace_; }
  void Trace(const std::string& line) const;
  void CheckProgress();

  // network.cc
  void Send(Index from, const Endpoint& to, const ControlMessage& message);
  void Deliver(Happening& h);
  bool Cut(Index from, Index to) const;
  void CloseConnectionsOf(Index index);

  // file_server.cc
  void AskLog(LogRequest request);
  void ExecuteLog(uint32_t request);
  void ReplyLog(uint32_t request);

  // ranks.cc
  void MakeRanks(Index index, const msg::Prepare& prepare);
  void Connect(Index index, const msg::Table& table);
  void Load(Index index);
  void FinishLoad(Index index);
  void StartStep(Index index);
  void Contribute(Index index);
  void Complete(Generation generation, StepIndex step);
  bool AnyCut(const std::vector<std::pair<Index, uint64_t>>& agents) const;
  void Apply(Index index);
  bool FindsBad(Index index);
  void Freeze(Index index);
  void Hold(Index index);
  bool Last(const RankGroup& ranks);
  void SettleState(Index index, const msg::Settle& settle);
  void StopRanks(Index index, const Member::StopRanks& stop);
  void KillRanks(Index index, Generation generation);
  void FinishStop(Index index, Generation generation, bool killed);
  void Renew(Index index, Generation generation, absl::Time until);
  void FailRank(Index index, int32_t local_rank, EvidenceKind kind, bool slot_lost);
  void DropOwn(Agent& agent, int32_t rank);
  void Remember(Agent& agent, const Held& held);
  void FinishTraining(Index index);
  void SayProgress(Index index);
  bool FailsByItself(Index index);
  void WriteState(Index index, const msg::Write& write);
  void VerifyFile(Index index, const msg::Verify& verify);

  // slow.cc
  Nanos DrawWork(Agent& agent);
  void CountWork(RankGroup& ranks);
  void SlowDown(Index index, Nanos until, int64_t percent);
  void OnSlow(Index index, NodeId node);
  void CheckSlow(const LogEntry& entry);
  void CheckSlowStart(const LogEntry& start);

  // store.cc
  void OnCommit(const LogEntry& commit);
  void Choose(Index index, const Coordinator::ChooseCheckpoint& order);
  void AnswerChosen(Index index, uint64_t question);
  void FindBad(Checkpoint& checkpoint);
  bool LoadsCheckpoint(Index index, const Resume& resume);
  bool MayLoad(const Checkpoint& checkpoint, const Gaps& gaps) const;
  void PersonLooks();
  void Join(Index index, const Coordinator::JoinParts& order);
  void WantNotes(Index index);
  bool NoteHasBody(uint64_t tag, Index index);
  void OnNoted(Index index, uint64_t tag);
  void CheckNotes();
  void OnGoodSteps(Index index, Generation generation);

  // faults.cc
  void Strike(const Fault& fault);
  void CrashAgent(Index index, Nanos back_at);
  void CrashNode(Index index, Nanos back_at);
  void StartJob();
  void EndJobs();
  void Heal();

  Scenario scenario_;
  bool calm_;  // It was before the faults ended.
  bool trace_;
  Nanos now_ = 0;
  uint64_t order_ = 0;
  std::vector<Due> heap_;
  std::vector<Happening> happenings_;
  std::vector<uint32_t> free_;
  std::vector<Agent> agents_;
  std::vector<LogRequest> requests_;
  std::vector<std::pair<Nanos, LogEntry>> log_;  // With when each was linked.
  std::vector<uint64_t> log_leads_;              // By slot: lead_id of its author.
  std::deque<std::pair<Nanos, Pulse>> pulses_;   // With when each was written; not the oldest.
  std::map<Generation, GenerationBooks> generations_;
  struct CutLink {
    Index from, to;
    Nanos until;
  };
  std::vector<CutLink> cuts_;
  int isolations_ = 0;  // That there ever were.
  Nanos slow_network_ = 0, log_stalled_ = 0, log_errors_ = 0, stalled_ = 0;
  bool healed_ = false, begun_ = false, measure_ = false;
  int64_t lead_nanos_ = 0;
  StepIndex newest_step_ = 0;
  Generation stepping_ = 0;
  int64_t commits_at_heal_ = 0;
  std::vector<bool> job_ending_;
  uint64_t incarnations_ = 0;
  std::vector<Checkpoint> store_;
  std::map<std::tuple<Index, uint64_t, uint64_t>, Gaps> asked_;  // By agent, lead_id, question.
  Gaps none_for_;  // For which no checkpoint could be loaded last.
  std::vector<NoteBooks> notes_;
  std::set<std::tuple<Index, uint64_t, Generation>> told_good_;
  struct SlowSpan {
    Index agent;
    Nanos from, until;
  };
  std::vector<SlowSpan> slow_spans_;
  std::map<Index, Nanos> named_slow_, left_until_;  // When last; until when it is left out,
  std::map<Index, int> left_times_;                 // which it was so often.
  uint64_t slow_job_ = 0;                           // Of the last LEAD.
  bool looked_ = false;                             // A person, at what makes the program fail.
  bool complete_ = false;                           // The run.
  Prng network_, disk_, work_, clocks_, manifests_, shell_;
  Checker checker_;
  Outcome outcome_;
  Member::Effects member_effects_;
  Coordinator::Effects lead_effects_;
  std::string encoded_;
};

}  // namespace perdure::sim
