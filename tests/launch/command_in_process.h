// A subcommand in the test's own process, with what it prints.
#pragma once

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace perdure {

struct CommandOutput {
  int exit_code = -1;
  std::string out, err;
};

// As `perdure ARGUMENTS...`, of the subcommand that `add` adds.
inline CommandOutput RunInProcess(const std::function<void(CLI::App& app, int* exit_code)>& add,
                                  std::vector<std::string> arguments) {
  CLI::App app("perdure");
  CommandOutput output;
  add(app, &output.exit_code);
  std::reverse(arguments.begin(), arguments.end());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    output.exit_code = error.get_exit_code() == 0 ? 0 : 2;
    output.err = error.what();
  }
  std::fflush(stdout);
  output.out = testing::internal::GetCapturedStdout();
  output.err += testing::internal::GetCapturedStderr();
  return output;
}

}  // namespace perdure
