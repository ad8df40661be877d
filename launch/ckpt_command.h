// `perdure ckpt`: what checkpoints there are, what is in them, whether they are good, where two
// differ; reshard_command.h and exchange_command.h make others of them.
//
// Exit codes: 0 fine; 1 a checkpoint is bad, or two differ; 2 wrong usage or path.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds the subcommand; `exit_code` is set when it ran.
void AddCkptCommand(CLI::App& app, int* exit_code);

}  // namespace perdure
