// Jobs whose rank processes and nodes are killed, stopped, joined by others: they must end in the
// same bits as one that was left alone.
#include "runtime/agent/process_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <bit>
#include <cstdio>
#include <filesystem>
#include <set>

#include "runtime/agent/process.h"
#include "runtime/base/status.h"
#include "tests/agent/job_stage.h"

namespace perdure {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int kSamples = 300;

// Of a run of so many samples that nobody disturbs.
struct Undisturbed {
  CommitRecord commit;
  std::map<int64_t, uint64_t> losses;  // Bits, by step.
};

class ProcessRanksTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!JobStage::Possible()) GTEST_SKIP() << "no transport between processes in this build";
    stage_ = std::make_unique<JobStage>(kSamples);
  }
  void TearDown() override {
    if (HasFailure() && stage_ != nullptr) std::printf("%s", stage_->Story().c_str());
  }
  static const Undisturbed& Alone() {
    static const Undisturbed* const alone = [] {
      auto* const run = new Undisturbed;
      JobStage stage(kSamples);
      stage.options.nodes = 1;
      stage.Start(0);
      EXPECT_EQ(stage.Completed(), 0) << stage.Story();
      run->commit = stage.LastCommit();
      for (const JobStage::Step& step : stage.steps)
        run->losses[step.report.step] = std::bit_cast<uint64_t>(step.report.loss);
      return run;
    }();
    return *alone;
  }
  // Node 1 comes to node 0, whose rank is held back until `seen`: alone it would be done before.
  // False: that is not seen in time.
  bool ComesBefore(const std::function<bool()>& seen) {
    stage_->options.nodes = 2;
    stage_->options.control.gather = absl::Milliseconds(300);
    stage_->Start(0);
    pid_t held = 0;
    At(5, [&] { ::kill(held = stage_->PidOf(0), SIGSTOP); });
    if (!stage_->Until([&] { return held != 0; })) return false;
    stage_->Start(1);
    const bool in_time = stage_->Until(seen);
    ::kill(held, SIGCONT);
    return in_time;
  }
  // Every step was taken, some more than once, always with the same loss; the end is the same.
  void ExpectTheSame() {
    const Undisturbed& alone = Alone();
    std::set<int64_t> seen;
    for (const JobStage::Step& step : stage_->steps) {
      seen.insert(step.report.step);
      EXPECT_EQ(std::bit_cast<uint64_t>(step.report.loss), alone.losses.at(step.report.step))
          << step.report.step;
    }
    EXPECT_EQ(seen.size(), alone.losses.size());
    const CommitRecord commit = stage_->LastCommit();
    EXPECT_EQ(commit.step, alone.commit.step);
    EXPECT_EQ(commit.certificate, alone.commit.certificate);
    // Nothing is left in memory.
    EXPECT_TRUE(std::filesystem::is_empty(stage_->shelves()));
  }
  // Steps that were taken again in a later generation.
  int64_t Redone() const {
    return static_cast<int64_t>(stage_->steps.size() - Alone().losses.size());
  }
  void StartAll(NodeId nodes) {
    stage_->options.nodes = nodes;
    for (NodeId node = 0; node < nodes; ++node) stage_->Start(node);
  }
  // Once, behind that step of the first generation.
  void At(int64_t step, std::function<void()> what) {
    stage_->on_step = [step, what = std::move(what), done = false](const auto& s) mutable {
      if (s.report.step >= step && !std::exchange(done, true)) what();
    };
  }

  std::unique_ptr<JobStage> stage_;
};

TEST_F(ProcessRanksTest, ARunIsTakenToItsEnd) {
  StartAll(2);
  ASSERT_EQ(stage_->Completed(), 0);
  EXPECT_EQ(stage_->Starts().size(), 1u);
  EXPECT_EQ(stage_->Starts()[0].shape, (LayoutShape{1, 1, 2}));
  EXPECT_TRUE(stage_->failures.empty());
  EXPECT_EQ(Redone(), 0);
  ExpectTheSame();
}

TEST_F(ProcessRanksTest, AKilledRankIsMadeAnewAndGoesOnFromMemory) {
  StartAll(2);
  pid_t killed = 0;
  At(10, [&] { ::kill(killed = stage_->PidOf(1), SIGKILL); });
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_GE(starts[1].step, 9);  // No checkpoint is there yet.
  EXPECT_EQ(starts[1].seats, starts[0].seats);
  ASSERT_EQ(stage_->failures.size(), 1u);
  EXPECT_EQ(stage_->failures[0].first, 1u);
  const RankFailure& failure = stage_->failures[0].second;
  EXPECT_EQ(failure.kind, EvidenceKind::kRankKilled);
  EXPECT_EQ(failure.number, SIGKILL);
  EXPECT_EQ(failure.pid, killed);
  EXPECT_THAT(failure.words, HasSubstr("signal 9"));
  EXPECT_THAT(failure.words, HasSubstr("last it did: step 1"));
  // The others' processes live on.
  const std::vector<pid_t>&before = stage_->pids[1], &after = stage_->pids[2];
  ASSERT_EQ(after.size(), 2u);
  EXPECT_EQ(after[0], before[0]);
  EXPECT_NE(after[1], before[1]);
  EXPECT_LE(Redone(), 2);
  ExpectTheSame();
}

