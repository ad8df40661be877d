// RunCheckpoints as an agent drives it, on a real run directory, with part files as ranks write
// them. The test is coordinator and ranks: two nodes of one rank each, two replicas, unless it says
// otherwise.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/agent/control_log.h"
#include "runtime/agent/run_checkpoints.h"
#include "tests/ckpt/test_state.h"

namespace perdure {

// A model of a few thousand parameters; two phases of ten and five steps.
RunConfig DeskConfig();

class CheckpointDesk {
 public:
  explicit CheckpointDesk(const std::string& run_directory, const RunConfig& config = DeskConfig(),
                          bool retry = false);
  ~CheckpointDesk();

  // Rounds of the loop until `done`; false after a time that is long even under sanitizers.
  bool Until(const std::function<bool()>& done);
  // Until everything that was begun is done and what it wants noted is.
  void Settle();

  // This agent has the lead, or lost it.
  void Lead();
  void LoseLead();
  // The next generation is begun, of `data` replicas on as many nodes; from `checkpoint` (packed).
  void Start(const std::string& checkpoint = "", int32_t data = 2);
  // Its ranks have addresses.
  void Present(const std::string& checkpoint = "");
  // The next question which checkpoint to load; none: no answer came.
  std::optional<Coordinator::CheckpointChosen> Choose(const std::string& bad = "");
  // Chooses, starts, is present: the step that is loaded. -1: the run begins; -2: none may be.
  StepIndex Load();

  bool Measure(StepIndex step);
  // What each member's ranks wrote of the state at `step`.
  std::vector<NodeRuns> Write(StepIndex step, int32_t attempt = 1);
  std::optional<Coordinator::PartsJoined> Join(StepIndex step, std::vector<std::string> packed,
                                               int32_t attempt = 1);
  std::optional<Coordinator::PartsJoined> Join(StepIndex step, const std::vector<NodeRuns>& members,
                                               int32_t attempt = 1);
  // Whether all files are what their reports say, read as ranks do.
  absl::Status Verify(StepIndex step, const Coordinator::PartsJoined& joined, int32_t attempt = 1);
  ControlLog::Filled Commit(const LogEntry& entry, int32_t attempt = 1);
  ControlLog::Filled Commit(StepIndex step, int32_t attempt = 1) {
    return Commit(Entry(EntryKind::kCommit, step), attempt);
  }
  // For the next slot.
  LogEntry Entry(EntryKind kind, StepIndex step = 0);
  // A whole save; its COMMIT is in the log if that is OK. Then notes are made (unless `settles` is
  // false, when what follows is the caller's).
  absl::Status Save(StepIndex step, bool settles = true);
  std::string Name(StepIndex step, int32_t attempt = 1) const;
  std::string PathOf(StepIndex step) const { return run_ + "/ckpt/" + Name(step); }

  // Appends the records that are wanted, and says so.
  void MakeNotes();
  ControlLog::Filled Append(RecordType type, const std::string& body);
  RunLog Log() const { return *RunLog::Open(run_); }
  // "COMMIT s000000002.g1.00000001", without types that all runs have.
  std::vector<std::string> Story() const;
  std::vector<CheckpointEntry> Entries() const { return ListCheckpoints(Log(), run_); }
  bool Warned(const std::string& part) const;
  std::vector<nlohmann::json> Events(const std::string& what) const;

  RunCheckpoints& store() { return *store_; }
  EventLoop& loop() { return *loop_; }
  const AtomTable& table() const { return table_; }

  RunConfig config;
  RunCheckpoints::Hooks hooks;  // To be changed before Open.
  absl::Duration patience = absl::Minutes(2);
  Slot term = 0;
  Generation generation = 0;
  std::vector<std::string> warnings;
  std::deque<uint64_t> tags;  // Wanted, and not yet made.
  bool takes_notes = true;    // There is a coordinator.

  // The first use of the store opens it.
  void Open();

 private:
  struct Layout {
    RunConfig config;
    Writers writers;
  };
  Layout LayoutNow() const;

  const std::string run_;
  const bool retry_;
  const AtomTable table_;
  const std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<RunCheckpoints> store_;
  std::unique_ptr<ControlLog> log_;
  int32_t data_ = 2;
  uint64_t ids_ = 0, questions_ = 0;
  std::vector<std::pair<std::string, nlohmann::json>> events_;
};

// A desk on a new run.
class RunCheckpointsTest : public testing::Test {
 protected:
  // A lead and a generation that begins.
  void Begin() {
    desk_.Lead();
    EXPECT_EQ(desk_.Load(), -1);
  }
  std::string InQuarantine(StepIndex step) const {
    return run_ + "/quarantine/" + desk_.Name(step);
  }
  void Truncate(StepIndex step) {
    std::filesystem::resize_file(desk_.PathOf(step) + "/part-00001.h5", 100);
  }
  std::vector<StepIndex> There() const {
    std::vector<StepIndex> steps;
    for (const auto& entry : std::filesystem::directory_iterator(run_ + "/ckpt"))
      steps.push_back(std::stol(entry.path().filename().string().substr(1)));
    std::sort(steps.begin(), steps.end());
    return steps;
  }

  TestDirectory directory_{MemoryDirectory()};
  const std::string run_ = directory_.Make("run");
  CheckpointDesk desk_{run_};
};

}  // namespace perdure
