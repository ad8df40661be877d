// The stage of scheduler_*_test.cc: what the chain of jobs relies on, shown by the real scheduler.
// One cluster for all cases of a process; each has a folder of its own, and leaves the nodes idle.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/cluster/slurm_cluster.h"

namespace perdure {

class SchedulerFacts : public testing::Test {
 protected:
  using JobId = SlurmCluster::JobId;

  // Partitions: main (default; 10 minutes where a job says nothing), preemptable by urgent with
  // two seconds' notice; small has narrow limits.
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;
  void TearDown() override;

  SlurmCluster& cluster() { return *cluster_; }
  // Where this case's jobs run.
  const std::string& folder() const { return folder_; }
  std::string File(const std::string& name) const;  // Its text; "" when it is not there.
  void Write(const std::string& name, const std::string& text) const;

  // The case fails when sbatch does; 0 then.
  JobId Submit(const std::vector<std::string>& options, const std::string& script);
  JobId SubmitAs(std::optional<uid_t> user, const std::vector<std::string>& options,
                 const std::string& script);
  CommandResult Run(const std::vector<std::string>& argv);
  CommandResult RunAs(std::optional<uid_t> user, const std::vector<std::string>& argv);
  // `squeue -h -t all -j JOB -o FORMAT`, without the end of line.
  std::string Queue(JobId job, const std::string& format);

  testing::AssertionResult Reaches(JobId job, const std::vector<std::string>& states,
                                   absl::Duration timeout = absl::Minutes(1));
  testing::AssertionResult Completes(JobId job) { return Reaches(job, {"COMPLETED"}); }
  // The job's output, a file of this case, has it.
  testing::AssertionResult Prints(JobId job, const std::string& part);
  testing::AssertionResult Appears(const std::string& file, const std::string& part);

  // An ordinary user; none where we cannot be one, then we are it ourselves.
  static std::optional<uid_t> Somebody();

 private:
  static std::unique_ptr<SlurmCluster> cluster_;
  std::string folder_;
};

}  // namespace perdure
