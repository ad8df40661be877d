// What a program that a test ran came to.
#pragma once

#include <string>

namespace perdure {

struct CommandResult {
  int exit_code = -1;  // 128 + signal when it was killed.
  std::string output;  // Standard output.
  std::string errors;  // Standard error.
};

}  // namespace perdure
