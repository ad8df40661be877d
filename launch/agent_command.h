// perdure agent: the agent of one node, for whoever starts a job (a launcher, a batch script).
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddAgentCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
