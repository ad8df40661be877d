#include "runtime/agent/phase_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace perdure {
namespace {

using Json = nlohmann::json;
using Phase = Coordinator::Phase;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr NodeId kMe = 2;

// A watch that is shown one sight after the other, a quarter of a second apart, which is exact.
class PhaseWatchTest : public testing::Test {
 protected:
  PhaseWatchTest() {
    sight_.layout = PlacedLayout{.generation = 1,
                                 .shape = {.tensor = 1, .pipeline = 1, .data = 3},
                                 .seats = {{.node = 0}, {.node = 1}, {.node = 1, .local_rank = 1}}};
  }

  // What it said of that.
  std::vector<std::string> See(Phase phase, const std::vector<PhaseFailure>& failures = {}) {
    Pass();
    sight_.phase = phase;
    watch_.See(now_, sight_, failures);
    return Taken();
  }
  void Pass() { now_ += absl::Milliseconds(250); }
  std::vector<std::string> Taken() {
    std::vector<std::string> names;
    for (const Json& event : events_) names.push_back(event["event"]);
    if (!events_.empty()) last_ = events_.back();
    events_.clear();
    return names;
  }
  // LEAD and a first generation, up to Go.
  void Begin() {
    See(Phase::kClaiming);
    See(Phase::kGathering);
    See(Phase::kStarting);
    Start(1, 0);
    sight_.from_beginning = sight_.from_checkpoint = true;
    See(Phase::kForming);
    Form();
  }
  void Start(Generation generation, StepIndex resumed) {
    sight_.generation = generation;
    sight_.ran = true;
    sight_.nodes = 2;
    sight_.ready = 0;
    sight_.resumed = sight_.finished = resumed;
    sight_.cause.reset();
    sight_.from_beginning = sight_.from_checkpoint = false;
  }
  std::vector<std::string> Form() {
    std::vector<std::string> names;
    const auto add = [&](const std::vector<std::string>& more) {
      names.insert(names.end(), more.begin(), more.end());
    };
    Pass();
    watch_.Made(now_, sight_.generation);
    Pass();
    watch_.Connected(now_, sight_.generation);
    sight_.ready = 2;
    add(See(Phase::kRunning));
    return names;
  }
  void Step(StepIndex step) {
    Pass();
    watch_.Finished(now_, sight_.generation, step);
  }
  static PhaseFailure KilledRank() {
    return {.node = 1,
            .local_rank = 1,
            .kind = EvidenceKind::kRankKilled,
            .number = 9,
            .noticed = "reported"};
  }

  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(1000);
  PhaseSight sight_;
  std::vector<Json> events_;
  Json last_;  // That was taken.
  PhaseWatch watch_{kMe, now_, [this](std::string_view event, const Json& fields) {
                      events_.push_back(fields);
                      events_.back()["event"] = event;
                    }};
};

TEST_F(PhaseWatchTest, AJobBegins) {
  EXPECT_THAT(See(Phase::kClaiming), IsEmpty());
  EXPECT_THAT(See(Phase::kGathering), ElementsAre("lead"));
  EXPECT_THAT(See(Phase::kStarting), IsEmpty());
  Start(1, 0);
  sight_.from_beginning = sight_.from_checkpoint = true;
  EXPECT_THAT(See(Phase::kForming), ElementsAre("generation_starting"));
  EXPECT_EQ(last_["from"], "beginning");
  EXPECT_EQ(last_["coordinator"], kMe);
  EXPECT_EQ(last_["clock"], 1001.0);
  EXPECT_EQ(last_["ranks"], 3);
  EXPECT_EQ(last_["nodes"], 2);
  EXPECT_EQ(last_["redone"], 0);
  EXPECT_EQ(last_["seconds"], 1.0);
  EXPECT_THAT(Form(), ElementsAre("ranks_made", "ranks_connected", "state_restored"));
  Step(0);
  EXPECT_THAT(Taken(), IsEmpty());
  EXPECT_TRUE(watch_.first_step().is_null());
  Step(1);
  EXPECT_THAT(Taken(), ElementsAre("first_step"));
  EXPECT_EQ(last_["why"], "start");
  EXPECT_EQ(last_["seconds"], 2.25);
  EXPECT_EQ(last_["choose"], 1.0);
  EXPECT_EQ(last_["spawn"], 0.25);
  EXPECT_EQ(last_["rendezvous"], 0.25);
  EXPECT_EQ(last_["load"], 0.25);
  EXPECT_EQ(last_["wait"], 0.0);
  EXPECT_EQ(last_["first"], 0.5);
  EXPECT_EQ(watch_.first_step()["step"], 1);
  Step(2);
  EXPECT_THAT(Taken(), IsEmpty());
}

TEST_F(PhaseWatchTest, ARankFailsAndAnotherGenerationSteps) {
  Begin();
  Step(7);
  Taken();
  sight_.cause = Failure{.kind = EvidenceKind::kRankKilled, .number = 9, .step = 0, .node = 1};
  // The evidence against the node says the same once more.
  EXPECT_THAT(See(Phase::kStopping,
                  {KilledRank(),
                   {.node = 1, .local_rank = {}, .kind = EvidenceKind::kRankKilled, .number = 9}}),
              ElementsAre("failure_detected", "generation_stopping"));
  EXPECT_EQ(last_["failure"], "rank-killed");
  EXPECT_TRUE(watch_.first_step().is_null());
  EXPECT_THAT(See(Phase::kStopping, {KilledRank()}), IsEmpty());
  EXPECT_THAT(See(Phase::kChoosing), ElementsAre("generation_stopped"));
  EXPECT_EQ(last_["seconds"], 0.5);
  See(Phase::kStarting);
  Start(2, 6);
  EXPECT_THAT(See(Phase::kForming), ElementsAre("generation_starting"));
  EXPECT_EQ(last_["from"], "memory");
  EXPECT_EQ(last_["step"], 6);
  EXPECT_EQ(last_["redone"], 1);  // Seven were finished.
  Form();
  Step(7);
  EXPECT_THAT(Taken(), ElementsAre("first_step"));
  EXPECT_EQ(last_["why"], "failure");
  EXPECT_EQ(last_["redone"], 1);
  EXPECT_EQ(last_["before"], 0.0);
  EXPECT_EQ(last_["stop"], 0.5);
  EXPECT_EQ(last_["choose"], 0.5);
  EXPECT_EQ(last_["seconds"], 2.0);
  // The next one is one of its own.
  Start(2, 6);
  sight_.finished = 7;
  EXPECT_THAT(See(Phase::kStopping), ElementsAre("generation_stopping"));
  EXPECT_TRUE(last_["failure"].is_null());
}

TEST_F(PhaseWatchTest, WhoFailedIsNamed) {
  Begin();
  Taken();
  Pass();
  sight_.phase = Phase::kStopping;
  watch_.See(now_, sight_, {KilledRank()});
  ASSERT_FALSE(events_.empty());
  EXPECT_EQ(events_[0]["event"], "failure_detected");
  EXPECT_EQ(events_[0]["node"], 1);
  EXPECT_EQ(events_[0]["rank"], 2);
  EXPECT_EQ(events_[0]["local_rank"], 1);
  EXPECT_EQ(events_[0]["kind"], "rank-killed");
  EXPECT_EQ(events_[0]["number"], 9);
  EXPECT_EQ(events_[0]["noticed"], "reported");
  EXPECT_EQ(events_[0]["member"], true);
}

// A spare's death stops nothing.
TEST_F(PhaseWatchTest, ANodeWithoutRanksIsNoReason) {
  Begin();
  Step(1);
  Taken();
  EXPECT_THAT(See(Phase::kRunning, {{.node = 5,
                                     .local_rank = {},
                                     .kind = EvidenceKind::kNodeLost,
                                     .number = 0,
                                     .noticed = "silent"}}),
              ElementsAre("failure_detected"));
  EXPECT_EQ(last_["member"], false);
  EXPECT_FALSE(watch_.first_step().is_null());
  See(Phase::kStopping);
  EXPECT_TRUE(last_["failure"].is_null());
  See(Phase::kStarting);
  Start(2, 1);
  See(Phase::kForming);
  Form();
  Step(2);
  Taken();
  EXPECT_EQ(last_["why"], "change");
}

// All of it in one step of the coordinator: nobody had to be waited for.
TEST_F(PhaseWatchTest, NothingIsLeftOutThatTookNoTime) {
  Begin();
  Step(1);
  Taken();
  EXPECT_THAT(See(Phase::kStarting, {KilledRank()}),
              ElementsAre("failure_detected", "generation_stopping", "generation_stopped"));
  EXPECT_EQ(last_["seconds"], 0.0);
  Start(2, 1);
  EXPECT_THAT(See(Phase::kStopping, {KilledRank()}),
              ElementsAre("generation_starting", "failure_detected", "generation_stopping"));
  EXPECT_THAT(See(Phase::kStarting), ElementsAre("generation_stopped"));
  Start(3, 1);
  EXPECT_THAT(See(Phase::kForming), ElementsAre("generation_starting"));
  Form();
  Step(2);
  EXPECT_THAT(Taken(), ElementsAre("first_step"));
  EXPECT_EQ(last_["generation"], 3);
  EXPECT_EQ(last_["before"], 0.25);  // Of the generation that never stepped.
  double parts = 0;
  for (const char* part :
       {"before", "stop", "choose", "spawn", "rendezvous", "load", "wait", "first"})
    parts += last_[part].get<double>();
  EXPECT_EQ(parts, last_["seconds"].get<double>());
}

TEST_F(PhaseWatchTest, AGenerationRunsOnUnderANewCoordinator) {
  Start(4, 10);
  See(Phase::kClaiming);
  EXPECT_THAT(See(Phase::kGathering), ElementsAre("lead"));
  sight_.ready = 2;
  sight_.finished = 12;
  EXPECT_THAT(See(Phase::kRunning), ElementsAre("generation_taken_over"));
  EXPECT_EQ(last_["step"], 12);
  Step(13);
  EXPECT_THAT(Taken(), IsEmpty());
  EXPECT_EQ(watch_.first_step()["generation"], 4);
  EXPECT_TRUE(watch_.first_step()["seconds"].is_null());
  EXPECT_EQ(watch_.first_step()["not_known"], "the coordinator that saw it begin is gone");
  See(Phase::kStopping);
  EXPECT_TRUE(watch_.first_step().is_null()) << "the next one is its own";
}

TEST_F(PhaseWatchTest, OrANodeOfItIsMissing) {
  Start(4, 10);
  sight_.nodes = 0;
  See(Phase::kClaiming);
  See(Phase::kGathering);
  sight_.cause = Failure{.kind = EvidenceKind::kNodeLost, .number = 0, .step = 0, .node = 1};
  sight_.phase = Phase::kStopping;
  watch_.See(now_, sight_, FailuresIn(Coordinator::Tick{}, {}, sight_));
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[0]["kind"], "node-lost");
  EXPECT_EQ(events_[0]["node"], 1);
  EXPECT_EQ(events_[0]["noticed"], "gathered");
  EXPECT_EQ(events_[1]["failure"], "node-lost");
}

