// What people see of a job while it runs: loss.csv, journal.jsonl, status.json, lines on the
// terminal.
#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/local_ranks.h"
#include "launch/step_lines.h"
#include "monitoring/journal.h"
#include "monitoring/loss_csv.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"
#include "runtime/train/trainer.h"

namespace perdure {

class JobRecord {
 public:
  static absl::StatusOr<std::unique_ptr<JobRecord>> Open(const std::string& run_directory,
                                                         const RunConfig& config,
                                                         uint64_t generation, int64_t resume_step,
                                                         int64_t nodes, bool quiet);

  void Say(const std::string& line);  // On stderr, above the progress line.
  // A failed write of a record is said once and does not stop training.
  void Event(std::string_view event, const nlohmann::json& fields);
  void Step(const StepReport& report);
  // state: starting, running, stopping, complete, stopped, failed.
  void State(const std::string& state, const std::vector<LocalRank>& ranks);

 private:
  JobRecord(std::string run_directory, const RunConfig& config, uint64_t generation, int64_t nodes,
            bool quiet);
  void WriteStatus(bool force);
  void Warn(const absl::Status& status);

  std::string run_directory_;
  RunConfig config_;
  StepSchedule schedule_;
  uint64_t generation_;
  int64_t nodes_;
  StepLine line_;
  bool warned_ = false;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<LossCsv> loss_csv_;
  nlohmann::ordered_json status_;
  std::chrono::steady_clock::time_point status_written_;
};

}  // namespace perdure
