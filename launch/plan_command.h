// `perdure plan RUN.toml`: what a run is before it runs. Reads the configuration, never the data;
// with --queue also the scheduler's history and the run's own steps.
#pragma once

#include "launch/slurm/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace perdure {

// Adds the subcommand. When it is parsed it prints the plan and sets *exit_code: 0, or 2 for wrong
// usage or configuration, or where --queue finds nothing to go by. `exit_code` outlives `app`;
// `runner` is RunCommand but in tests.
void AddPlanCommand(CLI::App& app, int* exit_code, CommandRunner runner);

}  // namespace perdure
