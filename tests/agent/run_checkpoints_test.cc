// What the coordinator's agent does for checkpoints, save by save and lead by lead.
#include "runtime/agent/run_checkpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "ckpt/view.h"
#include "runtime/base/status.h"
#include "tests/agent/checkpoint_desk.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// ---- saves

TEST_F(RunCheckpointsTest, Commits) {
  Begin();
  ASSERT_OK(desk_.Save(12));
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 12", "read 12"));
  const auto entries = desk_.Entries();
  ASSERT_THAT(entries, SizeIs(1));
  EXPECT_EQ(entries[0].commit.checkpoint, desk_.Name(12));
  EXPECT_EQ(entries[0].commit.files, 2);
  const auto manifest = ReadManifest(entries[0].path, &entries[0].commit.manifest);
  ASSERT_OK(manifest.status());
  EXPECT_OK(VerifyCheckpoint(entries[0].path, *manifest));
  EXPECT_EQ(manifest->step, 12);
  EXPECT_EQ(manifest->samples, 40 + 2 * 2);
  EXPECT_EQ(manifest->tokens, 40 * 8 + 2 * 2 * 16);
  EXPECT_EQ(manifest->phase, 1);
  EXPECT_EQ(manifest->phase_name, "second");
  EXPECT_EQ(manifest->generation, 1u);
  EXPECT_EQ(manifest->run_id, desk_.Log().run_id());
  EXPECT_EQ(manifest->trail.sample_chain, DigestOf("samples of 12"));
  EXPECT_EQ(manifest->trail.recent, (std::vector<StepNumbers>{{2.5, 0.75}}));
  EXPECT_EQ(manifest->config, "[run]\nname = \"desk\"\ndata = 2\n");
  EXPECT_EQ(manifest->layout, "tensor 1 x pipeline 1 x data 2, zero 1");
  EXPECT_EQ(manifest->certificate, entries[0].commit.certificate);
  EXPECT_TRUE(fs::exists(entries[0].path + "/" + kViewFile));
  const auto events = desk_.Events("checkpoint");
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0]["step"], 12);
  EXPECT_EQ(events[0]["generation"], 1);
  EXPECT_EQ(events[0]["certificate"], manifest->certificate.Hex());
  EXPECT_EQ(events[0]["write_seconds"], 1.5);
  EXPECT_THAT(desk_.warnings, IsEmpty());
}

TEST_F(RunCheckpointsTest, AnotherNodeReads) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  const auto joined = desk_.Join(2, desk_.Write(2));
  ASSERT_TRUE(joined.has_value() && joined->ok);
  EXPECT_THAT(joined->readers, ElementsAre(1, 0));
  EXPECT_THAT(joined->parts, SizeIs(2));
  EXPECT_EQ(joined->generation, 1u);
  EXPECT_EQ(joined->step, 2);
  EXPECT_EQ(joined->attempt, 1);
  EXPECT_OK(desk_.Verify(2, *joined));
}

// The layout is that of the generation, whatever was before.
TEST_F(RunCheckpointsTest, EachGenerationHasItsLayout) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  for (const int32_t data : {1, 3}) {
    desk_.Start("", data);
    desk_.Present();
    ASSERT_OK(desk_.Save(1 + data));
    const auto entries = desk_.Entries();
    const auto manifest = ReadManifest(entries[0].path, &entries[0].commit.manifest);
    ASSERT_OK(manifest.status());
    EXPECT_EQ(manifest->parts.size(), static_cast<size_t>(data));
    EXPECT_THAT(manifest->layout, HasSubstr(fmt::format("data {}", data)));
  }
}

