// What people see of a job while it runs: loss.csv, journal.jsonl, status.json, jobs/<job>/, lines
// on the terminal.
//
// Every agent has one. Events and lines are anybody's; steps are told by the agent of rank 0, the
// job by the one that coordinates. Nothing is read here to decide.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/step_lines.h"
#include "monitoring/journal.h"
#include "monitoring/loss_csv.h"
#include "runtime/control/ids.h"
#include "runtime/train/rank_host.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"

namespace perdure {

class AgentRecord {
 public:
  static absl::StatusOr<std::unique_ptr<AgentRecord>> Open(const std::string& run_directory,
                                                           const RunConfig& config, bool quiet);

  void Say(const std::string& line);  // On stderr, above the progress line.
  // A failed write of a record is said once and does not stop training.
  void Event(std::string_view event, const nlohmann::json& fields);
  // A row of loss.csv. The first one of a generation drops those that are behind it; one that is
  // told again is written if it is missing.
  void Step(uint64_t generation, int64_t ranks, const StepReport& report);
  // What the job does: status.json, with what is the same for all of it. Written when it changes.
  // How long the generation's first step took, where this coordinator has not seen it, as the one
  // before has told there.
  void Job(const nlohmann::json& state);
  // What a node runs: <directory>/node-00003.json; likewise.
  void Node(const std::string& directory, const nlohmann::json& node);
  // What `nodes` have said there last; those that have not are missing.
  static std::vector<nlohmann::json> ReadNodes(const std::string& directory,
                                               const std::vector<NodeId>& nodes);

 private:
  AgentRecord(std::string run_directory, const RunConfig& config, bool quiet);
  void OpenLosses(uint64_t generation, int64_t resume_step);
  nlohmann::json FirstStepTold(const nlohmann::json& state) const;
  void Warn(const absl::Status& status);

  const std::string run_directory_;
  const RunConfig config_;
  const StepSchedule schedule_;
  StepLine line_;
  bool warned_ = false;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<LossCsv> loss_csv_;  // While rank 0 is of this node.
  uint64_t generation_ = 0;            // Of its rows,
  int64_t last_row_ = 0;               // and the step of the last one.
  // The loss_bits that were there when it began to tell steps again, from the first of these on.
  std::map<int64_t, std::string> rows_;
  nlohmann::json job_, node_;  // As written.
};

// status.json as whoever starts a job has it: before an agent speaks (starting), and when none is
// left (complete, stopped, failed).
// `slurm_job`: Slurm's number of it; 0: none.
absl::Status RecordState(const std::string& run_directory, const RunConfig& config,
                         const std::string& state, int64_t slurm_job = 0);

// Whether a job whose status names that state has processes.
bool JobLives(std::string_view state);

// What `perdure status` shows: status.json with the newest step and what each node runs. The state
// is "lost" where whoever started the job is gone: of Slurm's jobs `slurm_lives` knows that, or,
// where it is empty or answers nothing, nobody. NotFound: no job has begun. DataLoss: it is no
// status.
using SlurmLives = std::function<std::optional<bool>(int64_t slurm_job)>;
absl::StatusOr<nlohmann::ordered_json> ReadStatus(const std::string& run_directory,
                                                  const SlurmLives& slurm_lives = {});

}  // namespace perdure
