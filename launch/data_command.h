// `perdure data build` and `perdure data inspect`.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds `data build|inspect` to the command line; the callback stores the process's exit code in
// *exit_code: 0 done, 2 wrong usage or input, 1 any other failure. REQUIRES: *exit_code outlives
// the parsing of `app`.
void AddDataCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
