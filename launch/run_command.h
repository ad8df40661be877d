// `perdure run`, `perdure status`, `perdure stop`.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Each adds a subcommand; its callback stores the process's exit code in *exit_code.
void AddRunCommand(CLI::App& app, int* exit_code);
void AddStatusCommand(CLI::App& app, int* exit_code);
void AddStopCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
