// The secret of a run: RUN/control/run.key, 32 random bytes that only our uid can read. Private to
// runtime/agent.
//
// Made once, with the run; whoever reads it may write the run log. The run's public name is derived
// from it, so that both come into being together and neither can be swapped alone.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/wire/job_key.h"

namespace perdure {

inline constexpr size_t kRunKeyBytes = 32;

// Reads RUN/control/run.key; makes it (and the directory, mode 0700) when absent and `may_create`.
// FailedPrecondition: the key or its directory is not ours alone. DataLoss: absent and it may not
// be made, or of a wrong length.
absl::StatusOr<std::string> OpenRunKey(const std::string& run_directory, bool may_create);

// Whether others could exchange or take away what is in RUN, RUN/log and RUN/tmp, which are there:
// records are signed, but a history without its end is a good one, too. FailedPrecondition: they
// could.
absl::Status CheckRunDirectories(const std::string& run_directory);

// 32 hex digits: keyed BLAKE2b-128 of "perdure run id".
std::string RunIdFromKey(const std::string& key);

// The secret of one start of a job of the run (job_start.h, job_key.h). Errors as OpenRunKey's.
absl::StatusOr<JobKey> OpenJobKey(const std::string& run_directory, uint64_t job_start);

// Cryptographically random.
std::array<uint8_t, 16> RandomNonce();
// Not 0.
uint64_t RandomIncarnation();

}  // namespace perdure
