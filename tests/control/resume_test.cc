#include "runtime/control/resume.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

// Generation `generation` with one rank on each of `nodes` nodes.
LogView::Live Live(Generation generation, int nodes) {
  PlacedLayout layout{.generation = generation, .shape = {.data = nodes}, .seats = {}};
  for (NodeId node = 0; node < static_cast<NodeId>(nodes); ++node)
    layout.seats.push_back({node, 0});
  return {.job = 1, .resumed = 0, .layout = layout};
}

struct Cluster {
  std::vector<LogView::Live> live;
  std::vector<std::vector<Holding>> nodes;

  Resume Choose(StepIndex commit_step) const {
    std::vector<NodeHoldings> holdings;
    for (NodeId node = 0; node < nodes.size(); ++node) holdings.push_back({node, &nodes[node]});
    return ChooseResume(live, holdings, commit_step);
  }
};

TEST(Resume, BeginsAtTheCheckpointWithoutMemory) {
  const Cluster cluster{{Live(1, 2)}, {{}, {}}};
  EXPECT_EQ(cluster.Choose(40),
            (Resume{.from_checkpoint = true, .generation = 0, .step = 40, .elsewhere = {}}));
  EXPECT_EQ(cluster.Choose(-1).step, 0);
}

TEST(Resume, TakesTheNewestStepThatIsWhole) {
  // Rank 1 was one step ahead; what rank 0's node keeps of it is of the step before.
  const Cluster cluster{{Live(1, 2)}, {{{1, 50, 0}, {1, 50, 1}}, {{1, 51, 1}}}};
  const Resume resume = cluster.Choose(40);
  EXPECT_FALSE(resume.from_checkpoint);
  EXPECT_EQ(resume.step, 50);
  EXPECT_EQ(resume.shape, (LayoutShape{.data = 2}));
  ASSERT_EQ(resume.elsewhere.size(), 1u);
  EXPECT_EQ(resume.elsewhere[0], (Resume::Held{.rank = 1, .node = 0}));
}

TEST(Resume, PrefersTheRanksOwnSeat) {
  const Cluster cluster{{Live(1, 2)}, {{{1, 50, 0}, {1, 50, 1}}, {{1, 50, 1}}}};
  EXPECT_TRUE(cluster.Choose(40).elsewhere.empty());
}

TEST(Resume, NeverMixesGenerations) {
  const Cluster cluster{{Live(1, 2), Live(2, 2)},
                        {{{1, 50, 0}, {2, 51, 0}}, {{1, 51, 1}, {2, 50, 1}}}};
  EXPECT_TRUE(cluster.Choose(40).from_checkpoint);
}

TEST(Resume, OfTwoGenerationsTheNewer) {
  const Cluster cluster{{Live(1, 1), Live(2, 1)}, {{{1, 50, 0}, {2, 50, 0}}}};
  EXPECT_EQ(cluster.Choose(40).generation, 2u);
}

TEST(Resume, MemoryMustBeNewerThanTheCheckpoint) {
  const Cluster cluster{{Live(1, 1)}, {{{1, 50, 0}}}};
  EXPECT_FALSE(cluster.Choose(49).from_checkpoint);
  EXPECT_TRUE(cluster.Choose(50).from_checkpoint);
}

// Of a line of steps that the run has left, or is about to.
TEST(Resume, IgnoresStatesWithOtherGapsBehindThem) {
  const Gaps gaps = {{.first_step = 50, .samples = 8, .bad_step = 51, .number = 1}};
  LogView::Live before = Live(1, 1), after = Live(2, 1);
  after.gaps = gaps;
  const std::vector<Holding> held = {{1, 49, 0}, {1, 50, 0}, {2, 49, 0}};
  EXPECT_EQ(ChooseResume({before, after}, {{0, &held}}, 40).step, 50);
  const Resume resume = ChooseResume({before, after}, {{0, &held}}, 40, gaps);
  EXPECT_EQ(resume.step, 49);
  EXPECT_EQ(resume.generation, 2u);
  EXPECT_EQ(ChooseResume({before}, {{0, &held}}, 40, gaps).generation, 1u) << "it has none yet";
  const std::vector<Holding> later = {{1, 50, 0}, {2, 50, 0}};
  EXPECT_EQ(ChooseResume({before, after}, {{0, &later}}, 40).generation, 1u);
  EXPECT_EQ(ChooseResume({before, after}, {{0, &later}}, 40, gaps).generation, 2u);
  EXPECT_TRUE(ChooseResume({before}, {{0, &later}}, 40, gaps).from_checkpoint);
}

