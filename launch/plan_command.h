// `perdure plan RUN.toml`: what a run is before it runs. Reads the configuration, never the data.
#pragma once

namespace CLI {
class App;
}  // namespace CLI

namespace perdure {

// Adds the subcommand. When it is parsed it prints the plan and sets *exit_code: 0, or 2 for wrong
// usage or configuration. `exit_code` outlives `app`.
void AddPlanCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
