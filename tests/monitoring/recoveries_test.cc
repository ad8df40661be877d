#include "monitoring/recoveries.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// An event of a coordinator on node `coordinator`, `milliseconds` after the first; wall clocks of
// nodes are an hour apart.
std::string Line(const std::string& event, int milliseconds, uint64_t generation,
                 const std::string& fields = "", int coordinator = 0) {
  return fmt::format(
      "{{\"time\":\"2026-11-21T1{}:00:{:02}.{:03}Z\",\"event\":\"{}\",\"clock\":{},\"coordinator\":"
      "{},\"generation\":{}{}}}",
      coordinator, milliseconds / 1000, milliseconds % 1000, event, 100 + milliseconds / 1000.0,
      coordinator, generation, fields);
}
std::string Step(int64_t step, uint64_t generation, const std::string& bits,
                 const std::string& event = "step") {
  return fmt::format(
      R"({{"time":"2026-11-21T10:00:00.000Z","event":"{}","step":{},"generation":{},"loss_bits":"{}"}})",
      event, step, generation, bits);
}

JournalStory Story(const std::vector<std::string>& lines) {
  JournalStory story;
  for (const std::string& line : lines) (void)story.Read(line);
  return story;
}

const std::string kBits = "4015a228d66b3d53", kOther = "4015a228d66b3d54";

std::vector<std::string> AKilledRank() {
  return {
      Step(46, 1, kBits),
      Line(
          "failure_detected", 0, 1,
          R"(,"node":1,"member":true,"rank":3,"kind":"rank-killed","noticed":"reported","step":46)"),
      Line("generation_stopping", 0, 1),
      Line("generation_stopped", 30, 1),
      Line("generation_starting", 37, 2, R"(,"from":"memory","step":46,"redone":0)"),
      Line("ranks_made", 340, 2),
      Line("ranks_connected", 360, 2),
      Line("state_restored", 367, 2, R"(,"step":46)"),
      Line("first_step", 830, 2, R"(,"step":47)"),
  };
}

TEST(JournalStory, SlowRanksAreTheirOwnStory) {
  JournalStory story = Story({
      Line("evidence", 5, 1, R"(,"node":3,"rank":7,"kind":"slow","number":296)"),
      Line("evidence", 6, 1, R"(,"node":3,"kind":"hung","number":0)"),
      Line("evidence", 7, 1, R"(,"node":-3,"kind":"slow","number":296)"),
      Line("evidence", 8, 1, R"(,"node":3,"kind":"slow","number":"much")"),
      R"({"event":"evidence","generation":1,"node":3,"kind":"slow","number":296})",
  });
  ASSERT_EQ(story.slow().size(), 1U);
  EXPECT_EQ(story.slow()[0].node, 3);
  EXPECT_EQ(story.slow()[0].rank, 7);
  EXPECT_EQ(story.slow()[0].percent, 296);
  EXPECT_TRUE(story.recoveries().empty()) << "nothing failed";
  story.Forget();
  EXPECT_TRUE(story.slow().empty());
}

TEST(JournalStory, ARecoveryIsToldByItsParts) {
  const JournalStory story = Story(AKilledRank());
  ASSERT_EQ(story.recoveries().size(), 1U);
  const Recovery& recovery = story.recoveries()[0];
  EXPECT_EQ(recovery.generation, 1U);
  EXPECT_EQ(recovery.next, 2U);
  EXPECT_EQ(recovery.kind, "rank-killed");
  EXPECT_EQ(recovery.noticed, "reported");
  EXPECT_EQ(recovery.node, 1);
  EXPECT_EQ(recovery.rank, 3);
  EXPECT_EQ(recovery.from, "memory");
  EXPECT_EQ(recovery.step, 46);
  EXPECT_EQ(recovery.resumed, 46);
  EXPECT_EQ(recovery.redone, 0);
  EXPECT_EQ(recovery.generations, 1);
  ASSERT_TRUE(recovery.formed && recovery.restored && recovery.stepped);
  EXPECT_NEAR(SecondsBetween(recovery.detected, *recovery.formed, false), 0.36, 1e-6);
  EXPECT_NEAR(SecondsBetween(*recovery.formed, *recovery.restored, false), 0.007, 1e-6);
  EXPECT_NEAR(SecondsBetween(*recovery.restored, *recovery.stepped, false), 0.463, 1e-6);
  EXPECT_TRUE(story.stepped());
  EXPECT_EQ(story.generation(), 2U);
}

TEST(JournalStory, ItIsNotOverBeforeAStep) {
  std::vector<std::string> lines = AKilledRank();
  lines.pop_back();
  const JournalStory story = Story(lines);
  ASSERT_EQ(story.recoveries().size(), 1U);
  EXPECT_FALSE(story.recoveries()[0].stepped);
  EXPECT_FALSE(story.stepped());
}

// A first step of what had failed is none.
TEST(JournalStory, OnlyTheNextGenerationEndsIt) {
  std::vector<std::string> lines = AKilledRank();
  lines.back() = Line("first_step", 830, 1, R"(,"step":47)");
  EXPECT_FALSE(Story(lines).recoveries()[0].stepped);
}

