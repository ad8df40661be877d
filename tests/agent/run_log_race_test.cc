#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

constexpr int kWriters = 4;
constexpr uint64_t kSlots = 200;

// Appends records of its own until the log has kSlots; every writer aims at the same slot again and
// again. Returns the slots that it was told it has won, or nothing when something else than losing
// went wrong.
std::optional<std::vector<uint64_t>> Race(const std::string& run, int writer) {
  auto log = RunLog::Open(run);
  if (!log.ok()) return std::nullopt;
  std::vector<uint64_t> won;
  while (log->next_slot() < kSlots) {
    const uint64_t slot = log->next_slot();
    const absl::Status status = log->Append(RecordType::kEnd, 0, SerializeEnd({"race", writer, 0}));
    if (status.ok()) {
      won.push_back(slot);
      continue;
    }
    if (!absl::IsAborted(status) || !log->Refresh().ok() || log->next_slot() == slot)
      return std::nullopt;
  }
  return won;
}

// Each slot was won by exactly the writer whose record stands there.
void ExpectOneWinnerEach(const std::string& run,
                         const std::map<int, std::vector<uint64_t>>& won_by_writer) {
  const auto log = RunLog::Open(run);
  ASSERT_OK(log.status());
  std::map<uint64_t, int> winner;
  for (const auto& [writer, slots] : won_by_writer)
    for (const uint64_t slot : slots) {
      EXPECT_TRUE(winner.emplace(slot, writer).second) << "two winners of slot " << slot;
      EXPECT_EQ(ParseEnd(log->records()[slot].body)->exit_code, writer);
    }
  EXPECT_EQ(winner.size(), log->next_slot());
  EXPECT_GE(log->next_slot(), kSlots);
  EXPECT_TRUE(std::filesystem::is_empty(run + "/tmp"));
}

TEST(RunLogRace, ThreadsHaveOneWinnerPerSlot) {
  const TestDirectory directory;
  std::map<int, std::vector<uint64_t>> won;
  for (int writer = 0; writer < kWriters; ++writer) won[writer];
  std::vector<std::thread> threads;
  for (int writer = 0; writer < kWriters; ++writer)
    threads.emplace_back([&, writer] {
      const auto slots = Race(directory.path(), writer);
      ASSERT_TRUE(slots.has_value());
      won[writer] = *slots;
    });
  for (std::thread& thread : threads) thread.join();
  ExpectOneWinnerEach(directory.path(), won);
}

TEST(RunLogRace, ProcessesHaveOneWinnerPerSlot) {
  const TestDirectory directory;
  const std::string run = directory.Make("run");
  std::vector<pid_t> children;
  for (int writer = 0; writer < kWriters; ++writer) {
    const pid_t child = ::fork();
    if (child == 0) {
      const auto slots = Race(run, writer);
      std::string text;
      for (const uint64_t slot : slots.value_or(std::vector<uint64_t>{}))
        text += fmt::format("{}\n", slot);
      Spill(fmt::format("{}/{}", directory.path(), writer), text);
      ::_exit(slots.has_value() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  std::map<int, std::vector<uint64_t>> won;
  for (int writer = 0; writer < kWriters; ++writer) {
    std::istringstream text(Slurp(fmt::format("{}/{}", directory.path(), writer)));
    for (uint64_t slot; text >> slot;) won[writer].push_back(slot);
  }
  ExpectOneWinnerEach(run, won);
}

// All who open a new run at once agree on its key.
TEST(RunLogRace, OneKeyIsMade) {
  for (int round = 0; round < 20; ++round) {
    const TestDirectory directory;
    std::array<std::string, kWriters> ids;
    std::vector<std::thread> threads;
    for (std::string& id : ids)
      threads.emplace_back([&] {
        const auto log = RunLog::Open(directory.path());
        ASSERT_OK(log.status());
        id = log->run_id();
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(std::set(ids.begin(), ids.end()).size(), 1u);
  }
}

}  // namespace
}  // namespace perdure
