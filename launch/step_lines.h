// What a finished step looks like to people: its row of loss.csv, its line on the terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "monitoring/loss_csv.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/run_config.h"

namespace perdure {

// A step that is told again (report.seconds 0) took no time that is known: 0 tokens a second.
LossRow LossRowOf(const RunConfig& config, uint64_t generation, int64_t ranks,
                  const StepReport& report);

// On stderr: one line that rewrites itself on a terminal, elsewhere one now and then. One thread.
class StepLine {
 public:
  StepLine(const RunConfig& config, bool quiet);
  void Show(const StepReport& report);
  // A line above it. `others` may have left theirs open: several processes of a job write.
  void Say(const std::string& line, bool others);
  // What comes next begins a line.
  void Close();

 private:
  const RunConfig config_;
  const int64_t steps_;
  const bool quiet_, terminal_;
  bool open_ = false;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace perdure