TEST_F(ProcessRanksTest, RankZeroIsNoBetter) {
  StartAll(2);
  At(10, [&] { ::kill(stage_->PidOf(0), SIGSEGV); });
  ASSERT_EQ(stage_->Completed(), 0);
  EXPECT_EQ(stage_->Starts().size(), 2u);
  EXPECT_EQ(stage_->failures.at(0).second.number, SIGSEGV);
  EXPECT_EQ(stage_->pids[2][1], stage_->pids[1][1]);
  ExpectTheSame();
}

// Who is at fault says so himself, and it is held against his node; the others keep their
// processes.
TEST_F(ProcessRanksTest, AFlippedBitIsFoundAndNothingIsLost) {
  for (const FlipPlace place :
       {FlipPlace::kGradient, FlipPlace::kExpAvgSq, FlipPlace::kParameter, FlipPlace::kCopy}) {
    SCOPED_TRACE(NameOf(place));
    stage_ = std::make_unique<JobStage>(kSamples);
    StartAll(2);
    At(10, [&] {
      const Flip flip{.place = place, .element = 4321, .bit = 0};
      EXPECT_TRUE(stage_->at(1).ranks->Corrupt(0, 14, flip).ok());
      EXPECT_TRUE(absl::IsNotFound(stage_->at(1).ranks->Corrupt(7, 14, flip)));
    });
    ASSERT_EQ(stage_->Completed(), 0);
    const std::vector<StartRecord> starts = stage_->Starts();
    ASSERT_EQ(starts.size(), 2u);
    EXPECT_FALSE(starts[1].from_checkpoint);
    EXPECT_GE(starts[1].step, 10);
    EXPECT_EQ(starts[1].failure.kind, EvidenceKind::kSilentCorruption);
    ASSERT_EQ(stage_->failures.size(), 1u);
    EXPECT_EQ(stage_->failures[0].first, 1u);
    EXPECT_EQ(stage_->failures[0].second.kind, EvidenceKind::kSilentCorruption);
    EXPECT_EQ(stage_->failures[0].second.rank, 1);
    EXPECT_THAT(stage_->failures[0].second.words, HasSubstr("silent corruption: "));
    EXPECT_EQ(stage_->pids[2][0], stage_->pids[1][0]);
    EXPECT_NE(stage_->pids[2][1], stage_->pids[1][1]);
    ExpectTheSame();
  }
}

// The detector finds the stall, the agent kills who was stopped: at once, however long others would
// be given to stop.
TEST_F(ProcessRanksTest, AStoppedRankIsKilledAndMadeAnew) {
  stage_->options.control.stall_min = absl::Seconds(2);
  stage_->options.control.stop_max = absl::Hours(1);
  StartAll(2);
  At(10, [&] { ::kill(stage_->PidOf(1), SIGSTOP); });
  ASSERT_EQ(stage_->Completed(), 0);
  EXPECT_GE(stage_->Starts().size(), 2u);
  ASSERT_FALSE(stage_->failures.empty());
  EXPECT_EQ(stage_->failures[0].first, 1u);
  EXPECT_EQ(stage_->failures[0].second.kind, EvidenceKind::kHung);
  EXPECT_THAT(stage_->failures[0].second.words, HasSubstr("was stopped while all others waited"));
  EXPECT_GE(stage_->Starts()[1].step, 9);
  ExpectTheSame();
}

// Its rank's state is in its peer's node.
TEST_F(ProcessRanksTest, ALostNodeIsDoneWithout) {
  StartAll(2);
  bool lost = false;
  At(10, [&] { lost = true; });
  ASSERT_TRUE(stage_->Until([&] { return lost; }));
  stage_->Kill(1);
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[1].shape.data, 1);
  EXPECT_GE(starts[1].step, 9);
  std::filesystem::remove_all(stage_->shelves() + "/" +
                              std::filesystem::directory_iterator(stage_->shelves())
                                  ->path()
                                  .filename()
                                  .string());  // The lost node's.
  ExpectTheSame();
}

