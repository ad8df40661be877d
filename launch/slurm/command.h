// One call of a program that answers and ends: argv in, exit code and text out. No shell, a time
// limit, a bound on what is kept of its output. Whoever asks the scheduler goes through a
// CommandRunner, so that tests can answer from records.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perdure {

struct Invocation {
  std::vector<std::string> argv;  // argv[0] is searched for in PATH.
  std::string input;              // Its standard input, whole.
  absl::Duration timeout = absl::Seconds(30);
  // Beside or in place of our own variables of the same names.
  std::vector<std::pair<std::string, std::string>> environment;
  // Of our own, those are left out for which this is true; empty: none.
  std::function<bool(const std::string& name)> without;
};

struct InvocationResult {
  int exit_code = 0;  // 128 + signal if one killed it.
  std::string output, errors;
};

// DeadlineExceeded: it took longer than its time limit and was killed. NotFound: there is no such
// program. ResourceExhausted: it wrote more than kCommandOutputMax. All name the command.
using CommandRunner = std::function<absl::StatusOr<InvocationResult>(const Invocation&)>;

inline constexpr size_t kCommandOutputMax = size_t{64} << 20;  // Of each of the two.

// Runs it in a process group of its own, all of which is killed when the time is over. Blocks.
// May be called from any thread; children of others are not touched.
absl::StatusOr<InvocationResult> RunCommand(const Invocation& command);

// argv in one line for people, with quotes where a shell would want them.
std::string CommandLine(const std::vector<std::string>& argv);

}  // namespace perdure
