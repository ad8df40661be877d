// RunRankMain against an agent that keeps to the protocol, and against ones that do not: it must
// live from generation to generation, or end and tell why, and never hang. Devices are in
// rank_devices_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/agent/rank_desk.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

TEST_F(RankMainTest, ARunFromItsBeginningToItsEnd) {
  Load();
  Go();
  EXPECT_EQ(rank().Get<from_rank::OlderMayGo>().generation, 1u);
  const auto progress = rank().Get<from_rank::Progress>();
  EXPECT_EQ(progress.step, 1);
  EXPECT_EQ(progress.work.steps, 1);
  EXPECT_GT(progress.work.leaves, 0);
  EXPECT_GT(progress.work.nanoseconds, 0);
  EXPECT_EQ(rank().Get<from_rank::Step>().report.step, 1);
  const RunReport run = SaveUntilDone();
  EXPECT_EQ(run.file, "part-00000.h5");
  EXPECT_FALSE(run.atom_digests.empty());
  // What it did is in the page.
  EXPECT_THAT(rank().page().Activities(),
              ::testing::Contains(::testing::Field(&Activity::phase, Activity::Phase::kLeaving)));
  // Done, it still answers.
  rank().Send(to_rank::Stop{.generation = 1});
  rank().Get<from_rank::Stopped>();
  rank().Send(to_rank::Leave{});
  EXPECT_EQ(rank().ExitCode(), 0);
}

TEST_F(RankMainTest, WithoutALeaseThereIsNoStep) {
  Load();
  Go(1, /*lease=*/false);
  rank().page().Renew(2, MonotonicNow() + kLong);  // Another generation's is none.
  EXPECT_TRUE(rank().Silent(300));
  rank().page().Renew(1, MonotonicNow() - absl::Seconds(1));  // Nor is one that is over.
  EXPECT_TRUE(rank().Silent(300));
  EXPECT_EQ(rank().page().Activities().back().phase, Activity::Phase::kLease);
  rank().page().Renew(1, MonotonicNow() + kLong);
  EXPECT_EQ(rank().Get<from_rank::Progress>().step, 1);
}

// In one process: a generation that leaves at a boundary, and one that goes on from its snapshots
// to the very end that an undisturbed run has.
TEST_F(RankMainTest, TheNextGenerationGoesOnFromSnapshots) {
  Load();
  Go();
  EXPECT_EQ(rank().Get<from_rank::Step>().report.step, 1);
  rank().Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  int64_t last = 0;
  for (;;) {
    const absl::StatusOr<from_rank::Frame> frame = rank().Next();
    ASSERT_OK(frame.status());
    if (const auto* progress = std::get_if<from_rank::Progress>(&*frame)) last = progress->step;
    EXPECT_FALSE(std::holds_alternative<from_rank::Frozen>(*frame)) << "a checkpoint";
    if (std::holds_alternative<from_rank::Stopped>(*frame)) break;
  }
  held_ = 1;
  held_step_ = last;
  const auto from_memory = [&](to_rank::Prepare* prepare) {
    prepare->held = to_rank::Prepare::Held{.generation = 1, .step = last};
  };
  Load(from_memory, 2);
  Go(2);
  EXPECT_EQ(rank().Get<from_rank::Progress>().step, last + 1);
  const RunReport run = SaveUntilDone(2);
  // Undisturbed, in the same process.
  held_ = 0;
  Load({}, 3);
  Go(3);
  EXPECT_EQ(SaveUntilDone(3).atom_digests, run.atom_digests);
}

TEST_F(RankMainTest, StopIsObeyedWhereverItIs) {
  Generation generation = 0;
  const auto stop = [&](bool at_boundary = false) {
    rank().Send(to_rank::Stop{.generation = generation, .at_boundary = at_boundary});
    EXPECT_EQ(rank().Get<from_rank::Stopped>().generation, generation);
  };
  rank().Send(Order(++generation));  // Waits for the table.
  rank().Get<from_rank::Present>();
  stop();
  stop();                  // Whoever does nothing has stopped.
  Load({}, ++generation);  // Waits for go.
  stop();
  Load({}, ++generation);  // Waits for its lease, at a boundary.
  Go(generation, /*lease=*/false);
  EXPECT_TRUE(rank().Silent(100));
  stop(/*at_boundary=*/true);
  Load({}, ++generation);  // Likewise.
  Go(generation, /*lease=*/false);
  stop();
  const auto often = [](to_rank::Prepare* prepare) { prepare->config = "saves often"; };
  for (const bool at_boundary : {true, false}) {
    Load(often, ++generation);  // Waits with the second state until the first is settled.
    Go(generation);
    for (bool frozen = false, waits = false; !frozen || !waits;) {
      const absl::StatusOr<from_rank::Frame> frame = rank().Next();
      ASSERT_OK(frame.status());
      frozen |= std::holds_alternative<from_rank::Frozen>(*frame);
      waits |= std::holds_alternative<from_rank::Waiting>(*frame);
    }
    stop(at_boundary);
  }
  Load({}, ++generation);  // Somewhere in a step.
  Go(generation);
  rank().Get<from_rank::Progress>();
  stop();
  rank().Send(to_rank::Leave{});
  EXPECT_EQ(rank().ExitCode(), 0);
}

