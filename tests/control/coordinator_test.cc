// The coordinator by itself, message by message: what it says to whom, and why. How coordinators
// and members fare together is tests/sim's.
#include "runtime/control/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace perdure {
namespace {

using testing::HasSubstr;
using Phase = Coordinator::Phase;

constexpr uint64_t kJob = 7;

ControlOptions Options() {
  ControlOptions options;
  options.save_every = absl::Seconds(60);
  return options;
}

LayoutRule Rule() {
  return {.tensor = 1, .pipeline = 1, .leaves = 64, .grow_after = absl::Seconds(1)};
}

// A coordinator on node 0 of `nodes`, and its members as a few lines of bookkeeping.
class Story {
 public:
  explicit Story(NodeId nodes, LogView view = {}, LayoutRule rule = Rule())
      : nodes_(nodes),
        lead_(Options(), rule, {.me = {.at = {kJob, 0}, .incarnation = 1}, .nodes = nodes}, view,
              now_) {
    Do(Coordinator::Tick{});
  }

  void Do(const Coordinator::Event& event) {
    effects_.clear();
    lead_.Step(now_, event, effects_);
    for (const auto& effect : effects_) {
      if (const auto* remark = std::get_if<Coordinator::Remark>(&effect))
        said_ += remark->text + "\n";
      if (const auto* append = std::get_if<Coordinator::Append>(&effect)) append_ = append->entry;
      if (const auto* resign = std::get_if<Coordinator::Resign>(&effect))
        resigned_ = resign->reason;
    }
  }
  void After(double seconds) {
    const absl::Time end = now_ + absl::Seconds(seconds);
    while (lead_.NextDeadline() < end) {
      now_ = std::max(now_, lead_.NextDeadline());
      Do(Coordinator::Tick{});
    }
    now_ = end;
    Do(Coordinator::Tick{});
  }
  // The record asked for gets its slot.
  LogEntry Win() {
    EXPECT_TRUE(append_.has_value());
    const LogEntry entry = *std::exchange(append_, std::nullopt);
    Do(Coordinator::Appended{entry});
    return entry;
  }
  void Report(NodeId node, Stage stage, Generation generation, auto change) {
    msg::Report report{.term = lead_.term(),
                       .incarnation = 100 + node,
                       .sequence = ++sequence_,
                       .echo = absl::ToUnixNanos(now_),
                       .slots = 1,
                       .domain = 0,
                       .generation = generation,
                       .stage = stage};
    change(report);
    Do(Coordinator::Received{{kJob, node}, report});
  }
  void Report(NodeId node, Stage stage, Generation generation = 0) {
    Report(node, stage, generation, [](msg::Report&) {});
  }
  void Stopped(NodeId node, Generation generation, std::vector<Holding> holdings = {}) {
    Do(Coordinator::Received{
        {kJob, node},
        msg::Stopped{
            .term = lead_.term(), .generation = generation, .holdings = std::move(holdings)}});
  }
  void Present(NodeId node, Generation generation) {
    Do(Coordinator::Received{
        {kJob, node},
        msg::Present{.term = lead_.term(), .generation = generation, .addresses = {"a"}}});
  }
  // LEAD, all nodes, START, Go.
  void RunAll() {
    Win();
    for (NodeId node = 0; node < nodes_; ++node) Report(node, Stage::kIdle);
    Win();
    const Generation generation = lead_.layout().generation;
    for (NodeId node : lead_.members()) Present(node, generation);
    for (NodeId node : lead_.members()) Report(node, Stage::kReady, generation);
  }

  template <typename M>
  std::map<NodeId, M> Sent() const {
    std::map<NodeId, M> sent;
    for (const auto& effect : effects_)
      if (const auto* send = std::get_if<Coordinator::Send>(&effect))
        if (const auto* m = std::get_if<M>(&send->message)) sent[send->to.node] = *m;
    return sent;
  }
  template <typename E>
  int Count() const {
    int count = 0;
    for (const auto& effect : effects_) count += std::holds_alternative<E>(effect) ? 1 : 0;
    return count;
  }

