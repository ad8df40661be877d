// A job as its coordinator and ranks do it, without processes: start from the newest checkpoint,
// write, join, read back, publish, retire. For tests that break it at every place.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "ckpt/checkpoint.h"
#include "runtime/agent/publish.h"
#include "runtime/agent/run_log.h"
#include "runtime/agent/start_checkpoint.h"
#include "tests/ckpt/test_state.h"

namespace perdure {

// The state that a run has at `step`, of tensors of a few hundred elements.
const AtomTable& CycleTable();
TestState CycleState(int64_t step);

class RunCycle {
 public:
  struct Options {
    int writers = 1;  // Of the part file.
    KeepRule keep = {.keep_last = 2};
  };
  explicit RunCycle(std::string run_directory) : RunCycle(std::move(run_directory), Options()) {}
  RunCycle(std::string run_directory, const Options& options);

  // Opens the run and loads the newest checkpoint that is good, as a job does.
  absl::Status Start();
  // The step that it resumes; -1: none.
  int64_t step() const { return step_; }
  // Good steps have followed the load.
  absl::Status Ran();
  // OK: the state of `step` is kept for good, which may be told to everybody.
  absl::Status Save(int64_t step);
  // The job can go on no more: another one has taken the run over, or the log fails.
  bool lost() const { return lost_; }
  absl::Status End(int exit_code = 0);
  RunLog& log() { return *log_; }
  // Of the checkpoint that Save wrote last.
  const std::string& name() const { return name_; }

 private:
  absl::Status Load(const StartCheckpoint& start);
  absl::Status StartFrom(const std::optional<StartCheckpoint>& start);
  absl::StatusOr<PartReport> Write(const std::string& directory, int64_t step);
  absl::Status Append(RecordType type, const std::string& body);
  absl::Status Attempt(int64_t step);
  void Retire();

  const std::string run_;
  const Options options_;
  std::optional<RunLog> log_;
  uint64_t generation_ = 0;
  uint32_t nonce_ = 0;
  int64_t step_ = -1;
  std::string base_, name_;
  bool lost_ = false;
};

// A new process's view: the log opens; every checkpoint that it names, and that was not let go, is
// whole and has the state of its step (but those that `some_gone` allows to be missing altogether);
// there are at least two. Returns the newest step.
int64_t CheckRun(const std::string& run_directory, bool some_gone = false);

// A run with four checkpoints, of steps 1 to 4, the older two retired.
void MakeCycleRun(const std::string& run_directory);

}  // namespace perdure
