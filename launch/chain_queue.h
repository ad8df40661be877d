// The jobs of a chain in the scheduler's queue: whoever begins has the next one queued behind it,
// whoever leaves changes or cancels it. A pending job does without the nodes that the book of the
// run (NodeBook) holds bad, and without those that the user has named, as far as enough others
// are left.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/chain.h"
#include "launch/slurm/scheduler.h"
#include "runtime/control/evidence_book.h"
#include "runtime/train/run_config.h"

namespace perdure {

class ChainQueue {
 public:
  struct Options {
    std::string run_directory;
    SlurmConfig slurm;  // As the chain's script was written with.
    // Which nodes are done without and why, and what is wrong with that: no job is lost for it.
    std::function<void(const std::string& line)> say;
  };
  // Both pointers outlive it.
  ChainQueue(Scheduler* scheduler, const Chain* chain, Options options)
      : scheduler_(scheduler), chain_(chain), options_(std::move(options)) {}

  // Pending jobs of this chain but `but`, by id.
  absl::StatusOr<std::vector<JobView>> Pending(int64_t but = 0);
  // Those that have begun and not ended.
  absl::StatusOr<std::vector<JobView>> Running();
  // Queues one on `nodes` (as --nodes has them), behind job `behind`; 0: behind whatever job of the
  // chain there is.
  absl::StatusOr<int64_t> Submit(int64_t behind, const std::string& nodes);
  // Unless one is, which is brought up to date: see ExcludeOfPending.
  absl::Status EnsureNext(int64_t job, const std::string& nodes);
  // `job` is leaving with that exit code. Where the run goes on, a job is pending behind it that
  // asks for `nodes`; where it does not, none is, and the chain says why it stopped.
  absl::Status After(int exit_code, const std::string& nodes, int64_t job, const std::string& why);
  absl::Status CancelPending();
  // Has the pending jobs but `but`, which ask for `nodes`, do without what is to be done without
  // now.
  absl::Status ExcludeOfPending(const std::string& nodes, int64_t but = 0);

 private:
  struct Exclusion {
    bool of_book = false;            // Whether the user has not named all of them.
    std::vector<std::string> nodes;  // Sorted, each once.
  };
  absl::StatusOr<Exclusion> ExclusionFor(const std::string& nodes);
  absl::Status ExcludeOf(const JobView& job, const std::string& nodes);
  absl::StatusOr<std::set<std::string>> NodesOfPartition();
  std::vector<std::string> SbatchOptions() const;

  Scheduler* const scheduler_;
  const Chain* const chain_;
  const Options options_;
  std::string said_;  // Not to say it again.
};

// How the book of nodes is to be judged for a job on `nodes`, as --nodes has them.
absl::StatusOr<EvidenceBook::Options> BookOptionsFor(const std::string& nodes);

// What a job does without for the book: of `choice`, the nodes that it could get but for that, at
// least `least` are left to it.
struct DoneWithout {
  std::vector<EvidenceBook::Verdict> excluded;  // By name.
  int64_t kept = 0;                             // That would be, but are needed.
};
absl::StatusOr<DoneWithout> JudgeForJob(const EvidenceBook& book, EvidenceBook::Options options,
                                        const std::set<std::string>& choice, int64_t least,
                                        absl::Time now);

// The path of this program, as other nodes see it, too.
absl::StatusOr<std::string> ThisProgram();

}  // namespace perdure
