#include "runtime/agent/snapshot_shelf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "runtime/agent/child_processes.h"
#include "runtime/base/status.h"
#include "runtime/train/snapshot_file.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kRun[] = "0123456789abcdef0123456789abcdef";

class SnapshotShelfTest : public testing::Test {
 protected:
  SnapshotShelfTest() : directory_(MemoryDirectory()), table_(OddTensors(), 100) {}

  absl::StatusOr<std::unique_ptr<SnapshotShelf>> Open(uint64_t job = 7, NodeId node = 2,
                                                      const std::string& run = kRun) const {
    return SnapshotShelf::Open(
        {.directory = directory_.path(), .run_id = run, .job = job, .node = node});
  }
  void Put(const SnapshotShelf& shelf, const Holding& holding, int buffer = 0, bool complete = true,
           const std::string& run = kRun) const {
    const std::vector<int64_t> atoms = {0, 2};
    const auto file = *SnapshotFile::Create(
        shelf.path() + "/" + SnapshotFileName(holding.generation, holding.rank, buffer), &table_,
        atoms);
    file->Begin({.run_id = run,
                 .generation = holding.generation,
                 .step = holding.step,
                 .rank = holding.rank,
                 .history = {}});
    if (complete) file->Complete();
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
      names.push_back(entry.path().filename());
    return names;
  }

  const TestDirectory directory_;
  const AtomTable table_;
};

