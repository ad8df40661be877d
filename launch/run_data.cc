#include "launch/run_data.h"

#include <filesystem>
#include <set>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/data/sample_order.h"

namespace perdure {

absl::Status CheckData(const RunConfig& config, const std::string& data_directory) {
  for (size_t p = 0; p < config.phases.size(); ++p) {
    std::vector<MixtureSource> mixture;
    for (const SourceConfig& source : config.phases[p].mixture)
      mixture.push_back(
          {(std::filesystem::path(data_directory) / source.path).string(), source.weight});
    const auto order = SampleOrder::Open(mixture, config.phases[p].context, config.model.vocab,
                                         config.seed, static_cast<int64_t>(p));
    const absl::Status status = order.ok() ? (*order)->CheckTokens() : order.status();
    if (!status.ok())
      return ErrorStatus(status.code(), "phase {}: {}", config.phases[p].name, Message(status));
  }
  return absl::OkStatus();
}

std::vector<std::string> DataFiles(const RunConfig& config, const std::string& data_directory) {
  std::set<std::string> files;
  for (const PhaseConfig& phase : config.phases)
    for (const SourceConfig& source : phase.mixture)
      for (const char* extension : {".bin", ".idx"})
        files.insert((std::filesystem::path(data_directory) / source.path).string() + extension);
  return {files.begin(), files.end()};
}

}  // namespace perdure
