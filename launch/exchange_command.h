// `perdure ckpt import|export`: states from other tools into runs, checkpoints to other tools.
#pragma once

namespace CLI {
class App;
}

namespace perdure {

// Adds the subcommands to `perdure ckpt`; `exit_code` is set when one ran.
void AddExchangeCommands(CLI::App& ckpt, int* exit_code);

}  // namespace perdure