TEST(Resume, IgnoresWhatItDoesNotKnow) {
  const Cluster cluster{{Live(1, 1)}, {{{9, 70, 0}, {1, 60, 5}, {1, 60, -1}, {1, 50, 0}}}};
  EXPECT_EQ(cluster.Choose(-1).step, 50);
}

LogEntry Entry(Slot slot, EntryKind kind, Generation generation = 0, StepIndex step = 0) {
  return {.slot = slot,
          .kind = kind,
          .author = {.at = {.job = 1, .node = 2}, .incarnation = 3},
          .generation = generation,
          .step = step,
          .layout = *Live(generation, 2).layout};
}

TEST(LogView, KnowsWhoLeadsAndWhatMayRun) {
  LogView view;
  view.Absorb(Entry(0, EntryKind::kLead));
  ASSERT_TRUE(view.lead.has_value());
  EXPECT_EQ(view.lead->term, 0u);
  view.Absorb(Entry(1, EntryKind::kStart, 1));
  view.Absorb(Entry(2, EntryKind::kNote));
  view.Absorb(Entry(3, EntryKind::kStart, 2));
  EXPECT_EQ(view.generation, 2u);
  EXPECT_EQ(view.live.size(), 2u) << "nothing proves that the first has stopped";
  view.Absorb(Entry(4, EntryKind::kCommit, 2, 30));
  EXPECT_EQ(view.live.size(), 1u);
  EXPECT_EQ(view.commit_step, 30);
  view.Absorb(Entry(5, EntryKind::kEnd, 2, 30));
  EXPECT_TRUE(view.live.empty());
  EXPECT_FALSE(view.lead.has_value());
  view.Absorb(Entry(6, EntryKind::kLead));
  EXPECT_EQ(view.lead->term, 6u);
  EXPECT_EQ(view.next_slot, 7u);
}

// A START that resumes from a checkpoint says that those behind it are bad.
TEST(LogView, ForgetsCheckpointsThatAreBad) {
  const auto from_checkpoint = [](Slot slot, Generation generation, StepIndex step) {
    LogEntry start = Entry(slot, EntryKind::kStart, generation, step);
    start.from_checkpoint = true;
    return start;
  };
  LogView view;
  view.Absorb(Entry(0, EntryKind::kLead));
  view.Absorb(Entry(1, EntryKind::kStart, 1));
  EXPECT_FALSE(view.live.back().from_checkpoint) << "the run begins";
  view.Absorb(Entry(2, EntryKind::kCommit, 1, 20));
  view.Absorb(Entry(3, EntryKind::kCommit, 1, 30));
  view.Absorb(Entry(4, EntryKind::kStart, 2, 31));
  EXPECT_EQ(view.commit_step, 30);
  EXPECT_FALSE(view.live.back().from_checkpoint) << "memory is newer";
  view.Absorb(from_checkpoint(5, 3, 20));
  EXPECT_EQ(view.commit_step, 20);
  EXPECT_TRUE(view.live.back().from_checkpoint);
  EXPECT_EQ(view.live.back().resumed, 20);
  view.Absorb(from_checkpoint(6, 4, 20));
  EXPECT_TRUE(view.live.back().from_checkpoint);
  view.Absorb(Entry(7, EntryKind::kCommit, 4, 25));
  EXPECT_EQ(view.commit_step, 25);
  view.Absorb(from_checkpoint(8, 5, 30));
  EXPECT_EQ(view.commit_step, 30) << "somebody has mended it";
  EXPECT_TRUE(view.live.back().from_checkpoint);
}

