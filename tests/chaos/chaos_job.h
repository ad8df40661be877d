// A job of real processes that something is done to: the built `perdure`, a small model on four
// nodes of two ranks (tensor 2, pipeline 2, data 2), so that a node is a quarter of the layout and
// half of a replica.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "monitoring/loss_csv.h"

namespace perdure {

inline constexpr int64_t kChaosSteps = 40;

// What a run came to.
struct ChaosEnd {
  int exit_code = -1;
  std::string certificate;
  std::vector<std::string> loss_bits;  // By step, from 1.
};

ChaosEnd ChaosEndOf(const std::string& run, int exit_code);

// `perdure run` of the small model in RUN, to step `until`, with data of WriteNanoData in
// FOLDER.
std::vector<std::string> SmallModel(const std::string& run, const std::string& folder,
                                    int64_t until = kChaosSteps);

// The same run, undisturbed, on one rank.
ChaosEnd Undisturbed(const std::string& folder, const std::vector<std::string>& more = {},
                     int64_t until = kChaosSteps);

class ChaosJob {
 public:
  // Starts it in FOLDER/run, with data of WriteNanoData in FOLDER.
  ChaosJob(const std::string& folder, const std::vector<std::string>& more,
           int64_t ranks_per_node = 2, int64_t until = kChaosSteps);
  ~ChaosJob();  // Kills what is left.
  ChaosJob(const ChaosJob&) = delete;
  ChaosJob& operator=(const ChaosJob&) = delete;

  const std::string& run() const { return run_; }
  // Steps that are finished.
  int64_t Step() const;
  // False: it has ended, or a minute has passed.
  bool AwaitStep(int64_t step);
  bool AwaitEvent(const std::string& name, const std::string& part, absl::Duration within);
  // A checkpoint is being written. False: none was within a minute.
  bool AwaitOpenCheckpoint() const;
  nlohmann::json Status() const;

  // As the node says it; 0: it has none, or has not said it.
  int Agent(int64_t node) const;
  std::vector<int> Ranks(int64_t node) const;
  int64_t Coordinator() const;
  // The node `places` behind the coordinator's among those that do something, in a circle.
  int64_t Behind(int64_t places) const;
  // That agent; all processes of that node. The test fails where there is none.
  void SignalAgent(int64_t node, int signal) const;
  void SignalNode(int64_t node, int signal) const;

  // Asks it to end: with a checkpoint, and exit code 75.
  void Stop() const;
  ChaosEnd Wait();
  std::string Errors() const;

 private:
  nlohmann::json Member(int64_t node) const;

  const std::string run_, errors_;
  int pid_ = 0;
};

}  // namespace perdure