  NodeId nodes_;
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(1000);
  Coordinator lead_;
  Coordinator::Effects effects_;
  std::optional<LogEntry> append_;
  std::string said_, resigned_;
  uint64_t sequence_ = 0;
};

// What a successor finds: generation 1 on nodes 0 and 1.
LogView TwoNodesOfAnotherCoordinator() {
  LogView view;
  view.Absorb({.slot = 0, .kind = EntryKind::kLead, .author = {.at = {kJob, 1}, .incarnation = 5}});
  view.Absorb(
      {.slot = 1,
       .kind = EntryKind::kStart,
       .author = {.at = {kJob, 1}, .incarnation = 5},
       .generation = 1,
       .layout = PlacedLayout{.generation = 1, .shape = {.data = 2}, .seats = {{0, 0}, {1, 0}}}});
  return view;
}

TEST(Coordinator, BeginsAJob) {
  Story story(2);
  ASSERT_TRUE(story.append_.has_value());
  EXPECT_EQ(story.append_->kind, EntryKind::kLead);
  EXPECT_EQ(story.append_->slot, 0u);
  story.Win();
  EXPECT_EQ(story.Sent<msg::Announce>().size(), 2u);
  story.Report(0, Stage::kIdle);
  EXPECT_FALSE(story.append_.has_value()) << "the other node is waited for";
  story.Report(1, Stage::kIdle);
  const LogEntry start = story.Win();
  EXPECT_EQ(start.kind, EntryKind::kStart);
  EXPECT_EQ(start.generation, 1u);
  EXPECT_EQ(start.layout->seats.size(), 2u);
  EXPECT_EQ(story.Sent<msg::Prepare>().size(), 2u);
  story.Present(0, 1);
  EXPECT_TRUE(story.Sent<msg::Table>().empty());
  story.Present(1, 1);
  const auto tables = story.Sent<msg::Table>();
  ASSERT_EQ(tables.size(), 2u);
  EXPECT_EQ(tables.at(0).count, 2);
  story.Report(0, Stage::kReady, 1);
  EXPECT_TRUE(story.Sent<msg::Go>().empty());
  story.Report(1, Stage::kReady, 1);
  EXPECT_EQ(story.Sent<msg::Go>().size(), 2u);
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning);
  story.Report(0, Stage::kRunning, 1);
  EXPECT_GT(story.Sent<msg::Answer>().at(0).lease, 0);
}

TEST(Coordinator, DoesNotWaitForEverForNodes) {
  Story story(3);
  story.Win();
  story.Report(2, Stage::kIdle);
  for (int i = 0; i < 40; ++i) {
    story.After(1);
    story.Report(2, Stage::kIdle);
  }
  ASSERT_TRUE(story.append_.has_value());
  EXPECT_EQ(story.Win().layout->seats, (std::vector<Seat>{{2, 0}}));
}

TEST(Coordinator, ResignsWhenItsSlotIsTaken) {
  Story story(2);
  LogEntry other{
      .slot = 0, .kind = EntryKind::kLead, .author = {.at = {kJob, 1}, .incarnation = 9}};
  story.Do(Coordinator::Appended{other});
  EXPECT_THAT(story.resigned_, HasSubstr("slot 0"));
  EXPECT_EQ(story.lead_.phase(), Phase::kResigned);
  story.Do(Coordinator::SaveNow{});
  EXPECT_TRUE(story.effects_.empty());
}

TEST(Coordinator, ResignsWhenAPollFindsAnotherCoordinator) {
  Story story(1);
  story.RunAll();
  LogEntry other{.slot = 2, .kind = EntryKind::kLead, .author = {.at = {8, 0}, .incarnation = 9}};
  story.Do(Coordinator::LogRead{story.now_, {{other}}});
  EXPECT_THAT(story.resigned_, HasSubstr("job 8"));
}