TEST_F(SnapshotShelfTest, HoldsWhatIsWhole) {
  const auto shelf = *Open();
  EXPECT_EQ(shelf->path(), directory_.path() + "/perdure-0123456789ab-7-n2");
  struct stat facts {};
  ASSERT_EQ(::stat(shelf->path().c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0700u);
  EXPECT_THAT(shelf->Holdings(), IsEmpty());
  Put(*shelf, {3, 11, 1}, 1);
  Put(*shelf, {3, 10, 1}, 0);
  Put(*shelf, {3, 11, 4}, 0);
  Put(*shelf, {3, 12, 4}, 1, /*complete=*/false);
  Put(*shelf, {3, 11, 5}, 0, true, std::string(32, 'f'));  // Of another run.
  Spill(shelf->path() + "/g3-r9-a", "no snapshot");
  EXPECT_THAT(shelf->Holdings(),
              ElementsAre(Holding{3, 10, 1}, Holding{3, 11, 1}, Holding{3, 11, 4}));
  EXPECT_EQ(*shelf->PathOf({3, 11, 1}), shelf->path() + "/g3-r1-b");
  EXPECT_EQ(*shelf->PathOf({3, 10, 1}), shelf->path() + "/g3-r1-a");
  for (const Holding& none : {Holding{3, 12, 4}, {3, 11, 5}, {3, 11, 9}, {2, 11, 1}})
    EXPECT_TRUE(absl::IsNotFound(shelf->PathOf(none).status())) << none.rank;
}

TEST_F(SnapshotShelfTest, OlderGenerationsGo) {
  const auto shelf = *Open();
  Put(*shelf, {3, 11, 1});
  Put(*shelf, {4, 12, 1});
  Put(*shelf, {12, 13, 1});
  Put(*shelf, {3, 12, 1}, 1, /*complete=*/false);
  shelf->DropOlder(4);
  EXPECT_THAT(shelf->Holdings(), ElementsAre(Holding{4, 12, 1}, Holding{12, 13, 1}));
  EXPECT_FALSE(std::filesystem::exists(shelf->path() + "/g3-r1-b"));
}

TEST_F(SnapshotShelfTest, WhatIsFetchedIsNotHeld) {
  const auto shelf = *Open();
  const std::string path = shelf->FetchedPath({3, 11, 1}, 0);
  EXPECT_NE(path, shelf->FetchedPath({3, 11, 1}, 1));
  Put(*shelf, {3, 11, 1});
  std::filesystem::rename(shelf->path() + "/g3-r1-a", path);
  EXPECT_THAT(shelf->Holdings(), IsEmpty());
  shelf->DropFetched();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(SnapshotShelfTest, TheNextAgentOfTheNodeTakesItOver) {
  auto first = *Open();
  Put(*first, {3, 11, 1});
  Spill(first->FetchedPath({3, 11, 2}, 0), "a part of one");
  // It lives.
  const auto second = Open();
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_THAT(Message(second.status()), HasSubstr("this node has one already"));
  first.reset();
  const auto third = *Open();
  EXPECT_THAT(third->Holdings(), ElementsAre(Holding{3, 11, 1}));
  EXPECT_FALSE(std::filesystem::exists(third->FetchedPath({3, 11, 2}, 0)));
}

// Also when its agent was killed.
TEST_F(SnapshotShelfTest, TheLockOfTheDeadIsFree) {
  ASSERT_OK(RunInChildren(1, [&](int) {
    const auto shelf = *Open();
    Put(*shelf, {3, 11, 1});
    ::_exit(0);
    return absl::OkStatus();
  }));
  EXPECT_THAT((*Open())->Holdings(), ElementsAre(Holding{3, 11, 1}));
}

TEST_F(SnapshotShelfTest, WhatOtherJobsOfTheRunHaveLeftGoes) {
  auto dead = *Open(6);
  Put(*dead, {1, 5, 0});
  dead.reset();
  const auto living = *Open(5);
  Put(*living, {1, 5, 0});
  auto other_run = *Open(6, 2, std::string(32, 'e'));
  other_run.reset();
  auto neighbour = *Open(7, 3);  // Of this very job: it will be back.
  neighbour.reset();
  std::filesystem::create_directory(directory_.path() + "/perdure-0123456789ab-1-n0");
  std::filesystem::permissions(directory_.path() + "/perdure-0123456789ab-1-n0",
                               std::filesystem::perms::all);  // Not ours alone.
  const auto shelf = *Open(7);
  EXPECT_THAT(Names(), ::testing::UnorderedElementsAre(
                           "perdure-0123456789ab-5-n2", "perdure-eeeeeeeeeeee-6-n2",
                           "perdure-0123456789ab-7-n3", "perdure-0123456789ab-7-n2",
                           "perdure-0123456789ab-1-n0"));
  EXPECT_THAT(living->Holdings(), ElementsAre(Holding{1, 5, 0}));
}

TEST_F(SnapshotShelfTest, NothingIsLeftBehind) {
  const auto shelf = *Open();
  Put(*shelf, {3, 11, 1});
  Spill(shelf->FetchedPath({3, 11, 2}, 0), "a part of one");
  shelf->Remove();
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(SnapshotShelfTest, WhatIsNotOursAloneIsRefused) {
  const std::string path = directory_.path() + "/perdure-0123456789ab-7-n2";
  std::filesystem::create_directory(path);
  std::filesystem::permissions(path, std::filesystem::perms::all);
  EXPECT_THAT(Message(Open().status()), HasSubstr("of this user alone"));
  std::filesystem::remove(path);
  std::filesystem::create_directory(directory_.path() + "/mine");
  std::filesystem::create_directory_symlink(directory_.path() + "/mine", path);
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().status()));
  std::filesystem::remove(path);
  Spill(path, "a file");
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().status()));
}

TEST_F(SnapshotShelfTest, WrongOptions) {
  EXPECT_TRUE(absl::IsInvalidArgument(Open(7, 2, "short").status()));
  EXPECT_THAT(
      Message(SnapshotShelf::Open({.directory = directory_.path() + "/nowhere", .run_id = kRun})
                  .status()),
      HasSubstr("nowhere"));
}

// Two agents of a node that both start while the one before is being removed: one has it.
TEST_F(SnapshotShelfTest, OneOfManyHasIt) {
  for (int round = 0; round < 50; ++round) {
    std::unique_ptr<SnapshotShelf> shelves[4];
    std::vector<std::thread> threads;
    for (auto& shelf : shelves)
      threads.emplace_back([&] {
        if (auto opened = Open(); opened.ok()) shelf = *std::move(opened);
      });
    for (std::thread& thread : threads) thread.join();
    int have = 0;
    for (auto& shelf : shelves) {
      have += shelf != nullptr;
      if (shelf != nullptr) shelf->Remove();
    }
    ASSERT_EQ(have, 1) << round;
    ASSERT_THAT(Names(), IsEmpty());
  }
}

}  // namespace
}  // namespace perdure
