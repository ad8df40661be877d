// What a real Slurm answered to a command, read from tests/slurm/recorded, and runners that answer
// so again. recorded/record.sh makes the files.
#pragma once

#include <string>
#include <vector>

#include "launch/slurm/command.h"

namespace perdure {

// Between the fields of squeue and sinfo in the records.
inline constexpr char kRecordedSeparator[] = "<~|~>";

struct RecordedCommand {
  std::vector<std::string> argv;
  InvocationResult result;
};
// `name`: "22.05/running".
RecordedCommand ReadRecord(const std::string& name);
// Every record of a release, by name.
std::vector<std::string> RecordNames(const std::string& release);

// Answers with these records in turn, and fails the test if it is asked for anything else.
CommandRunner Replay(std::vector<std::string> names);
// Answers everything so.
CommandRunner Always(InvocationResult result);

}  // namespace perdure