TEST_F(RunCheckpointsTest, WhatDoesNotFitIsNotJoined) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  const std::vector<NodeRuns> good = desk_.Write(2);
  const auto refused = [&](const std::vector<NodeRuns>& members, const std::string& why,
                           StepIndex step = 2) {
    desk_.warnings.clear();
    const auto joined = desk_.Join(step, members);
    ASSERT_TRUE(joined.has_value());
    EXPECT_FALSE(joined->ok) << why;
    EXPECT_EQ(joined->step, step);
    EXPECT_TRUE(desk_.Warned(why)) << testing::PrintToString(desk_.warnings);
    EXPECT_TRUE(absl::IsFailedPrecondition(desk_.Commit(2).status));
  };
  auto members = good;
  members[1].runs.clear();
  refused(members, "part-00001.h5: nobody wrote it");
  members = good;
  members[0].runs[0].atoms.back() = 0;
  refused(members, "other atoms");
  members = good;
  members[0].runs[0].block_digests.pop_back();
  members[0].runs[0].blocks.pop_back();
  refused(members, "nobody wrote block");
  members = good;
  members.pop_back();
  refused(members, "part-00001.h5: nobody wrote it");
  members = good;
  members[0].trail.reset();
  refused(members, "no member has rank 0");
  members = good;
  members[1].step = 3;
  refused(members, "member 1 wrote");
  members = good;
  for (NodeRuns& member : members) member.step = 99;
  refused(members, "no step 99", 99);
  refused({}, "no member wrote anything");
  // Bytes that are no report.
  for (const std::string& bad : {std::string(), std::string("junk"), std::string(5000, '\xff')}) {
    desk_.warnings.clear();
    const auto joined = desk_.Join(2, std::vector<std::string>{PackNodeRuns(good[0]), bad});
    ASSERT_TRUE(joined.has_value());
    EXPECT_FALSE(joined->ok);
    EXPECT_TRUE(desk_.Warned("member 1: what a node wrote"));
  }
  // And all is well with what is.
  const auto joined = desk_.Join(2, good);
  ASSERT_TRUE(joined.has_value());
  EXPECT_TRUE(joined->ok);
  EXPECT_OK(desk_.Commit(2).status);
}

// A digest of another state is found by whoever reads the file, and only then.
TEST_F(RunCheckpointsTest, WrongDigestIsForTheReader) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  auto members = desk_.Write(2);
  members[1].runs[0].atom_digests[0] = DigestOf("other");
  const auto joined = desk_.Join(2, members);
  ASSERT_TRUE(joined.has_value() && joined->ok);
  EXPECT_TRUE(absl::IsDataLoss(desk_.Verify(2, *joined)));
}

// The second attempt has another name, and is what counts.
TEST_F(RunCheckpointsTest, SecondAttempt) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2))->ok);
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2, 2), 2)->ok);
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.Commit(2, 1).status));
  EXPECT_OK(desk_.Commit(2, 2).status);
  EXPECT_EQ(desk_.Entries()[0].commit.checkpoint, desk_.Name(2, 2));
  EXPECT_NE(desk_.Name(2, 2), desk_.Name(2, 1));
}

// The record may be tried again after its manifest was written: it says the same.
TEST_F(RunCheckpointsTest, PublishingTwiceSaysTheSame) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2))->ok);
  LogEntry commit;
  commit.generation = 1;
  commit.step = 2;
  const auto first = desk_.store().Publish(commit, desk_.term, 1);
  ASSERT_OK(first.status());
  const std::string text = Slurp(desk_.PathOf(2) + "/manifest.json");
  const auto again = desk_.store().Publish(commit, desk_.term, 1);
  ASSERT_OK(again.status());
  EXPECT_EQ(*again, *first);
  EXPECT_EQ(Slurp(desk_.PathOf(2) + "/manifest.json"), text);
  EXPECT_EQ(DigestOf(text), first->manifest);
  // Of another term, generation, step, attempt there is nothing to publish.
  EXPECT_TRUE(
      absl::IsFailedPrecondition(desk_.store().Publish(commit, desk_.term + 1, 1).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.store().Publish(commit, desk_.term, 2).status()));
  ++commit.step;
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.store().Publish(commit, desk_.term, 1).status()));
  --commit.step;
  ++commit.generation;
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.store().Publish(commit, desk_.term, 1).status()));
}

// A manifest that is there already is another's, or of a try that failed: the attempt is over.
TEST_F(RunCheckpointsTest, AManifestIsWrittenOnce) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2))->ok);
  Spill(desk_.PathOf(2) + "/manifest.json", "torn");
  for (int i = 0; i < 2; ++i) {
    const ControlLog::Filled filled = desk_.Commit(2);
    EXPECT_TRUE(filled.no_body);
    EXPECT_TRUE(absl::IsAlreadyExists(filled.status)) << filled.status;
  }
  EXPECT_EQ(Slurp(desk_.PathOf(2) + "/manifest.json"), "torn");
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2, 2), 2)->ok);
  EXPECT_OK(desk_.Commit(2, 2).status);
}

