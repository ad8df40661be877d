// `perdure doctor`: whether the file system of a directory can carry a run.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds the subcommand; its callback stores the process's exit code in *exit_code: 0, a run may live
// there; 1, it may not, or nobody could find out; 2, wrong usage. Ended by a signal, the process
// cleans up and dies of it.
void AddDoctorCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
