// perdure drill: break a running job on purpose, and certify that it recovered.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddDrillCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