TEST_F(RunCheckpointsTest, TakenSlotCommitsNothing) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2))->ok);
  // Somebody else's LEAD comes first, then the coordinator resigns.
  RunLog other = desk_.Log();
  ASSERT_OK(other.Append(RecordType::kLead, 1, SerializeLead({.address = "10.0.0.9:1"})));
  EXPECT_THAT(desk_.Story(), IsEmpty());
  desk_.LoseLead();
  desk_.store().Do(Coordinator::SaveOver{.generation = 1, .step = 2, .committed = true});
  desk_.Settle();
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.Commit(2).status));
  EXPECT_THAT(desk_.Story(), IsEmpty());
  EXPECT_THAT(desk_.Events("checkpoint"), IsEmpty());
}

TEST_F(RunCheckpointsTest, NoRoom) {
  RunConfig huge = DeskConfig();
  huge.model.vocab = int64_t{1} << 42;
  huge.numerics.atom_elements = int64_t{1} << 50;
  CheckpointDesk desk(directory_.Make("huge"), huge);
  desk.Lead();
  desk.Start();
  desk.Present();
  EXPECT_FALSE(desk.Measure(2));
  desk.store().Do(Coordinator::SaveOver{.generation = 1, .step = 2, .committed = false});
  EXPECT_TRUE(desk.Warned("warning: no checkpoint of step 2: "));
  EXPECT_TRUE(desk.Warned("lower checkpoint.keep_last"));
  // It was known before the first step.
  EXPECT_THAT(desk.Events("little_room"), SizeIs(1));
  EXPECT_TRUE(desk.Warned("keeping 2 checkpoints and writing one (3 more)"));
  // A run that goes back for bad steps may need an older one.
  huge.integrity.bad_step = "rollback";
  CheckpointDesk goes_back(directory_.Make("goes_back"), huge);
  goes_back.Lead();
  goes_back.Start();
  goes_back.Present();
  EXPECT_FALSE(goes_back.Measure(2));
  EXPECT_TRUE(goes_back.Warned("keeping 3 checkpoints and writing one (4 more)"));
}

TEST_F(RunCheckpointsTest, GenerationThatTheLogDoesNotKnow) {
  Begin();
  desk_.generation = 9;
  EXPECT_FALSE(desk_.Measure(2));
  desk_.store().Do(Coordinator::SaveOver{.generation = 9, .step = 2, .committed = false});
  EXPECT_TRUE(desk_.Warned("no checkpoint of step 2: "));
  EXPECT_TRUE(desk_.Warned("no START of generation 9"));
}

// ---- leads

TEST_F(RunCheckpointsTest, AnotherLeadForgetsTheSave) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  ASSERT_TRUE(desk_.Join(2, desk_.Write(2))->ok);
  const Slot before = desk_.term;
  desk_.LoseLead();
  desk_.Lead();
  LogEntry commit;
  commit.generation = 1;
  commit.step = 2;
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.store().Publish(commit, before, 1).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(desk_.Commit(2).status));
  // The same state of the same generation, in another attempt.
  ASSERT_OK(desk_.Save(2));
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 2", "read 2"));
  EXPECT_THAT(There(), ElementsAre(2, 2));
}

// What was asked for under another lead is not answered, and its records are not made.
TEST_F(RunCheckpointsTest, AnswersForAnotherLeadAreDropped) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  ASSERT_OK(desk_.Save(2, /*settles=*/false));
  ASSERT_FALSE(desk_.tags.empty());
  const std::vector<uint64_t> tags(desk_.tags.begin(), desk_.tags.end());
  int answers = 0;
  desk_.store().Do(Coordinator::MeasureRoom{.generation = 1, .step = 3},
                   [&](const Coordinator::Measured&) { ++answers; });
  desk_.store().Do(Coordinator::JoinParts{.generation = 1, .step = 3, .attempt = 1, .packed = {}},
                   [&](const Coordinator::PartsJoined&) { ++answers; });
  desk_.store().Do(Coordinator::ChooseCheckpoint{.term = desk_.term, .question = 1},
                   [&](const Coordinator::CheckpointChosen&) { ++answers; });
  desk_.LoseLead();
  desk_.Settle();
  EXPECT_EQ(answers, 0);
  for (const uint64_t tag : tags) {
    EXPECT_TRUE(absl::IsNotFound(desk_.store().NoteBody(tag).status()));
    desk_.store().Do(Coordinator::Noted{.tag = tag});
  }
  // A question of the next lead that comes while the old one is being answered.
  desk_.Lead();
  desk_.store().Do(Coordinator::ChooseCheckpoint{.term = desk_.term, .question = 1},
                   [&](const Coordinator::CheckpointChosen&) { answers += 100; });
  desk_.LoseLead();
  desk_.Lead();
  std::optional<Coordinator::CheckpointChosen> chosen;
  desk_.store().Do(Coordinator::ChooseCheckpoint{.term = desk_.term, .question = 1},
                   [&](const Coordinator::CheckpointChosen& c) { chosen = c; });
  desk_.store().Finish();
  EXPECT_EQ(answers, 0);
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(chosen->step, 2);
}

