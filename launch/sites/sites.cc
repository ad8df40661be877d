#include "launch/sites/sites.h"

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {

// The folder's files, made by its CMakeLists.txt: name, text, name, text, ..., null.
extern const char* const kSiteTexts[];

std::vector<Site> KnownSites() {
  std::vector<Site> sites;
  for (const char* const* at = kSiteTexts; *at != nullptr; at += 2)
    sites.push_back(
        {.name = at[0], .origin = std::string("launch/sites/") + at[0] + ".toml", .text = at[1]});
  return sites;
}

absl::StatusOr<Site> FindSite(const std::string& name) {
  if (name.find('/') != std::string::npos || name.ends_with(".toml")) {
    ASSIGN_OR_RETURN(std::string text, ReadFile(name));
    return Site{.name = name, .origin = name, .text = std::move(text)};
  }
  std::string known;
  for (const Site& site : KnownSites()) {
    if (site.name == name) return site;
    known += (known.empty() ? "" : ", ") + site.name;
  }
  return NotFound("slurm.site = \"{}\" is no site that is known: {}; or the path of a profile",
                  name, known);
}

}  // namespace perdure
