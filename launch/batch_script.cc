#include "launch/batch_script.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// For bash.
std::string Quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

// For a line of #SBATCH: sbatch takes off quotes like a shell, and a backslash before a quote.
absl::StatusOr<std::string> Directive(const std::string& option) {
  const bool line = std::none_of(option.begin(), option.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  if (!line || option.find('"') != std::string::npos || option.find('\\') != std::string::npos)
    return InvalidArgument(
        "sbatch option {} has a quote, a backslash or a control character, which a script cannot "
        "hold: give it on the command line of perdure submit",
        option);
  return fmt::format("#SBATCH \"{}\"\n", option);
}

std::string TimeOption(absl::Duration limit) {
  const auto minutes = static_cast<int64_t>(std::ceil(absl::ToDoubleMinutes(limit)));
  return fmt::format("--time={}", std::max<int64_t>(1, minutes));
}

}  // namespace

absl::StatusOr<std::string> WriteBatchScript(const BatchScript& script) {
  const SlurmConfig& slurm = script.config.slurm;
  std::vector<std::string> options = {
      "--job-name=" + script.common.job_name, TimeOption(script.config.job.time_limit),
      // A job that is requeued writes on; it has the same number.
      fmt::format("--output={}/jobs/slurm-%j.log", script.run_directory), "--open-mode=append",
      // A lost node does not end the job; the batch script's own node does not either.
      "--no-kill", "--requeue",
      // A second notice: the job's own clock is the first.
      "--signal=USR1@120"};
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) options.push_back(fmt::format("--{}={}", name, value));
  };
  const bool whole = slurm.account.ends_with(slurm.account_suffix) || slurm.account.empty();
  add("account", whole ? slurm.account : slurm.account + slurm.account_suffix);
  add("partition", slurm.partition);
  add("qos", slurm.qos);
  add("constraint", slurm.constraint);
  add("reservation", slurm.reservation);
  options.insert(options.end(), slurm.options.begin(), slurm.options.end());
  std::string text =
      "#!/bin/bash\n"
      "# A job of the chain of run " +
      script.config.name + ", written by perdure submit.\n";
  for (const std::string& option : options) {
    ASSIGN_OR_RETURN(const std::string line, Directive(option));
    text += line;
  }
  text += "\n";
  if (!slurm.modules.empty()) {
    text += "type module >/dev/null 2>&1 || . /etc/profile\n";
    for (const std::string& module : slurm.modules)
      text += "module load " + Quoted(module) + " || exit 2\n";
  }
  for (const std::string& variable : slurm.environment) {
    const size_t equals = variable.find('=');
    text +=
        "export " + variable.substr(0, equals) + "=" + Quoted(variable.substr(equals + 1)) + "\n";
  }
  return text + "exec " + Quoted(script.program) + " job " + Quoted(script.run_directory) + "\n";
}

}  // namespace perdure
