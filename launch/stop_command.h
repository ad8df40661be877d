// `perdure stop`, and of a chain `perdure pause` and `perdure resume`.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddStopCommand(CLI::App& app, int* exit_code);
void AddPauseCommand(CLI::App& app, int* exit_code);
void AddResumeCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
