// Starts the agents of a job's nodes that are on this machine, starts them again when they die,
// tells them to stop, and outlives them: when Run returns, none of their processes is left. What
// the job is, and when it is over, is the agents' to know; the run log says it.
//
// Its loop's thread calls everything.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/control/ids.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

struct AgentLauncherOptions {
  std::string speaker;  // Who says its lines: "perdure run".
  std::string run_directory, data_directory;
  std::string snapshot_directory;      // [snapshot] directory.
  uint64_t job = 0;                    // JobStart.
  std::vector<NodeId> nodes;           // Those of this machine,
  int64_t nodes_of_job = 1;            // and how many there are.
  int64_t cores = 1;                   // That the ranks of one node share.
  std::vector<std::string> arguments;  // Of each agent beside those that follow from the above.
  std::vector<std::pair<int, int>> descriptors;  // As of ProcessOptions.
  bool restart_agents = true;                    // False: a node whose agent died stays away.
  bool hurries = true;  // A second SIGTERM means at once; a batch system may repeat the first.
};

class AgentLauncher {
 public:
  // `loop` and `log` outlive it.
  AgentLauncher(AgentLauncherOptions options, EventLoop* loop, RunLog* log);

  // An error: not all could be started, or the log cannot be read. REQUIRES: called once.
  absl::Status Run();
  // Of the job, as Run has read it; nothing: it has not ended, and why() says why we have left.
  std::optional<EndRecord> End() const;
  const std::string& why() const { return why_; }

 private:
  struct Node {
    std::unique_ptr<SupervisedProcess> agent;
    absl::Time started;
    absl::Duration restart_after;
    EventLoop::TimerId restart;
  };

  absl::Status StartAgent(size_t index);
  void Ended(size_t index, const ProcessEnd& end);
  void OnSignal(int signal);
  void Leave(absl::Duration patience);
  void Say(const std::string& line) const;
  bool AnyLives() const;

  const AgentLauncherOptions options_;
  EventLoop* const loop_;
  RunLog* const log_;
  OomKills oom_;
  std::vector<Node> nodes_;
  int short_lives_ = 0;
  bool leaving_ = false;  // No agent is started again.
  bool asked_ = false;    // To stop.
  std::string why_;
};

// Of that job; nothing: it has not ended.
std::optional<EndRecord> EndOf(const RunLog& log, uint64_t job);

}  // namespace perdure
