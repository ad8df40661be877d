// What a run's files tell of it, over all its jobs, folded as they grow: metrics/loss.csv (the
// steps that count) and journal.jsonl (everything that happened). Metrics and pages are made of it.
//
// A value per run directory; one thread. Nothing is decided by it, and lines that are torn or of
// other versions are passed over. Memory does not grow with the run but by recoveries and jobs.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "monitoring/growing_file.h"
#include "monitoring/loss_csv.h"
#include "monitoring/recoveries.h"

namespace perdure {

class RunHistory {
 public:
  explicit RunHistory(const std::string& run_directory);

  // Reads what was written since the last call. May take long: a file system answers. Files that
  // are not there yet are no error.
  absl::Status Refresh();

  // ---- Steps
  const std::optional<LossRow>& last() const { return last_; }  // The newest that counts.
  int64_t steps_taken() const { return steps_taken_; }          // Those taken again count again.
  int64_t steps_redone() const { return steps_redone_; }
  double productive_seconds() const { return productive_; }  // Of steps that count, each once.
  double taken_seconds() const { return taken_; }            // Of all that were taken.
  double wait_seconds() const { return waited_; }            // Of these, inside communication.
  // How many took at most kStepBounds[i] seconds, and no less than the bound before; the last:
  // more.
  static constexpr double kStepBounds[] = {0.01, 0.03, 0.1, 0.3, 1,  2,  3, 4,
                                           5,    6,    8,   10,  15, 30, 60};
  const std::vector<int64_t>& step_durations() const { return durations_; }
  int64_t rollbacks() const { return rollbacks_; }

  // ---- Failures and recoveries
  const JournalStory& story() const { return story_; }
  std::map<std::string, int64_t> failures() const;    // By kind; "unknown" where nobody knows.
  std::map<std::string, int64_t> recoveries() const;  // By where the state came from.
  // By the parts of `first_step` in the journal: stop, choose, spawn, rendezvous, load, wait,
  // first, before; of failures and changes, not of jobs' starts.
  const std::map<std::string, double>& recovery_seconds() const { return recovery_; }

  // ---- Checkpoints
  struct Checkpoint {
    int64_t step = 0;
    absl::Time time;
    int64_t bytes = 0;
    double seconds = 0;        // From the freezing until all was written and read back, about.
    double stall_seconds = 0;  // Training waited.
  };
  const std::optional<Checkpoint>& last_checkpoint() const { return checkpoint_; }
  int64_t checkpoints_committed() const { return committed_; }
  int64_t checkpoints_failed() const { return failed_; }
  double checkpoint_stall_seconds() const { return stalled_; }

  // ---- Jobs
  struct Job {
    absl::Time began, ended;  // The latter: infinite while it runs.
    std::string outcome;      // complete, stopped, failed; lost: it did not say; empty: it runs.
    int64_t first_step = 0, last_step = 0;
    double starting_seconds = 0;  // Until its first step began.
  };
  const std::vector<Job>& jobs() const { return jobs_; }

  // Where the time of all jobs went, in seconds. Between jobs is `queued`, which no job held.
  struct Goodput {
    double productive = 0, redone = 0, starting = 0, recovering = 0, saving = 0, other = 0;
    double queued = 0;
    double held() const { return productive + redone + starting + recovering + saving + other; }
    double ratio() const { return held() > 0 ? productive / held() : 0; }
  };
  Goodput goodput(absl::Time now) const;

 private:
  void TakeRow(std::string_view line);
  void TakeEvent(std::string_view line);
  void TakeStep(const nlohmann::json& event);
  void TakeFirstStep(const nlohmann::json& event, absl::Time time);
  void BeginJob(absl::Time began);
  void ForgetRows();
  void ForgetEvents();

  GrowingFile rows_file_, events_file_;
  std::optional<LossRow> last_;
  double productive_ = 0;

  JournalStory story_;
  int64_t steps_taken_ = 0, steps_redone_ = 0, newest_step_ = 0, rollbacks_ = 0;
  double taken_ = 0, waited_ = 0;
  std::vector<int64_t> durations_;
  std::map<std::string, double> recovery_;
  double recovering_ = 0;
  std::optional<Checkpoint> checkpoint_;
  int64_t committed_ = 0, failed_ = 0;
  double stalled_ = 0;
  std::vector<Job> jobs_;
  absl::Time heard_;  // The last line's.
};

}  // namespace perdure
