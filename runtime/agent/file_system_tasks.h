// Several probing tasks, on nodes of their own say: how they meet, through files of one directory
// alone, and what they find out together.
//
// Every task calls the same things in the same order, in its probing process.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/file_system_checks.h"

namespace perdure {

class TaskMeeting {
 public:
  // `directory` is there, the same in all tasks. `self` is what others shall know of this task.
  TaskMeeting(std::string directory, const ProbeOptions& options, nlohmann::json self,
              std::function<void()> alive);

  // All tasks have come. An error says who has not, or that somebody else uses this token.
  absl::Status Begin();
  // All tasks have come to `point`, a new name.
  absl::Status Meet(const std::string& point);
  // Says something once, under a new name, and waits for what somebody says.
  absl::Status Say(const std::string& name, const nlohmann::json& what) const;
  absl::StatusOr<nlohmann::json> Await(const std::string& name) const;

  const std::string& directory() const { return directory_; }
  int task() const { return task_; }
  int tasks() const { return tasks_; }
  // What task `k` said of itself in Begin, host and user among it; {} before. For task 0 alone.
  const nlohmann::json& Self(int k) const { return selves_[static_cast<size_t>(k)]; }
  std::string NameOf(int k) const;  // "task 1 (host b)"

 private:
  absl::Status GatherSelves();
  absl::StatusOr<nlohmann::json> AwaitUntil(const std::string& name, double deadline) const;

  const std::string directory_;
  const int task_, tasks_;
  const double wait_seconds_;
  const std::function<void()> alive_;
  nlohmann::json self_;
  std::vector<nlohmann::json> selves_;
};

// What one task saw in the experiments that all take part in.
struct TaskSight {
  std::vector<RaceView> race;        // By slot.
  std::vector<double> seen_seconds;  // Of names this task made: until all others had seen each.
  int torn = 0;                      // Files that were seen before they were whole,
  double torn_seconds = 0;           // and for how long, at most.
  unsigned owner_of_others = 0;      // Who owns a file that task 0 made.
};
nlohmann::json ToJson(const TaskSight& sight);
// DataLoss: that is none.
absl::StatusOr<TaskSight> SightFromJson(const nlohmann::json& json);

// The names of the checks across tasks, in order.
std::vector<std::string> TaskCheckNames();
absl::StatusOr<TaskSight> LookTogether(TaskMeeting& meeting);
// By task 0, from what every task saw and found.
std::vector<ProbeCheck> JudgeTogether(const TaskMeeting& meeting,
                                      const std::vector<TaskSight>& sights,
                                      const std::vector<std::vector<ProbeCheck>>& checks);

}  // namespace perdure