// A node that was lost is nothing that the program does again; yet somebody wants to know it.
TEST(LogView, KnowsWhatTheGenerationBeforeFailedWith) {
  const auto lost = [](Slot slot, Generation generation, NodeId node) {
    LogEntry start = Entry(slot, EntryKind::kStart, generation, 30);
    start.failure = {.kind = EvidenceKind::kNodeLost, .number = 0, .step = 30, .node = node};
    return start;
  };
  LogView view;
  view.Absorb(Entry(0, EntryKind::kLead));
  view.Absorb(Entry(1, EntryKind::kStart, 1));
  EXPECT_FALSE(view.last_failure.has_value());
  view.Absorb(lost(2, 4, 7));
  EXPECT_TRUE(view.failures.empty());
  ASSERT_TRUE(view.last_failure.has_value());
  EXPECT_EQ(view.last_failure->generation, 1u);
  EXPECT_EQ(view.last_failure->failure.node, 7u);
  view.Absorb(Entry(3, EntryKind::kLead));
  EXPECT_TRUE(view.last_failure.has_value()) << "another coordinator of the job";
  LogView planned = view, other = view, ended = view;
  planned.Absorb(Entry(4, EntryKind::kStart, 5));
  EXPECT_FALSE(planned.last_failure.has_value()) << "nothing failed";
  LogEntry lead = Entry(4, EntryKind::kLead);
  lead.author.at.job = 2;
  other.Absorb(lead);
  EXPECT_FALSE(other.last_failure.has_value()) << "of another job";
  ended.Absorb(Entry(4, EntryKind::kEnd, 4, 30));
  EXPECT_FALSE(ended.last_failure.has_value());
}

TEST(LogView, KnowsWhatTheJobThatLeadsFailsWith) {
  const auto by_job = [](LogEntry entry, uint64_t job) {
    entry.author.at.job = job;
    return entry;
  };
  const auto failed = [](Slot slot, Generation generation, StepIndex step) {
    LogEntry start = Entry(slot, EntryKind::kStart, generation, step);
    start.failure = {.kind = EvidenceKind::kHung, .number = 0, .step = step, .node = std::nullopt};
    return start;
  };
  LogView view;
  view.Absorb(Entry(0, EntryKind::kLead));
  view.Absorb(Entry(1, EntryKind::kStart, 1));
  view.Absorb(failed(2, 2, 30));
  ASSERT_EQ(view.failures.size(), 1u);
  EXPECT_EQ(view.failures[0].generation, 1u) << "the one before";
  view.Absorb(failed(3, 3, 30));
  view.Absorb(Entry(4, EntryKind::kCommit, 3, 30));
  EXPECT_EQ(view.failures.size(), 2u) << "a checkpoint of that step is no step beyond";
  view.Absorb(Entry(5, EntryKind::kLead));
  EXPECT_EQ(view.failures.size(), 2u) << "another coordinator of the job";
  LogView other = view;
  other.Absorb(by_job(Entry(6, EntryKind::kLead), 2));
  EXPECT_TRUE(other.failures.empty()) << "of another job";
  LogView ended = view;
  ended.Absorb(Entry(6, EntryKind::kEnd, 3, 30));
  EXPECT_TRUE(ended.failures.empty());
  view.Absorb(Entry(6, EntryKind::kCommit, 3, 31));
  EXPECT_TRUE(view.failures.empty()) << "got beyond it";
}

TEST(LogViewDeathTest, HasNoHoles) {
  LogView view;
  EXPECT_DEATH(view.Absorb(Entry(1, EntryKind::kLead)), "CHECK failed");
}

}  // namespace
}  // namespace perdure
