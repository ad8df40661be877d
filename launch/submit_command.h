// perdure submit, and perdure job, which its script becomes.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddSubmitCommand(CLI::App& app, int* exit_code);
void AddJobCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