TEST(Coordinator, TriesAFailedAppendAgainUnderTheSameId) {
  Story story(1);
  const LogEntry first = *std::exchange(story.append_, std::nullopt);
  story.Do(Coordinator::Appended{std::nullopt});
  EXPECT_FALSE(story.append_.has_value());
  story.After(1);
  ASSERT_TRUE(story.append_.has_value());
  EXPECT_EQ(story.append_->id, first.id);
  EXPECT_EQ(story.append_->slot, first.slot);
}

TEST(Coordinator, ReplacesAFailedRankFromMemory) {
  Story story(3, {}, {.tensor = 1, .pipeline = 1, .data = 2, .leaves = 64, .spares = 1});
  story.RunAll();
  ASSERT_EQ(story.lead_.members(), (std::vector<NodeId>{0, 1}));
  story.Report(1, Stage::kBroken, 1, [](msg::Report& r) {
    r.slots = 0;
    r.failure = EvidenceKind::kDeviceError;
    r.failed_local_rank = 0;
  });
  EXPECT_EQ(story.Count<Coordinator::Evidence>(), 1);
  EXPECT_EQ(story.Sent<msg::Stop>().size(), 2u);
  story.Stopped(0, 1, {{1, 40, 0}, {1, 40, 1}});
  EXPECT_FALSE(story.append_.has_value());
  story.Stopped(1, 1);
  EXPECT_THAT(story.said_, HasSubstr("local rank 0 of node 1 failed"));
  const LogEntry start = story.Win();
  EXPECT_EQ(start.step, 40);
  EXPECT_EQ(start.layout->seats, (std::vector<Seat>{{0, 0}, {2, 0}}));
  const Resume resume = story.Sent<msg::Prepare>().at(2).resume;
  EXPECT_FALSE(resume.from_checkpoint);
  ASSERT_EQ(resume.elsewhere.size(), 1u);
  EXPECT_EQ(resume.elsewhere[0].node, 0u);
}

TEST(Coordinator, StopsANodeThatComesBackWithAnOldGeneration) {
  Story story(1);
  story.RunAll();
  story.Report(0, Stage::kRunning, 1);
  story.After(1);
  story.Report(0, Stage::kBroken, 1);
  story.Stopped(0, 1);
  story.Win();
  ASSERT_EQ(story.lead_.layout().generation, 2u);
  story.After(1);
  story.Report(0, Stage::kRunning, 1);
  EXPECT_EQ(story.Sent<msg::Stop>().at(0).generation, 1u);
}

TEST(Coordinator, SavesWhenAskedAndCommits) {
  Story story(2);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  ASSERT_EQ(story.Sent<msg::Save>().size(), 1u);
  const auto frozen = [](int32_t written) {
    return [written](msg::Report& r) {
      r.frozen = 12;
      r.written = written;
      r.written_ok = true;
    };
  };
  story.Report(0, Stage::kRunning, 1, frozen(0));
  story.Report(1, Stage::kRunning, 1, frozen(0));
  EXPECT_EQ(story.Count<Coordinator::MeasureRoom>(), 1);
  story.Do(Coordinator::Measured{9, 12, true});
  EXPECT_TRUE(story.Sent<msg::Write>().empty()) << "of another generation";
  story.Do(Coordinator::Measured{1, 12, true});
  EXPECT_EQ(story.Sent<msg::Write>().size(), 2u);
  story.Report(0, Stage::kRunning, 1, frozen(1));
  story.Report(1, Stage::kRunning, 1, frozen(1));
  EXPECT_EQ(story.Count<Coordinator::JoinParts>(), 1);
  story.Do(Coordinator::PartsJoined{1, 12, 1, {1, 0}, true});
  EXPECT_EQ(story.Sent<msg::Verify>().size(), 2u);
  const auto vote = [&](NodeId node, int32_t file) {
    story.Do(Coordinator::Received{{kJob, node},
                                   msg::Voted{.term = story.lead_.term(),
                                              .generation = 1,
                                              .step = 12,
                                              .attempt = 1,
                                              .file = file,
                                              .ok = true}});
  };
  vote(1, 0);
  vote(1, 0);  // Twice: once.
  vote(1, 1);  // Not its file.
  EXPECT_FALSE(story.append_.has_value());
  vote(0, 1);
  const LogEntry commit = story.Win();
  EXPECT_EQ(commit.kind, EntryKind::kCommit);
  EXPECT_EQ(commit.step, 12);
  EXPECT_TRUE(story.Sent<msg::Settle>().at(1).committed);
}

