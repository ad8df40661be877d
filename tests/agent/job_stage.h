// Whole jobs on loopback: agents, coordinator, run log, checkpoints and rank processes as they are,
// with a model of a few thousand parameters. The agents live in one loop, the test's; the ranks are
// its children (tests/agent/tiny_rank.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/agent/agent.h"
#include "runtime/agent/process_ranks.h"
#include "runtime/agent/run_checkpoints.h"
#include "runtime/train/run_config.h"
#include "tests/ckpt/test_state.h"

namespace perdure {

// The configuration that a stage's text names: "SAMPLES TRANSPORT", or "SAMPLES TRANSPORT forgets"
// for one without snapshots. The rank's program reads it, too.
absl::StatusOr<RunConfig> StageConfig(const std::string& text);

struct JobNode {
  std::unique_ptr<SnapshotShelf> shelf;
  std::unique_ptr<RunCheckpoints> store;
  std::unique_ptr<ProcessRanks> ranks;
  std::unique_ptr<Agent> agent;
  std::optional<int> exit_code;
  bool ended = false;  // Its processes, too.
};

class JobStage {
 public:
  // `samples`: of the first phase, ten a step but for the first few.
  explicit JobStage(int samples);
  ~JobStage();
  // This build has no transport between processes.
  static bool Possible();

  // What every agent is told, to be changed before nodes come.
  AgentOptions options;
  ProcessRanksOptions ranks;

  JobNode& Start(NodeId node);
  void Kill(NodeId node);  // Its agent and its ranks are gone; its memory is as it was.
  JobNode& at(NodeId node) { return nodes_.at(node); }
  pid_t PidOf(NodeId node, int32_t local_rank = 0);

  // Rounds of the loop until `done`; false after a time that is long even under sanitizers.
  bool Until(const std::function<bool()>& done, absl::Duration within = absl::Seconds(120));
  // Until all nodes that live have exited; the code of the last.
  int Completed();

  struct Step {
    Generation generation = 0;
    StepReport report;
  };
  std::vector<Step> steps;  // As rank 0 told them.
  // Called with each of them.
  std::function<void(const Step&)> on_step;
  std::vector<std::pair<NodeId, RankFailure>> failures;
  std::map<Generation, std::vector<pid_t>> pids;  // Of its ranks, by rank, when it has begun.

  std::vector<Record> Records() const { return RunLog::Open(run())->records(); }
  std::vector<StartRecord> Starts() const;
  CommitRecord LastCommit() const;
  std::string run() const { return directory_.path() + "/run"; }
  std::string shelves() const { return shelves_.path(); }
  std::string Story() const;

 private:
  void OnStep(Generation generation, const StepReport& report);

  const TestDirectory directory_, shelves_;
  const std::unique_ptr<EventLoop> loop_;
  OomKills oom_;
  std::unique_ptr<ControlLog> log_;
  std::string run_id_;
  std::map<NodeId, JobNode> nodes_;
  std::vector<std::unique_ptr<RunCheckpoints>> stores_;  // Of nodes that were killed.
  std::vector<std::string> story_;
};

}  // namespace perdure