TEST_F(RunCheckpointsTest, NothingIsNotedWithoutACoordinator) {
  Begin();
  desk_.takes_notes = false;
  ASSERT_OK(desk_.Save(1));
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 1"));
  EXPECT_THAT(desk_.tags, IsEmpty());
  // It does not hold up what waits for records.
  const auto chosen = desk_.Choose();
  ASSERT_TRUE(chosen.has_value());
  desk_.Start(chosen->packed);
  desk_.Present(chosen->packed);
  EXPECT_TRUE(desk_.Choose().has_value());
}

TEST_F(RunCheckpointsTest, GivenUpIsOver) {
  Begin();
  ASSERT_TRUE(desk_.Measure(2));
  desk_.store().Do(Coordinator::SaveOver{.generation = 1, .step = 2, .committed = false});
  desk_.Settle();
  EXPECT_THAT(desk_.Story(), IsEmpty());
  ASSERT_OK(desk_.Save(3));
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 3", "read 3"));
}

// ---- what a generation loads

TEST_F(RunCheckpointsTest, NothingToLoad) {
  desk_.Lead();
  const auto chosen = desk_.Choose();
  ASSERT_TRUE(chosen.has_value());
  EXPECT_TRUE(chosen->ok);
  EXPECT_FALSE(chosen->step.has_value());
  EXPECT_EQ(chosen->packed, "");
  desk_.Start();
  desk_.Present();
  desk_.Settle();
  EXPECT_THAT(desk_.Story(), IsEmpty());
}

TEST_F(RunCheckpointsTest, TheNewestThatStands) {
  Begin();
  for (const StepIndex step : {1, 2, 3}) ASSERT_OK(desk_.Save(step));
  auto chosen = desk_.Choose();
  ASSERT_TRUE(chosen.has_value() && chosen->ok);
  EXPECT_EQ(chosen->step, 3);
  const auto opened = OpenChosen(run_, chosen->packed);
  ASSERT_OK(opened.status());
  EXPECT_EQ(opened->path, desk_.PathOf(3));
  EXPECT_EQ(opened->manifest.step, 3);
  Truncate(3);
  chosen = desk_.Choose();
  ASSERT_TRUE(chosen.has_value() && chosen->ok);
  EXPECT_EQ(chosen->step, 2);
  EXPECT_TRUE(fs::exists(InQuarantine(3) + "/part-00001.h5"));
  EXPECT_TRUE(desk_.Warned("goes to quarantine/"));
  EXPECT_THAT(desk_.Events("start_checkpoint"), SizeIs(1));
  // One that is gone altogether is passed over.
  fs::remove_all(desk_.PathOf(2));
  const auto none = desk_.Choose();
  ASSERT_TRUE(none.has_value());
  EXPECT_FALSE(none->ok);
  EXPECT_EQ(none->exit_code, 93);
  EXPECT_THAT(none->words, HasSubstr("2 are bad"));
  EXPECT_EQ(none->packed, "");
}

TEST_F(RunCheckpointsTest, WhatRanksFoundBadIsNotChosenAgain) {
  Begin();
  for (const StepIndex step : {1, 2, 3}) ASSERT_OK(desk_.Save(step));
  const std::string three = desk_.Choose()->packed;
  auto chosen = desk_.Choose(three);
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(chosen->step, 2);
  EXPECT_THAT(Slurp(InQuarantine(3) + ".why"), HasSubstr("another state than was committed"));
  // The question comes again, its answer having crossed it: no other one pays for it.
  chosen = desk_.Choose(three);
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(chosen->step, 2);
  EXPECT_THAT(There(), ElementsAre(2));
  EXPECT_TRUE(fs::exists(desk_.PathOf(2)));
  // What names no checkpoint harms none.
  EXPECT_EQ(desk_.Choose("../../" + desk_.Name(2))->step, 2);
  EXPECT_FALSE(desk_.Choose(chosen->packed)->ok);
}

