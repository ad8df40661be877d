// What tests of chains stand on: a cluster of the test's own, a run that is submitted to it, and
// what is to be seen of both.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/cluster/slurm_cluster.h"

namespace perdure {

class ChainTest : public testing::Test {
 protected:
  void SetUp() override;
  ~ChainTest() override;

  // Nodes of `options` with one processor for each rank.
  void Begin(SlurmClusterOptions options);
  // Whoever submits from now on and looks at the run; only root may become somebody.
  void Become(uid_t user);

  // ---- Commands, on the run

  // nano with `base_` and `more`, as arguments of submit or run.
  std::vector<std::string> Settings(const std::vector<std::string>& more) const;
  CommandResult Submit(const std::vector<std::string>& settings,
                       const std::vector<std::string>& options = {}) const;
  CommandResult PerdureOf(const std::string& command,
                          const std::vector<std::string>& more = {}) const;
  // `perdure nodes` in these words; its verdict on `node` is in the answer of the one that lists.
  CommandResult Nodes(const std::vector<std::string>& words) const;
  std::string VerdictOn(const std::string& node) const;
  // What a notice of Slurm's does, too: the job that began last leaves with a checkpoint, and the
  // next one begins.
  bool Leave() const;

  // ---- What is to be seen

  std::string run() const { return folder_ + "/run"; }
  nlohmann::json Status() const;
  // What the chain tells of each start of a job, in their order.
  std::vector<nlohmann::json> Jobs() const;
  // Everything that the jobs have printed, for whoever looks why a test has failed.
  std::string Story() const;
  // Each of these waits. False: it has not come to that in time.
  bool AwaitComplete(absl::Duration timeout) const;
  bool AwaitJobs(size_t count) const;
  bool AwaitStep(int64_t step) const;
  // Steps are made on so many nodes, by a generation that was not there when this was asked before.
  bool AwaitTrainingOn(int64_t nodes);
  int64_t Step() const;  // The newest that was told; -1: none was.

  // ---- Whole tests

  // Submits, hurts the run once it has come to that step, and waits until it is complete.
  void RunThrough(const std::vector<std::string>& settings, int64_t step,
                  const std::function<absl::Status()>& hurt);
  // Of a run of one job that had lost its batch host when it became complete.
  void ExpectEndedWithoutBatchHost() const;
  // The same run on this machine alone, undisturbed, on two ranks: the same bits.
  void ExpectSameAsUndisturbed(const std::vector<std::string>& settings) const;

  // nano on nodes of one rank, which all are this machine.
  std::vector<std::string> base_;
  int ranks_per_node_ = 1;
  std::string folder_;
  std::unique_ptr<SlurmCluster> cluster_;

 private:
  CommandResult Run(const std::vector<std::string>& argv) const;

  std::optional<uid_t> user_;
  size_t generations_ = 0;  // That AwaitTrainingOn has seen.
};

}  // namespace perdure
