// How a job begins and how it ends, whoever starts its agents: what is checked before anything is
// done, and what people and scripts are told of it afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/run_directory.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct JobBounds {
  std::string speaker;  // Who says its lines: "perdure run".
  RunConfig config;     // Validated; layout as asked for ("auto" not yet resolved).
  std::string run_directory;
  std::string data_directory;  // Absolute.
  int64_t ranks = 1;
  int64_t until_step = -1;  // Negative: to the end.
  int64_t slurm_job = 0;    // Slurm's number of it; 0: none.
  bool retry = false;       // Attempts to load a checkpoint that failed before do not count.
};

// What a job goes on from; or, where it is not to begin, the exit code, after saying why: what is
// asked for is refused, or there is nothing to do.
struct BegunJob {
  std::optional<OpenedRun> run;
  int exit_code = 0;
};
BegunJob BeginJob(const JobBounds& job);

// The last job of the log that has begun and not ended.
std::optional<uint64_t> OpenJob(const RunLog& log);

// An error in words, and the exit code that fits.
int RefuseJob(const JobBounds& job, const absl::Status& status);

// What became of the job, in status.json, in the journal and on stderr; its exit code.
int TellEnd(const JobBounds& job, const RunLog& log, const EndRecord& end);

}  // namespace perdure