TEST(JournalStory, GenerationsThatNeverStepBelongToIt) {
  std::vector<std::string> lines = AKilledRank();
  lines.pop_back();
  lines.push_back(Line("failure_detected", 400, 2, R"(,"node":2,"kind":"node-lost","step":46)"));
  lines.push_back(
      Line("generation_starting", 500, 3, R"(,"from":"checkpoint","step":40,"redone":6)"));
  EXPECT_FALSE(Story(lines).recoveries()[0].formed);  // Not of this one.
  lines.push_back(Line("ranks_made", 600, 3));
  lines.push_back(Line("state_restored", 700, 3));
  lines.push_back(Line("first_step", 900, 3));
  const JournalStory story = Story(lines);
  ASSERT_EQ(story.recoveries().size(), 1U);
  EXPECT_EQ(story.recoveries()[0].kind, "rank-killed");
  EXPECT_EQ(story.recoveries()[0].next, 3U);
  EXPECT_EQ(story.recoveries()[0].generations, 2);
  EXPECT_EQ(story.recoveries()[0].redone, 6);
  EXPECT_NEAR(SecondsBetween(story.recoveries()[0].detected, *story.recoveries()[0].formed, false),
              0.6, 1e-6);
}

TEST(JournalStory, StepsThatWereToldAndComeAgainAreRedone) {
  std::vector<std::string> lines = AKilledRank();
  lines.insert(lines.begin() + 1, Step(47, 1, kOther));
  lines.push_back(Step(47, 2, kOther));
  JournalStory story = Story(lines);
  EXPECT_EQ(story.recoveries()[0].redone, 1);
  EXPECT_EQ(story.told_twice(), 1);
  EXPECT_TRUE(story.disagreements().empty());
  EXPECT_EQ(story.step(), 47);
  EXPECT_TRUE(story.Told(2, 47));
  EXPECT_FALSE(story.Told(2, 48));
  EXPECT_FALSE(story.Told(3, 47));
  story.Forget();
  EXPECT_EQ(story.told_twice(), 0);
  EXPECT_TRUE(story.recoveries().empty());
  EXPECT_TRUE(story.Read(Step(47, 3, kBits, "step_told_again")));
  ASSERT_EQ(story.disagreements().size(), 1U);
  EXPECT_EQ(story.disagreements()[0].step, 47);
  EXPECT_EQ(story.disagreements()[0].loss_bits, kOther);
  EXPECT_EQ(story.disagreements()[0].other_loss_bits, kBits);
  EXPECT_EQ(story.disagreements()[0].other_generation, 3U);
}

TEST(JournalStory, StepsOfOtherSamplesAreNotCompared) {
  JournalStory story =
      Story({Step(46, 1, kBits), Step(47, 1, kBits),
             Line("rolled_back", 5, 2, R"(,"step":48,"first_step":47,"samples":20)"),
             Step(47, 1, kBits), Step(46, 2, kBits), Step(47, 2, kOther)});
  EXPECT_EQ(story.told_twice(), 1);
  EXPECT_TRUE(story.disagreements().empty());
  // What comes of the new line is.
  EXPECT_TRUE(story.Read(Step(47, 3, kBits)));
  EXPECT_EQ(story.disagreements().size(), 1U);
}

TEST(JournalStory, AGenerationThatStopsGoesOnNoMore) {
  JournalStory story = Story(AKilledRank());
  EXPECT_TRUE(story.stepped());
  EXPECT_TRUE(story.Read(Line("generation_stopping", 900, 1)));  // It is over.
  EXPECT_TRUE(story.stepped());
  EXPECT_TRUE(story.Read(Line("generation_stopping", 900, 2)));
  EXPECT_FALSE(story.stepped());
}

// What a job before this one had done further is not what this one does again.
TEST(JournalStory, AnotherJobsStepsAreNotRedone) {
  JournalStory story = Story(
      {Step(99, 1, kBits), Line("generation_starting", 0, 2, R"(,"from":"checkpoint","step":40)"),
       Line("first_step", 10, 2)});
  for (const std::string& line : {Line("failure_detected", 20, 2, R"(,"node":1,"step":41)"),
                                  Line("generation_starting", 30, 3, R"(,"step":41)")})
    EXPECT_TRUE(story.Read(line));
  EXPECT_EQ(story.recoveries()[0].redone, 0);
}

TEST(JournalStory, BrokenConnectionsAreNotTheCause) {
  std::vector<std::string> lines = AKilledRank();
  lines.insert(lines.begin() + 1, Line("failure_detected", 0, 1,
                                       R"(,"node":0,"kind":"network-error","noticed":"reported")"));
  const JournalStory story = Story(lines);
  ASSERT_EQ(story.recoveries().size(), 1U);
  EXPECT_EQ(story.recoveries()[0].kind, "rank-killed");
  EXPECT_EQ(story.recoveries()[0].node, 1);
}

