#include "launch/leave_chain.h"

#include "absl/time/clock.h"
#include "launch/exit_codes.h"
#include "launch/hook.h"
#include "runtime/base/status.h"

namespace perdure {
void TellHook(const LeavingJob& leaving, const std::string& event, int64_t step,
              const std::string& why) {
  const absl::Status told = TellHook({.hook = leaving.config.job.hook,
                                      .event = event,
                                      .run_name = leaving.config.name,
                                      .run_directory = leaving.run_directory,
                                      .job = leaving.job.job,
                                      .step = step,
                                      .why = why});
  if (!told.ok()) leaving.say("warning: " + Message(told));
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
