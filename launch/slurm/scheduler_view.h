// What the scheduler says of jobs, nodes, partitions and itself, as values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

// Slurm's words for what a job is doing, or how it ended.
enum class JobState {
  kBootFail,
  kCancelled,
  kCompleted,
  kCompleting,
  kConfiguring,
  kDeadline,
  kFailed,
  kNodeFail,
  kOutOfMemory,
  kPending,
  kPreempted,
  kRequeued,
  kRequeueHeld,
  kResizing,
  kRevoked,
  kRunning,
  kSignaling,
  kSpecialExit,
  kStageOut,
  kStopped,
  kSuspended,
  kTimeout,
  kOther,  // A word that this version does not know: JobView::state_word has it.
};

// From "NODE_FAIL", "CANCELLED by 1000", "PENDING+" and the like.
JobState ParseJobState(std::string_view word);
// Whether such a job never runs again, unless somebody requeues it. Not kCompleting, kOther.
bool IsOver(JobState state);

struct JobExit {
  int code = 0;    // Of the batch script.
  int signal = 0;  // 0: none.

  bool operator==(const JobExit&) const = default;
};

// One job, or those elements of an array that are pending as one.
struct JobView {
  int64_t id = 0;
  int64_t array_job_id = 0;  // 0: no array.
  std::string array_task;    // "4"; "5-53%1" of elements that are pending as one.
  std::string name, user;
  JobState state = JobState::kOther;
  std::string state_word;    // As printed.
  std::string reason;        // Why it is pending, or ended; empty: "None".
  std::string partition;     // A pending job may have several, with commas.
  std::string account, qos;  // Empty: none.
  // Nodes it has; of a pending job the fewest and the most it asks for, 0: it is not said, as after
  // a requeue. Before 23.02 the fewest may be an estimate from tasks and processors.
  int nodes_min = 0;
  int nodes_max = 0;
  std::vector<std::string> nodes;  // What it has now, less nodes that were removed.
  // Where the batch script was started. It stays when that node is removed from the job: a running
  // job whose batch host is not among `nodes` has lost it.
  std::string batch_host;
  std::optional<absl::Time> submitted, eligible;
  std::optional<absl::Time> start;  // Of a pending job when the scheduler expects to start it.
  std::optional<absl::Time> end;    // Of a running job when its time is over.
  std::optional<absl::Duration> time_limit;  // Infinite if there is none; absent: partition's.
  int64_t priority = 0;                      // 0 means held.
  std::string dependency;                    // What it still waits for, in Slurm's words.
  std::vector<std::string> excluded;         // Nodes it must not get.
  // The node whose loss ended or requeued it, where Slurm says so (from 23.02 on).
  std::string failed_node;
  // Only Scheduler::Job knows these, and failed_node; `nodes_max` of a pending job and `eligible`
  // likewise.
  std::optional<int> restarts;
  std::optional<JobExit> exit;
  std::optional<bool> requeue;  // Whether a lost node or a preemption has it requeued.

  bool batch_host_lost() const;

  bool operator==(const JobView&) const = default;
};

// What sinfo says about a node.
struct NodeView {
  std::string name;
  std::string state;  // "idle", "allocated", "mixed", "down", "drained", "draining", …
  // Marks behind the state: '*' does not answer, '~' powered off, '#' powering up, '$' reserved for
  // maintenance, '@' to be rebooted, '-' promised to a job, …
  std::string marks;
  std::string reason;  // Of a node that is down or drained: whoever set it wrote it. Else empty.

  bool down() const;     // Not to be had before somebody acts.
  bool drained() const;  // No new jobs: draining or drained.

  bool operator==(const NodeView&) const = default;
};

struct PartitionView {
  std::string name;
  std::string state;  // "UP", "DOWN", "DRAIN", "INACTIVE".
  bool is_default = false;
  absl::Duration time_max = absl::InfiniteDuration();
  std::optional<absl::Duration> time_default;  // Absent: as time_max.
  int nodes_min = 0;
  std::optional<int> nodes_max;  // Absent: no limit.
  int nodes_total = 0;
  std::vector<std::string> nodes;
  // Absent: everybody. Accounts may be named by denial instead.
  std::optional<std::vector<std::string>> accounts, accounts_denied, qos_allowed, qos_denied;
  std::string qos;  // Whose limits hold for all jobs of the partition; empty: none.
  std::string preempt_mode;
  absl::Duration over_time_limit;  // Infinite if jobs are never ended for their limit.

  bool operator==(const PartitionView&) const = default;
};

// How much of what Slurm counts may be used; absent: no limit.
struct ResourceLimits {
  std::optional<int64_t> nodes, gpus, cpus;

  bool operator==(const ResourceLimits&) const = default;
};

struct QosView {
  std::string name;
  int64_t priority = 0;
  std::optional<absl::Duration> wall_max;                  // Of a job.
  ResourceLimits job_max;                                  // Of a job.
  ResourceLimits user_max;                                 // Of a user's running jobs together.
  std::optional<int64_t> user_jobs_max;                    // Running at a time, of a user.
  std::optional<int64_t> user_submit_max;                  // Pending and running, of a user.
  ResourceLimits group_max;                                // Of all jobs of the QoS together.
  std::string flags;                                       // With commas.
  std::string preempt_mode;                                // Empty or "cluster": the cluster's.

  // Whether its limits go before those of a partition's QoS.
  bool before_partition() const;

  bool operator==(const QosView&) const = default;
};

// What an account gives a user, with what it has from the accounts above it. One of a partition is
// for jobs there, before the one of none.
struct AssociationView {
  std::string user, default_account;  // The user's.
  std::string cluster, account;
  std::string partition;                   // Empty: of any.
  std::string default_qos;                 // Empty: "normal".
  std::vector<std::string> qos;            // That it may use.
  std::optional<absl::Duration> wall_max;  // Of a job.
  ResourceLimits job_max;                  // Of a job.
  std::optional<int64_t> jobs_max;         // Running at a time.
  std::optional<int64_t> submit_max;       // Pending and running.
  ResourceLimits group_max;                // Of all its jobs together.

  bool operator==(const AssociationView&) const = default;
};

struct SchedulerConfig {
  std::string version;  // "22.05.8"
  std::string cluster;
  absl::Duration kill_wait;        // Between SIGTERM and SIGKILL at the time limit.
  bool job_requeue = false;        // What jobs get that say neither --requeue nor --no-requeue.
  int array_size_max = 0;          // An array's highest index is one less.
  absl::Duration slurmd_timeout;   // After which a silent node is down.
  absl::Duration job_age_min;      // After which an ended job may be forgotten.
  std::string accounting;          // "accounting_storage/none": no history, no QoS.
  std::string enforced;            // "associations,limits,qos": what of it jobs are held to.
  std::string preempt_mode;        // "OFF", "REQUEUE", …
  absl::Duration over_time_limit;  // Infinite if jobs are never ended for their limit.

  bool operator==(const SchedulerConfig&) const = default;
};

// A job of the accounting database.
struct PastJob {
  int64_t id = 0;
  int nodes = 0;
  JobState state = JobState::kOther;
  std::string state_word;
  JobExit exit;
  std::optional<absl::Time> submitted, eligible, start, end;
  std::optional<absl::Duration> time_limit;
  // From being eligible to its start: what sacct calls Reserved, from 23.02 on Planned.
  std::optional<absl::Duration> waited() const;

  bool operator==(const PastJob&) const = default;
};

}  // namespace perdure