// What two nodes of a rack held is in the other rack.
TEST_F(ProcessRanksTest, NodesThatFailTogetherDoNotKeepEachOthersState) {
  stage_->options.nodes = 4;
  for (NodeId node = 0; node < 4; ++node) {
    stage_->options.domain = node / 2;
    stage_->Start(node);
  }
  bool lost = false;
  At(10, [&] { lost = true; });
  ASSERT_TRUE(stage_->Until([&] { return lost; }));
  for (const NodeId node : {2u, 3u}) stage_->Kill(node);
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_GE(starts.size(), 2u);
  EXPECT_EQ(starts[0].shape.data, 4);
  EXPECT_EQ(starts[1].shape.data, 2);
  EXPECT_FALSE(starts[1].from_checkpoint);
  EXPECT_GE(starts[1].step, 9);
  for (const auto& shelf : std::filesystem::directory_iterator(stage_->shelves()))
    std::filesystem::remove_all(shelf.path());  // The lost nodes'.
  ExpectTheSame();
}

// Three become two: each needs what others owned, from nodes that it has to ask.
TEST_F(ProcessRanksTest, StateComesFromOtherNodes) {
  StartAll(3);
  bool lost = false;
  At(10, [&] { lost = true; });
  ASSERT_TRUE(stage_->Until([&] { return lost; }));
  stage_->Kill(2);
  ASSERT_TRUE(stage_->Until([&] { return stage_->pids.contains(2); }));
  uint64_t bytes = 0;
  for (const NodeId node : {0u, 1u}) bytes += stage_->at(node).ranks->fetch()->counters().bytes;
  EXPECT_GT(bytes, 10000u);
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[1].shape.data, 2);
  EXPECT_GE(starts[1].step, 9);
  EXPECT_EQ(stage_->pids[2], (std::vector<pid_t>{stage_->pids[1][0], stage_->pids[1][1]}));
  std::filesystem::remove_all(
      stage_->shelves() + "/" +
      std::filesystem::directory_iterator(stage_->shelves())->path().filename().string());
  ExpectTheSame();
}

// All leave at a boundary: not a step is done again.
TEST_F(ProcessRanksTest, ANodeThatComesIsTakenInAtABoundary) {
  ASSERT_TRUE(ComesBefore(
      [&] { return stage_->at(0).agent->lead()->phase() == Coordinator::Phase::kStopping; }));
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[1].shape.data, 2);
  EXPECT_GT(starts[1].step, 0);
  EXPECT_EQ(stage_->pids[2][0], stage_->pids[1][0]);
  EXPECT_TRUE(stage_->failures.empty());
  EXPECT_EQ(Redone(), 0);
  ExpectTheSame();
}

// Where memory keeps nothing they leave behind a checkpoint that all have waited with.
TEST_F(ProcessRanksTest, ANodeThatComesIsTakenInBehindACheckpoint) {
  stage_->ranks.config += " forgets";
  ASSERT_TRUE(
      ComesBefore([&] { return stage_->Story().find("a checkpoint first") != std::string::npos; }));
  ASSERT_EQ(stage_->Completed(), 0);
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_TRUE(starts[1].from_checkpoint);
  EXPECT_GT(starts[1].step, 5);
  EXPECT_EQ(starts[1].shape.data, 2);
  EXPECT_TRUE(stage_->failures.empty());
  EXPECT_EQ(Redone(), 0);
  ExpectTheSame();
}

// Agents that are started again find what the ones before have left in memory.
TEST_F(ProcessRanksTest, AgentsThatComeBackHaveWhatWasHeld) {
  stage_->options.control.gather_again = absl::Seconds(5);
  StartAll(2);
  bool enough = false;
  At(10, [&] { enough = true; });
  ASSERT_TRUE(stage_->Until([&] { return enough; }));
  for (const NodeId node : {0u, 1u}) stage_->Kill(node);
  for (const NodeId node : {0u, 1u}) stage_->Start(node);
  ASSERT_EQ(stage_->Completed(), 0);
  // On a busy machine one of them may come in later, at a boundary.
  const std::vector<StartRecord> starts = stage_->Starts();
  ASSERT_GE(starts.size(), 2u);
  EXPECT_GE(starts[1].step, 9);
  ExpectTheSame();
}

