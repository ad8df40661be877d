// Whether the data of a run is there, before anything else happens.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/train/run_config.h"

namespace perdure {

// The data of every phase is there and fits the vocabulary; an error names the phase.
absl::Status CheckData(const RunConfig& config, const std::string& data_directory);

// All files of all phases' sources.
std::vector<std::string> DataFiles(const RunConfig& config, const std::string& data_directory);

}  // namespace perdure
