#include "launch/hook.h"

#include "launch/slurm/command.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr absl::Duration kHook = absl::Minutes(1);
constexpr size_t kErrorsShown = 1000;

}  // namespace

absl::Status TellHook(const HookNews& news) {
  if (news.hook.empty()) return absl::OkStatus();
  const Invocation call{.argv = {news.hook, news.event},
                        .timeout = kHook,
                        .environment = {{"PERDURE_EVENT", news.event},
                                        {"PERDURE_RUN", news.run_name},
                                        {"PERDURE_RUN_DIR", news.run_directory},
                                        {"PERDURE_JOB", std::to_string(news.job)},
                                        {"PERDURE_STEP", std::to_string(news.step)},
                                        {"PERDURE_WHY", news.why}}};
  ASSIGN_OR_RETURN(const InvocationResult told, RunCommand(call));
  if (told.exit_code == 0) return absl::OkStatus();
  return FailedPrecondition("job.hook {} {} ended with {}: {}", news.hook, news.event,
                            told.exit_code, told.errors.substr(0, kErrorsShown));
}

}  // namespace perdure
