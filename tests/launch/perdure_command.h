// Runs the built `perdure` as a user would, and reads what it leaves.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/launch/command_result.h"

namespace perdure {

// The path of the built command.
std::string PerdurePath();
// The transport between processes that this build has, UCX first.
std::string BuiltTransport();
// libfabric where this build has both, else as BuiltTransport.
std::string OtherTransport();
// `perdure run` of nano.toml in RUN_DIR on two ranks, T1 P1 D2, with data of WriteNanoData, and
// whatever else is asked for.
std::vector<std::string> RunOfTwoRanks(const std::string& run_directory,
                                       const std::string& data_directory,
                                       const std::vector<std::string>& more);

// arguments[0] is the subcommand.
CommandResult Perdure(const std::vector<std::string>& arguments);
// Starts it and returns its process id; Wait ends it.
int StartPerdure(const std::vector<std::string>& arguments, const std::string& error_path);
int WaitFor(int pid);

// A folder of this test process, removed by the caller.
std::string FreshFolder(const std::string& name);

// nano.toml's five sources as deterministic, learnable token streams in FOLDER/data.
void WriteNanoData(const std::string& folder, int vocab = 1024);
std::string SourceDirectory();
std::string ExecTrainer();  // Path of exec_trainer.py.
std::string NanoToml();  // Path of launch/recipes/nano.toml.

// Column `name` of RUN_DIR/metrics/loss.csv, in row order.
std::vector<std::string> LossColumn(const std::string& run_directory, const std::string& name);
// `perdure ckpt list RUN_DIR --json`.
nlohmann::json ListedCheckpoints(const std::string& run_directory);
// The events NAME of RUN_DIR/journal.jsonl, in order; what is not written to its end is left out.
std::vector<nlohmann::json> JournalEvents(const std::string& run_directory,
                                          const std::string& name);
nlohmann::json StatusOf(const std::string& run_directory);

}  // namespace perdure