// Somebody may have mended it since.
TEST_F(RunCheckpointsTest, WhoDoesNotLeadAnyMoreFindsNothingBad) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  const std::string two = desk_.Choose()->packed;
  const Slot before = desk_.term;
  desk_.Lead();
  const Slot now = std::exchange(desk_.term, before);
  EXPECT_FALSE(desk_.Choose(two).has_value());
  EXPECT_THAT(There(), ElementsAre(1, 2));
  EXPECT_TRUE(desk_.Warned("does not lead any more"));
  desk_.term = now;
  EXPECT_EQ(desk_.Choose()->step, 2);
}

// Not to be told is no reason to take an older one, nor to end the job.
TEST_F(RunCheckpointsTest, AFileSystemThatDoesNotAnswer) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  const std::string manifest = desk_.PathOf(2) + "/manifest.json", aside = run_ + "/aside";
  fs::rename(manifest, aside);
  fs::create_directory(manifest);  // Reading it fails, and says nothing about the checkpoint.
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(desk_.Choose().has_value());
  EXPECT_THAT(desk_.warnings, ElementsAre(HasSubstr("trying on")));
  EXPECT_FALSE(fs::exists(run_ + "/quarantine"));
  fs::remove(manifest);
  fs::rename(aside, manifest);
  EXPECT_EQ(desk_.Choose()->step, 2);
}

TEST_F(RunCheckpointsTest, AttemptsAreBounded) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  for (const StepIndex step : {2, 2, 1, 1, -2}) EXPECT_EQ(desk_.Load(), step);
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 1", "read 1", "commit 2", "read 2", "attempt 2",
                                         "attempt 2", "attempt 1", "attempt 1"));
  EXPECT_TRUE(desk_.Warned("was loaded 2 times without a good step"));
}

// Devices that do not work, nodes that do not come: nothing was tried with the checkpoint.
TEST_F(RunCheckpointsTest, ABadDeviceDoesNotCount) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  for (int i = 0; i < 4; ++i) {
    const auto chosen = desk_.Choose();
    ASSERT_TRUE(chosen.has_value());
    EXPECT_EQ(chosen->step, 1);
    desk_.Start(chosen->packed);
  }
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 1", "read 1"));
}

// An attempt counts in the very next choice, however long its record takes.
TEST_F(RunCheckpointsTest, ChoosingWaitsForTheAttemptsRecord) {
  Begin();
  for (const StepIndex step : {1, 2}) ASSERT_OK(desk_.Save(step));
  EXPECT_EQ(desk_.Load(), 2);
  const std::string two = desk_.Choose()->packed;
  desk_.Start(two);
  desk_.Present(two);
  std::optional<Coordinator::CheckpointChosen> chosen;
  desk_.store().Do(Coordinator::ChooseCheckpoint{.term = desk_.term, .question = 1000},
                   [&](const Coordinator::CheckpointChosen& c) { chosen = c; });
  desk_.store().Finish();
  EXPECT_FALSE(chosen.has_value());
  desk_.MakeNotes();
  desk_.store().Finish();
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(chosen->step, 1);
}

TEST_F(RunCheckpointsTest, GoodStepsProveIt) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(desk_.Load(), 1);
    desk_.store().Do(Coordinator::GoodSteps{.generation = desk_.generation});
    // A coordinator that takes over says it again.
    desk_.store().Do(Coordinator::GoodSteps{.generation = desk_.generation});
    desk_.Settle();
  }
  EXPECT_THAT(desk_.Story(), ElementsAre("commit 1", "read 1", "attempt 1", "ran 1", "attempt 1",
                                         "ran 1", "attempt 1", "ran 1"));
  // A generation that loaded nothing proves nothing.
  desk_.Start();
  desk_.store().Do(Coordinator::GoodSteps{.generation = desk_.generation});
  desk_.Settle();
  EXPECT_THAT(desk_.Story(), SizeIs(8));
}

TEST_F(RunCheckpointsTest, RetryForgivesOtherJobs) {
  Begin();
  ASSERT_OK(desk_.Save(1));
  ASSERT_OK(desk_.Save(2));
  RunLog other = desk_.Log();  // Job 0's.
  for (int i = 0; i < 2; ++i)
    ASSERT_OK(other.Append(RecordType::kAttempt, 1, SerializeAttempt({.name = desk_.Name(2)})));
  EXPECT_EQ(desk_.Choose()->step, 1);
  CheckpointDesk again(run_, DeskConfig(), /*retry=*/true);
  again.generation = 1;
  again.Lead();
  for (const StepIndex step : {2, 2, 1, 1, -2}) EXPECT_EQ(again.Load(), step);
}

}  // namespace
}  // namespace perdure
