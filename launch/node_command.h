// perdure node: the launcher of one node of a Slurm job, a task of the step that perdure job
// starts.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddNodeCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