TEST_F(PhaseWatchTest, OrItIsFoundBroken) {
  Start(4, 10);
  sight_.nodes = 0;
  See(Phase::kClaiming);
  See(Phase::kGathering);
  sight_.finished = 12;
  EXPECT_THAT(See(Phase::kStopping), ElementsAre("failure_detected", "generation_stopping"));
  See(Phase::kStarting);
  Start(5, 12);
  See(Phase::kForming);
  Form();
  Step(13);
  Taken();
  EXPECT_EQ(last_["why"], "failure");
  EXPECT_EQ(last_["redone"], 0);
}

// It waits for leases: the state is there before anybody may step.
TEST_F(PhaseWatchTest, WaitingForLeasesIsAPartOfItsOwn) {
  See(Phase::kClaiming);
  See(Phase::kGathering);
  See(Phase::kStarting);
  Start(1, 0);
  See(Phase::kForming);
  watch_.Made(now_, 1);
  sight_.ready = 2;
  EXPECT_THAT(See(Phase::kForming), ElementsAre("ranks_made", "state_restored"));
  See(Phase::kForming);
  See(Phase::kRunning);
  sight_.finished = 1;
  EXPECT_THAT(See(Phase::kRunning), ElementsAre("first_step"));  // By a report.
  EXPECT_EQ(last_["wait"], 0.5);
  EXPECT_EQ(last_["load"], 0.25);
  EXPECT_TRUE(last_["rendezvous"].is_null());  // No rank of this node.
}

