// Profiles of sites: what a run.toml need not say because the machine does. A profile is a run.toml
// of the sections that fix no number of a run.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

struct Site {
  std::string name;
  std::string origin;  // For messages: where the text is from.
  std::string text;    // TOML.
};

// Those of launch/sites, by name, as they were when this was built.
std::vector<Site> KnownSites();

// One of these, or the file that `name` is where it has a slash or ends with ".toml". NotFound
// names the known ones.
absl::StatusOr<Site> FindSite(const std::string& name);

}  // namespace perdure