TEST(Coordinator, DoesNotWriteWhatHasNoRoom) {
  Story story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  story.Report(0, Stage::kRunning, 1, [](msg::Report& r) { r.frozen = 12; });
  story.Do(Coordinator::Measured{1, 12, false});
  EXPECT_TRUE(story.Sent<msg::Write>().empty());
  ASSERT_EQ(story.Sent<msg::Settle>().size(), 1u);
  EXPECT_FALSE(story.Sent<msg::Settle>().at(0).committed);
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning);
}

TEST(Coordinator, MovesOffADrainedNodeAtABoundary) {
  Story story(3, {}, {.tensor = 1, .pipeline = 1, .data = 2, .leaves = 64, .spares = 1});
  story.RunAll();
  const auto live = [&] {
    for (NodeId node = 0; node < 3; ++node)
      story.Report(node, node < 2 ? Stage::kRunning : Stage::kIdle, node < 2 ? 1 : 0);
  };
  live();
  story.Do(Coordinator::Drain{1, true});
  story.Do(Coordinator::Drain{99, true});  // Of no node.
  story.After(1);
  ASSERT_EQ(story.lead_.phase(), Phase::kStopping) << story.said_;
  live();
  for (NodeId node = 0; node < 2; ++node)
    story.Stopped(node, 1, {{1, 40, static_cast<int32_t>(node)}});
  EXPECT_EQ(story.Win().layout->seats, (std::vector<Seat>{{0, 0}, {2, 0}}));
}

TEST(Coordinator, RefusesAddressesThatAreNotOneARank) {
  Story story(1);
  story.Win();
  story.Report(0, Stage::kIdle);
  story.Win();
  story.Do(Coordinator::Received{
      {kJob, 0},
      msg::Present{.term = story.lead_.term(), .generation = 1, .addresses = {"a", "b"}}});
  EXPECT_EQ(story.lead_.phase(), Phase::kStarting) << "another generation";
  EXPECT_THAT(story.said_, HasSubstr("2 addresses for 1 ranks"));
}

TEST(Coordinator, GivesUpASaveThatHangs) {
  Story story(1);
  story.RunAll();
  story.Do(Coordinator::SaveNow{});
  for (int i = 0; i < 31 * 60; ++i) {
    story.Report(0, Stage::kRunning, 1, [&](msg::Report& r) {
      r.frozen = 12;
      r.finished = 12 + i;
    });
    story.After(1);
    if (story.said_.find("took too long") != std::string::npos) break;
  }
  EXPECT_THAT(story.said_, HasSubstr("took too long"));
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning) << "training goes on";
}

TEST(Coordinator, EndsAJobWithASaveFirst) {
  Story story(1);
  story.RunAll();
  story.Do(Coordinator::EndJob{75});
  EXPECT_EQ(story.Sent<msg::Save>().size(), 1u);
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning);
}

TEST(Coordinator, EndsACompleteRun) {
  Story story(1);
  story.RunAll();
  story.Report(0, Stage::kDone, 1);
  story.Stopped(0, 1);
  const LogEntry end = story.Win();
  EXPECT_EQ(end.kind, EntryKind::kEnd);
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_EQ(story.Sent<msg::Bye>().size(), 1u);
  EXPECT_EQ(story.Count<Coordinator::Finished>(), 1);
  story.Report(0, Stage::kDone, 1);
  EXPECT_EQ(story.Sent<msg::Bye>().size(), 1u) << "who did not hear it is told again";
}