TEST_F(RankMainTest, AStateIsFrozenOnceAndWrittenOnce) {
  Load();
  Go(1, /*lease=*/false);
  for (int i = 0; i < 3; ++i) rank().Send(to_rank::Freeze{.generation = 1, .after = -1});
  rank().page().Renew(1, MonotonicNow() + kLong);
  const auto frozen = rank().Get<from_rank::Frozen>();
  EXPECT_GT(frozen.step, 0);
  EXPECT_EQ(frozen.file, "part-00000.h5");
  rank().Send(to_rank::Freeze{.generation = 1, .after = -1});  // It is there.
  rank().Send(Write(frozen.step + 1));                         // Not what is frozen.
  for (int i = 0; i < 3; ++i) rank().Send(Write(frozen.step));
  const auto written = rank().Get<from_rank::Written>();
  EXPECT_EQ(written.error, "");
  EXPECT_EQ(written.attempt, 1);
  ASSERT_TRUE(written.trail.has_value());
  const std::string path = fmt::format("{}/run/ckpt/{}/part-00000.h5", directory_.path(),
                                       CheckpointName(frozen.step, 1, AttemptNonce(3, 1)));
  const auto before = std::filesystem::last_write_time(path);
  rank().Send(Write(frozen.step));
  EXPECT_EQ(rank().Get<from_rank::Written>(), written);
  EXPECT_EQ(std::filesystem::last_write_time(path), before);
  // Read back, rightly and wrongly, and asked again.
  const RunReport run = *ParseRun(*written.run);
  PartReport part = *JoinRuns({&run, 1});
  to_rank::Verify verify{.generation = 1,
                         .step = frozen.step,
                         .attempt = 1,
                         .term = 3,
                         .file = 0,
                         .part = PackPart(part)};
  rank().Send(verify);
  const auto voted = rank().Get<from_rank::Voted>();
  EXPECT_EQ(voted.error, "");
  rank().Send(verify);
  EXPECT_EQ(rank().Get<from_rank::Voted>(), voted);
  part.blocks[0].bytes[0] ^= 1;
  verify.part = PackPart(part);
  verify.file = 1;
  rank().Send(verify);
  EXPECT_THAT(rank().Get<from_rank::Voted>().error, HasSubstr("block 0"));
  // Another attempt has another name.
  rank().Send(Write(frozen.step, 2));
  EXPECT_EQ(rank().Get<from_rank::Written>().attempt, 2);
  EXPECT_TRUE(std::filesystem::exists(fmt::format(
      "{}/run/ckpt/{}", directory_.path(), CheckpointName(frozen.step, 1, AttemptNonce(3, 2)))));
  rank().Send(to_rank::Settle{.generation = 1, .step = frozen.step, .committed = true});
  rank().Send(Write(frozen.step, 2));  // Nothing is to be said about it any more.
  SaveUntilDone();
}

