// `perdure run`.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds the subcommand; its callback stores the process's exit code in *exit_code.
void AddRunCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