TEST(Coordinator, EndsWithAPersonsCodeWhereNothingWillFit) {
  Story story(1, {},
              {.tensor = 4, .pipeline = 4, .leaves = 64, .nodes_max = 1, .ranks_per_node = 1});
  story.Win();
  story.Report(0, Stage::kIdle);
  ASSERT_TRUE(story.append_.has_value()) << story.said_;
  EXPECT_EQ(story.Win().exit_code, kExitPersonMustLook);
}

TEST(Coordinator, TakesOverARunningGeneration) {
  Story story(2, TwoNodesOfAnotherCoordinator());
  story.Win();
  story.Report(0, Stage::kRunning, 1);
  EXPECT_EQ(story.lead_.phase(), Phase::kGathering);
  story.Report(1, Stage::kRunning, 1, [](msg::Report& r) { r.frozen = 30; });
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning);
  EXPECT_FALSE(story.Sent<msg::Settle>().at(1).committed) << "frozen for somebody else";
  EXPECT_THAT(story.said_, HasSubstr("runs on under a new coordinator"));
}

TEST(Coordinator, StopsAGenerationThatIsNotWholeAnyMore) {
  Story story(2, TwoNodesOfAnotherCoordinator());
  story.Win();
  for (int i = 0; i < 8; ++i) {
    story.Report(0, Stage::kRunning, 1);
    story.After(0.25);
  }
  EXPECT_THAT(story.said_, HasSubstr("nodes of it are missing"));
  story.Stopped(0, 1);
  story.Win();
  story.Present(0, 2);
  story.Report(0, Stage::kReady, 2);
  EXPECT_EQ(story.lead_.phase(), Phase::kForming) << "the other node may hold a lease still";
  for (int i = 0; i < 9; ++i) {
    story.After(0.25);
    story.Report(0, Stage::kReady, 2);
  }
  EXPECT_EQ(story.lead_.phase(), Phase::kRunning) << "half of the nodes and a support lease";
}

TEST(Coordinator, AnswersAnotherJob) {
  Story story(1);
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 0}});
  EXPECT_TRUE(story.Sent<msg::Leading>().empty()) << "does not lead yet";
  story.Win();
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 0}});
  EXPECT_EQ(story.Sent<msg::Leading>().size(), 1u);
  story.Do(Coordinator::Received{{8, 3}, msg::Probe{.term = 5}});
  EXPECT_TRUE(story.Sent<msg::Leading>().empty()) << "of another term";
}

TEST(Coordinator, IgnoresWhoIsNotOfTheJob) {
  Story story(1);
  story.Win();
  story.Do(Coordinator::Received{{8, 0}, msg::Report{.term = 0, .incarnation = 1, .sequence = 1}});
  story.Do(
      Coordinator::Received{{kJob, 99}, msg::Report{.term = 0, .incarnation = 1, .sequence = 1}});
  EXPECT_TRUE(story.effects_.empty());
  EXPECT_EQ(story.lead_.phase(), Phase::kGathering);
}

TEST(Coordinator, NamesWhoStalls) {
  Story story(3);
  story.RunAll();
  for (int second = 0; second < 620 && story.lead_.phase() == Phase::kRunning; ++second) {
    for (NodeId node = 0; node < 3; ++node)
      story.Report(node, Stage::kRunning, 1,
                   [&](msg::Report& r) { r.finished = node == 2 ? 0 : 1; });
    story.After(1);
  }
  EXPECT_EQ(story.lead_.phase(), Phase::kStopping);
  EXPECT_THAT(story.said_, HasSubstr("suspected: 2"));
}

}  // namespace
}  // namespace perdure