// A node's only rank, a program that never answers.
class MuteRank {
 public:
  explicit MuteRank(const std::string& script) : loop_(*EventLoop::New()) {
    ranks_ = std::make_unique<ProcessRanks>(
        loop_.get(), &oom_, nullptr,
        ProcessRanksOptions{.argv = {"/bin/sh", "-c", script},
                            .environment = {},
                            .log_directory = directory_.path(),
                            .config = "",
                            .data_directory = "",
                            .run_directory = directory_.path(),
                            .run_id = "",
                            .fetch = {}},
        ProcessRanksHooks{
            .tell =
                [this](const Member::Event& event) {
                  stopped_ |= std::holds_alternative<Member::RanksStopped>(event);
                },
            .layouts =
                [](const std::vector<Generation>& generations, auto then) {
                  then(std::vector<PlacedLayout>(generations.size(),
                                                 {.generation = 1, .seats = {{0, 0}}}));
                },
            .failed = [this](const RankFailure& failure) { failures_.push_back(failure); }});
    msg::Prepare prepare{.generation = 1, .ranks = {{.local_rank = 0, .rank = 0}}};
    ranks_->Do(Member::MakeRanks{prepare});
  }
  // Its program runs, and what it does there it will go on doing.
  bool Begun() const {
    return std::filesystem::file_size(directory_.path() + "/node-00000-slot-00.log") > 0;
  }
  void Stop(bool stalled) { ranks_->Do(Member::StopRanks{1, false, stalled}); }
  void RunOnce() { loop_->RunOnce(MonotonicNow() + absl::Milliseconds(10)); }
  bool Stopped() const { return stopped_; }
  pid_t pid() const { return ranks_->running().at(0).pid; }
  const std::vector<RankFailure>& failures() const { return failures_; }

 private:
  const TestDirectory directory_;
  const std::unique_ptr<EventLoop> loop_;
  OomKills oom_ = OomKills::OfThisProcess();
  bool stopped_ = false;
  std::vector<RankFailure> failures_;
  std::unique_ptr<ProcessRanks> ranks_;
};

// Where a generation stands still: who computes hangs and is killed, who sleeps waits for another
// and gets its time. Where it does not, neither is to blame.
TEST(HungRanks, WhoNeverWaitsIsKilled) {
  constexpr char kLoops[] = "echo begun; while :; do :; done";
  MuteRank loops(kLoops), waits("echo begun; exec sleep 1000"), works(kLoops);
  while (!loops.Begun() || !works.Begun() || !waits.Begun() || ProcessState(waits.pid()) != 'S')
    waits.RunOnce();
  for (MuteRank* rank : {&loops, &waits}) rank->Stop(/*stalled=*/true);
  works.Stop(/*stalled=*/false);
  const absl::Time patience = MonotonicNow() + absl::Seconds(60);
  while (!loops.Stopped() && MonotonicNow() < patience)
    for (MuteRank* rank : {&loops, &waits, &works}) rank->RunOnce();
  EXPECT_TRUE(loops.Stopped());
  ASSERT_EQ(loops.failures().size(), 1u);
  EXPECT_EQ(loops.failures()[0].kind, EvidenceKind::kHung);
  EXPECT_THAT(loops.failures()[0].words, HasSubstr("computed while its generation stood still"));
  for (const MuteRank* rank : {&waits, &works}) {
    EXPECT_FALSE(rank->Stopped());
    EXPECT_TRUE(rank->failures().empty());
  }
}

TEST_F(ProcessRanksTest, ARankThatCannotBeStartedIsToldAsSuch) {
  stage_->ranks.argv = {"/nowhere/rank"};
  stage_->options.nodes = 1;
  stage_->Start(0);
  ASSERT_TRUE(stage_->Until([&] { return !stage_->failures.empty(); }));
  EXPECT_EQ(stage_->failures[0].second.kind, EvidenceKind::kStartFailed);
  EXPECT_THAT(stage_->failures[0].second.words, HasSubstr("/nowhere/rank"));
}

// A rank that says what makes no sense is killed, its agent and the others live.
TEST_F(ProcessRanksTest, ARankThatMakesNoSenseIsKilled) {
  stage_->ranks.argv = {"/bin/sh", "-c", "printf '\\3\\0\\0\\0abc' >&3; sleep 1000"};
  stage_->options.nodes = 1;
  stage_->Start(0);
  ASSERT_TRUE(stage_->Until([&] { return !stage_->failures.empty(); }));
  EXPECT_EQ(stage_->failures[0].second.kind, EvidenceKind::kRankCrashed);
  EXPECT_THAT(stage_->failures[0].second.words, HasSubstr("not a JSON object"));
  EXPECT_EQ(stage_->at(0).agent->peers().counters().malformed, 0u);
}

TEST_F(ProcessRanksTest, DataThatIsMissingIsARanksError) {
  std::filesystem::remove(stage_->ranks.data_directory + "/fr.idx");
  stage_->options.nodes = 1;
  stage_->Start(0);
  ASSERT_TRUE(stage_->Until([&] { return !stage_->failures.empty(); }));
  EXPECT_THAT(stage_->failures[0].second.words, HasSubstr("fr.idx"));
  EXPECT_EQ(stage_->failures[0].second.rank, 0);
}

}  // namespace
}  // namespace perdure
