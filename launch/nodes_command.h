// `perdure nodes`: what is known against the nodes of a run, and what people decide about it.
//
// Exit codes: 0 done; 1 it could not be, or nothing is known of that node; 2 wrong usage.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

void AddNodesCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
