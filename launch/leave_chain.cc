#include "launch/leave_chain.h"

#include "absl/time/clock.h"
#include "launch/exit_codes.h"
#include "launch/slurm/command.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr absl::Duration kHook = absl::Minutes(1);  // How long it may run.

}  // namespace

void TellHook(const LeavingJob& leaving, const std::string& event, int64_t step,
              const std::string& why) {
  const RunConfig& config = leaving.config;
  if (config.job.hook.empty()) return;
  Invocation hook{.argv = {config.job.hook, event},
                  .timeout = kHook,
                  .environment = {{"PERDURE_EVENT", event},
                                  {"PERDURE_RUN", config.name},
                                  {"PERDURE_RUN_DIR", leaving.run_directory},
                                  {"PERDURE_JOB", JobText(leaving.job.job)},
                                  {"PERDURE_STEP", std::to_string(step)},
                                  {"PERDURE_WHY", why}}};
  const absl::StatusOr<InvocationResult> told = RunCommand(hook);
  if (!told.ok())
    leaving.say("warning: " + Message(told.status()));
  else if (told->exit_code != 0)
    leaving.say(fmt::format("warning: job.hook {} {} ended with {}: {}", config.job.hook, event,
                            told->exit_code, told->errors.substr(0, 1000)));
}

void LeaveChain(LeavingJob leaving, const Chain& chain, ChainQueue& queue, int exit_code,
                int64_t step, const std::string& why) {
  ChainJob& job = leaving.job;
  job.left = absl::Now();
  job.exit_code = exit_code;
  job.last_step = step;
  job.why = why;
  leaving.say(fmt::format("leaves: {}", why));
  if (const absl::Status told = chain.Tell(job); !told.ok())
    leaving.say("warning: " + Message(told));
  const absl::Status queued = queue.After(exit_code, NodesFor(leaving.config, step), job.job, why);
  if (!queued.ok()) leaving.say("warning: " + Message(queued));
  const bool over = chain.stopped().has_value();
  TellHook(leaving, exit_code == kExitComplete ? "complete" : over ? "stopped" : "left", step, why);
}

}  // namespace perdure