// With a state that it is asked to wait with it takes no step before that is settled, whatever
// comes of it; told to stop, it stops there.
TEST_F(RankMainTest, AStateIsWaitedWith) {
  Load();
  Go(1, /*lease=*/false);
  // The step of the state that it waits with; what it finished must not be beyond.
  const auto await_pause = [&]() -> int64_t {
    int64_t frozen = -1, waits = -1, finished = -1;
    while (frozen < 0 || waits != frozen) {
      const absl::StatusOr<from_rank::Frame> frame = rank().Next();
      if (!frame.ok()) {
        ADD_FAILURE() << frame.status();
        return -1;
      }
      if (const auto* f = std::get_if<from_rank::Frozen>(&*frame)) frozen = f->step;
      if (const auto* f = std::get_if<from_rank::Waiting>(&*frame)) waits = f->step;
      if (const auto* f = std::get_if<from_rank::Progress>(&*frame)) finished = f->step;
    }
    EXPECT_EQ(finished, frozen);
    return frozen;
  };
  rank().Send(to_rank::Freeze{.generation = 1, .after = -1, .pause = true});
  rank().page().Renew(1, MonotonicNow() + kLong);
  const int64_t first = await_pause();
  // It does not know that it is heard: that is no second state to wait with.
  rank().Send(to_rank::Freeze{.generation = 1, .after = first, .pause = true});
  EXPECT_TRUE(rank().Silent(200));
  rank().Send(to_rank::Settle{.generation = 1, .step = first, .committed = false});
  for (int64_t step = first + 1; step <= first + 3; ++step)
    EXPECT_EQ(rank().Get<from_rank::Progress>().step, step);
  rank().Send(to_rank::Freeze{.generation = 1, .after = first + 3, .pause = true});
  const int64_t second = await_pause();
  EXPECT_GT(second, first + 3);
  rank().Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  const absl::StatusOr<from_rank::Frame> frame = rank().Next();
  ASSERT_OK(frame.status());
  EXPECT_TRUE(std::holds_alternative<from_rank::Stopped>(*frame)) << ToJson(*frame);
}

TEST_F(RankMainTest, OneThatCannotWriteSaysSoAndTrainsOn) {
  std::filesystem::remove_all(directory_.path() + "/run/ckpt");
  std::ofstream(directory_.path() + "/run/ckpt") << "a file";
  Load();
  Go();
  const auto frozen = rank().Get<from_rank::Frozen>();
  rank().Send(Write(frozen.step));
  const auto written = rank().Get<from_rank::Written>();
  EXPECT_THAT(written.error, HasSubstr("ckpt"));
  EXPECT_FALSE(written.run.has_value());
  rank().Send(to_rank::Settle{.generation = 1, .step = frozen.step, .committed = false});
  EXPECT_TRUE(rank().Get<from_rank::Frozen>().step > frozen.step);
}

// ---- what goes wrong

TEST_F(RankMainTest, AConfigurationThatIsNone) {
  to_rank::Prepare prepare = Order(1);
  prepare.config = "[model";
  rank().Send(prepare);
  ExpectError(EvidenceKind::kTrainingFailed, "'[model' is no configuration");
}

TEST_F(RankMainTest, ARankBeyondTheLayout) {
  rank().Send(Order(1, 7));
  ExpectError(EvidenceKind::kTrainingFailed, "rank 7 of 1");
}

TEST_F(RankMainTest, DataThatIsNotThere) {
  std::filesystem::remove(directory_.path() + "/en.bin");
  Load();
  Go();
  ExpectError(EvidenceKind::kRankCrashed, "en.bin");
}

TEST_F(RankMainTest, ACheckpointThatIsNotThere) {
  to_rank::Prepare prepare = Order(1);
  prepare.checkpoint =
      to_rank::Prepare::Checkpoint{.path = directory_.path() + "/s9", .manifest = {}};
  rank().Send(prepare);
  const std::string address = rank().Get<from_rank::Present>().address;
  rank().Send(to_rank::Table{.generation = 1, .first = 0, .addresses = {address}});
  rank().Send(to_rank::Load{1});
  ExpectError(EvidenceKind::kBadCheckpoint, "/s9");
}

TEST_F(RankMainTest, SnapshotsThatNobodyHolds) {
  to_rank::Prepare prepare = Order(1);
  prepare.held = to_rank::Prepare::Held{.generation = 9, .step = 4};
  prepare.generation = 10;
  rank().Send(prepare);
  const std::string address = rank().Get<from_rank::Present>().address;
  rank().Send(to_rank::Table{.generation = 10, .first = 0, .addresses = {address}});
  rank().Send(to_rank::Load{10});
  const auto need = rank().Get<from_rank::Need>();
  ASSERT_EQ(need.needs.size(), 1u);
  EXPECT_EQ(need.needs[0].rank, 0);
  EXPECT_FALSE(need.needs[0].ranges.empty());
  rank().Send(to_rank::Fetched{.generation = 10, .paths = {}, .error = "node 3 is silent"});
  ExpectError(EvidenceKind::kBadSnapshot, "node 3 is silent");
}