TEST_F(PhaseWatchTest, OtherGenerationsAreNobodys) {
  Begin();
  Taken();
  watch_.Made(now_, 2);
  watch_.Connected(now_, 2);
  watch_.Finished(now_, 2, 5);
  EXPECT_THAT(Taken(), IsEmpty());
}

// ---- what failures are read from

TEST(FailuresIn, AReportTellsWhich) {
  const PhaseSight sight{.term = 3, .generation = 2};
  msg::Report report{
      .term = 3, .generation = 2, .failed_local_rank = 1, .failure = EvidenceKind::kHung};
  const auto in = [&](const msg::Report& r) {
    return FailuresIn(Coordinator::Received{.from = {.job = 1, .node = 4}, .message = r}, {},
                      sight);
  };
  const std::vector<PhaseFailure> failures = in(report);
  ASSERT_EQ(failures.size(), 1U);
  EXPECT_EQ(failures[0].node, 4U);
  EXPECT_EQ(failures[0].local_rank, 1);
  EXPECT_EQ(failures[0].noticed, "reported");
  report.generation = 1;  // It is over.
  EXPECT_TRUE(in(report).empty());
  report.generation = 2;
  report.term = 2;
  EXPECT_TRUE(in(report).empty());
}

TEST(FailuresIn, WhatTheCoordinatorFoundOut) {
  PhaseSight sight;
  const Coordinator::Effects effects = {
      Coordinator::Evidence{.node = 1, .kind = EvidenceKind::kNodeLost, .number = 0},
      Coordinator::Evidence{.node = 2, .kind = EvidenceKind::kHung, .number = 0},
      Coordinator::Evidence{.node = 3, .kind = EvidenceKind::kUnkillable, .number = 0},
      Coordinator::Evidence{.node = 5, .kind = EvidenceKind::kSlow, .number = 300, .rank = 7}};
  std::vector<PhaseFailure> failures = FailuresIn(Coordinator::Tick{}, effects, sight);
  ASSERT_EQ(failures.size(), 3U);
  EXPECT_EQ(failures[0].noticed, "silent");
  EXPECT_EQ(failures[1].noticed, "stalled");
  EXPECT_EQ(failures[2].noticed, "late");
  // It is there again, without its ranks.
  sight.cause = Failure{.kind = EvidenceKind::kNodeLost, .number = 0, .step = 0, .node = 4};
  failures = FailuresIn(
      Coordinator::Received{.from = {.job = 1, .node = 4}, .message = msg::Report{}}, {}, sight);
  ASSERT_EQ(failures.size(), 1U);
  EXPECT_EQ(failures[0].noticed, "returned");
  // Who is slow has failed when the generation ends for it.
  sight.cause = Failure{.kind = EvidenceKind::kSlow, .number = 300, .step = 0, .node = 5};
  failures = FailuresIn(Coordinator::Tick{}, {}, sight);
  ASSERT_EQ(failures.size(), 1U);
  EXPECT_EQ(failures[0].kind, EvidenceKind::kSlow);
  EXPECT_EQ(failures[0].noticed, "compared");
}

}  // namespace
}  // namespace perdure