TEST(JournalStory, ANodeWithoutRanksIsNotMissed) {
  const JournalStory story =
      Story({Line("failure_detected", 0, 1, R"(,"node":4,"member":false,"kind":"node-lost")")});
  EXPECT_TRUE(story.recoveries().empty());
}

TEST(JournalStory, NobodyKnowsWhatFailedUnderTheOldCoordinator) {
  const JournalStory story = Story({Line("failure_detected", 0, 1, R"(,"node":null,"kind":null)")});
  ASSERT_EQ(story.recoveries().size(), 1U);
  EXPECT_EQ(story.recoveries()[0].kind, "");
  EXPECT_EQ(story.recoveries()[0].node, -1);
}

TEST(JournalStory, TakeOversAndEnds) {
  const JournalStory story =
      Story({Line("generation_taken_over", 0, 4, R"(,"step":9)"), R"({"event":"end"})"});
  EXPECT_TRUE(story.taken_over());
  EXPECT_TRUE(story.stepped());
  EXPECT_TRUE(story.ended());
  EXPECT_EQ(story.generation(), 4U);
}

// Clocks of two machines have nothing in common.
TEST(JournalStory, TimesOfTwoCoordinatorsAreTheWalls) {
  const JournalStory story = Story({Line("failure_detected", 0, 1, R"(,"node":1)", 0),
                                    Line("generation_starting", 500, 2, R"(,"step":1)", 1),
                                    Line("ranks_made", 800, 2, "", 1)});
  const Recovery& recovery = story.recoveries()[0];
  EXPECT_NEAR(SecondsBetween(recovery.detected, *recovery.formed, false), 3600.8, 1e-3);
  EXPECT_NEAR(SecondsBetween(recovery.detected, *recovery.formed, true), 0.8, 1e-6);
}

TEST(JournalStory, LinesThatMakeNoSenseSayNothing) {
  const std::string deep(20000, '[');
  const std::vector<std::string> hostile = {
      "",
      "{",
      "null",
      "[]",
      "7",
      deep,
      "{\"event\":7}",
      R"({"event":"step"})",
      R"({"event":"step","generation":1,"step":1,"loss_bits":"xx"})",
      R"({"event":"step","generation":1,"step":-1,"loss_bits":"4015a228d66b3d53"})",
      R"({"event":"step","generation":1,"step":1.5,"loss_bits":"4015a228d66b3d53"})",
      R"({"event":"step","generation":1,"step":18446744073709551615,"loss_bits":"4015a228d66b3d53"})",
      R"({"event":"step","generation":"1","step":1,"loss_bits":"4015a228d66b3d53"})",
      R"({"event":"step","generation":0,"step":1,"loss_bits":"4015a228d66b3d53"})",
      R"({"event":"failure_detected","generation":1})",
      R"({"event":"failure_detected","generation":1,"clock":1,"coordinator":0,"time":"yesterday"})",
      R"({"event":"failure_detected","generation":1,"clock":"1","coordinator":0,"time":"2026-11-21T10:00:00.000Z"})",
      R"({"event":"failure_detected","generation":1,"clock":1e300,"coordinator":0,"time":"2026-11-21T10:00:00.000Z"})",
      R"({"event":"failure_detected","generation":1,"clock":-1,"coordinator":0,"time":"2026-11-21T10:00:00.000Z"})",
      R"({"event":"failure_detected","generation":1,"clock":1,"coordinator":-2,"time":"2026-11-21T10:00:00.000Z"})",
      std::string("{\"event\":\"end\",\"x\":\"") + std::string(JournalStory::kLineBytesMax, 'x') +
          "\"}",
      std::string("{\"event\":\"end\0\"}", 16),
      "{\"event\":\"\xff\xfe\"}",
  };
  JournalStory story;
  for (const std::string& line : hostile) EXPECT_FALSE(story.Read(line)) << line.substr(0, 200);
  EXPECT_TRUE(story.recoveries().empty());
  EXPECT_FALSE(story.ended());
}

// An older generation's events come late: nothing goes back.
TEST(JournalStory, GenerationsOnlyRise) {
  JournalStory story = Story(AKilledRank());
  EXPECT_FALSE(story.Read(Line("generation_starting", 900, 1, R"(,"step":1)")));
  EXPECT_EQ(story.generation(), 2U);
  EXPECT_TRUE(story.stepped());
}

// Whatever becomes of the bytes of good lines, nothing worse than a wrong story.
TEST(JournalStory, FlippedBytesAreSurvived) {
  const std::vector<std::string> lines = AKilledRank();
  for (uint64_t round = 0; round < 3000; ++round) {
    JournalStory story;
    for (size_t i = 0; i < lines.size(); ++i) {
      std::string line = lines[i];
      const auto random = RandomBits(7, RandomPurpose::kTest, round, i);
      line[random[0] % line.size()] = static_cast<char>(random[1]);
      if (random[2] % 4 == 0) line.resize(random[3] % line.size());
      (void)story.Read(line);
    }
    EXPECT_LE(story.recoveries().size(), 1U);
  }
}

}  // namespace
}  // namespace perdure
