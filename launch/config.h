// run.toml <-> RunConfig, through one table of fields: it parses, sets (--set), prints, compares
// and documents.
//
// Every error is InvalidArgument and names the key, its value, the place in the file and what would
// do; an unknown key names the nearest known one. Only launch/ reads configuration files, flags and
// the environment.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Reads and validates `path`, with `settings` ("layout.tensor=2", values in TOML syntax; bare words
// are strings) applied over it, and the profile of its slurm.site beneath. Empty path: the settings
// alone. Durations are "20:00:00"
// or "90s", "20min", "1h".
absl::StatusOr<RunConfig> LoadConfig(const std::string& path,
                                     const std::vector<std::string>& settings);
absl::StatusOr<RunConfig> ParseConfig(const std::string& text, const std::string& origin,
                                      const std::vector<std::string>& settings);

// All that can be checked without a layout of ranks: ranges, divisibility, phases that advance.
absl::Status ValidateConfig(const RunConfig& config);

// The resolved configuration as TOML, every field that means something, defaults included;
// ParseConfig reads it back to the same value.
std::string PrintConfig(const RunConfig& config);

// Whether `now` may continue a run that was frozen as `frozen` and has finished `phases_begun`
// phases' first steps. FailedPrecondition names the first key that differs, both values, and what
// to do.
absl::Status CheckFrozen(const RunConfig& frozen, const RunConfig& now, int phases_begun);

// One line per key for `perdure run --help-config` and docs: "layout.tensor = 1   # ...".
std::string DescribeConfig();

}  // namespace perdure