TEST_F(RankMainTest, ATableWithAHole) {
  rank().Send(Order(1));
  rank().Get<from_rank::Present>();
  rank().Send(to_rank::Load{1});
  ExpectError(EvidenceKind::kRankCrashed, "without the address of rank 0");
}

TEST_F(RankMainTest, AnAgentThatGoes) {
  Load();
  rank().Goes();
  EXPECT_EQ(rank().ExitCode(), 1);
}

TEST_F(RankMainTest, AnAgentThatGoesWhileTraining) {
  Load();
  Go();
  rank().Get<from_rank::Progress>();
  rank().Goes();
  EXPECT_EQ(rank().ExitCode(), 1);
}

TEST_F(RankMainTest, AnAgentThatMakesNoSense) {
  rank().SendJson({{"type", "dance"}});
  ExpectError(EvidenceKind::kRankCrashed, "'dance'");
}

TEST_F(RankMainTest, AFieldThatIsMissing) {
  Json json = ToJson(to_rank::Frame(Order(1)));
  json.erase("run_id");
  rank().SendJson(json);
  ExpectError(EvidenceKind::kRankCrashed, "run_id");
}

// The reason may hold any bytes, and is told all the same.
TEST_F(RankMainTest, AReasonThatIsNotUtf8) {
  to_rank::Prepare prepare = Order(1);
  prepare.config = "bytes";
  rank().Send(prepare);
  ExpectError(EvidenceKind::kRankCrashed, "open /\xef\xbf\xbd: no");
}

TEST_F(RankMainTest, ATypeThatIsNoText) {
  rank().SendJson({{"type", 5}});
  ExpectError(EvidenceKind::kRankCrashed, "type");
}

TEST_F(RankMainTest, AFrameWithoutAType) {
  rank().SendJson({{"n", 1}});
  ExpectError(EvidenceKind::kRankCrashed, "type");
}

// What is beyond the layout is nobody's.
TEST_F(RankMainTest, ATableOfAnotherSize) {
  rank().Send(Order(1));
  const std::string address = rank().Get<from_rank::Present>().address;
  rank().Send(to_rank::Table{.generation = 1, .first = 0, .addresses = {address, address}});
  rank().Send(to_rank::Load{1});
  rank().Get<from_rank::Loaded>();
}

TEST_F(RankMainTest, TwoGenerationsAtOnce) {
  rank().Send(Order(1));
  rank().Get<from_rank::Present>();
  rank().Send(Order(2));
  ExpectError(EvidenceKind::kRankCrashed, "prepares generation 2 while 1 runs");
}

TEST(RankMain, APageThatIsNone) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  FrameSocket agent(pair[0]);
  EXPECT_EQ(RunRankMain(FrameSocket(pair[1]), ::dup(pair[0]), {}), 1);
  const absl::StatusOr<Json> error = agent.Receive();
  ASSERT_OK(error.status());
  EXPECT_THAT(error->dump(), HasSubstr("no rank's page"));
}

class RankMainPairTest : public RankMainTest {
 protected:
  RankMainPairTest() : RankMainTest(2) {}
};

TEST_F(RankMainPairTest, ALostPeerIsNoFaultOfOnesOwn) {
  Load();
  Go();
  rank(0).Get<from_rank::Progress>();
  rank(1).Goes();
  EXPECT_THAT(rank(0).Get<from_rank::BrokenOff>().reason, HasSubstr("1"));
  EXPECT_EQ(rank(1).ExitCode(), 1);
  rank(0).Send(to_rank::Stop{.generation = 1});
  rank(0).Get<from_rank::Stopped>();
  rank(0).Send(to_rank::Leave{});
  EXPECT_EQ(rank(0).ExitCode(), 0);
}

// Only rank 0 is told, all leave behind the same step; the other answers its stop when it comes.
TEST_F(RankMainPairTest, AllLeaveTogether) {
  Load();
  Go();
  rank(0).Get<from_rank::Progress>();
  rank(0).Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  rank(0).Get<from_rank::Stopped>();
  while (!rank(1).Silent(500)) {
  }
  EXPECT_EQ(rank(1).page().Activities().back().phase, Activity::Phase::kLeaving);
  rank(1).Send(to_rank::Stop{.generation = 1, .at_boundary = true});
  rank(1).Get<from_rank::Stopped>();
  EXPECT_EQ(rank(0).page().Activities().back().step, rank(1).page().Activities().back().step);
}

}  // namespace
}  // namespace perdure
