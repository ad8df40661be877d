// `perdure ckpt reshard`: the files of a checkpoint cut for other writers, or its parameters alone.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds the subcommand to `perdure ckpt`; `exit_code` is set when it ran.
void AddReshardCommand(CLI::App& ckpt, int* exit_code);

}  // namespace perdure
