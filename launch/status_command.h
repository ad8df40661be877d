// `perdure status`: what a run is doing now, and its chain.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddStatusCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
