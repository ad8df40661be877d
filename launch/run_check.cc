#include "launch/run_check.h"

#include <fmt/format.h>

#include <cmath>

#include "launch/agent_record.h"
#include "launch/chain.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

std::string TextOf(const Json& json, const char* key) {
  const auto at = json.find(key);
  return at != json.end() && at->is_string() ? at->get<std::string>() : "";
}

RunVerdict Look(const std::string& cause, const std::string& line) {
  return {.look = true, .cause = cause, .line = line};
}

// The first queued job that never starts by itself; nothing: there is none.
std::optional<RunVerdict> Stuck(const Json& chain) {
  for (const Json& job : chain["queued"]) {
    const std::string advice = TextOf(job, "advice");
    if (advice.empty()) continue;
    const std::string which = fmt::format("job {}", job["job"].dump());
    const std::string reason = TextOf(job, "reason");
    return Look(which + " " + reason,
                fmt::format("{} never starts by itself ({}): {}", which, reason, advice));
  }
  return std::nullopt;
}

}  // namespace

RunVerdict JudgeRun(const Json& status, absl::Duration since_step, absl::Duration stalled) {
  const std::string state = TextOf(status, "state");
  // A trainer that is not ours may say where it is; if it does not, nobody knows how long a step
  // takes.
  const bool foreign = status.contains("command");
  const bool silent = foreign && !status.value("progress", Json()).is_object();
  const int64_t step = (foreign && !silent ? status["progress"] : status).value("step", int64_t{0});
  const std::string at = fmt::format("{} at step {}", state, step);
  if (state == "complete") return {.look = false, .cause = "", .line = at};
  const bool lives = JobLives(state);
  const auto chain = status.find("chain");
  const bool chained = chain != status.end();
  if (lives && !silent && since_step >= stalled)
    return Look(fmt::format("no step behind {}", step),
                fmt::format("{}, and no step for {:.0f} minutes", at,
                            std::floor(absl::ToDoubleMinutes(since_step))));
  if (!chained) {
    if (state == "failed" || state == "lost")
      return Look(at, fmt::format("{}, and nothing goes on with it: perdure run does", at));
    return {.look = false, .cause = "", .line = at};
  }
  if (const std::string why = TextOf(*chain, "stopped"); !why.empty()) {
    // What was asked for needs nobody.
    if (why == kStopCommand || why == kStopTrigger)
      return {.look = false, .cause = "", .line = fmt::format("{}, as {} asked", at, why)};
    return Look("stopped: " + why, fmt::format("the chain was stopped: {}; when that is mended, "
                                               "perdure submit goes on",
                                               why));
  }
  if (chain->value("dry", false))
    return Look("dry", fmt::format("{}, and nothing is queued: perdure submit goes on", at));
  if (const auto stuck = Stuck(*chain)) return *stuck;
  std::string line = at;
  for (const Json& job : (*chain)["queued"])
    line += fmt::format(", job {} is queued ({})", job["job"].dump(), TextOf(job, "reason"));
  if (const std::string away = TextOf(*chain, "scheduler"); !away.empty())
    line += ", what is queued is not known: " + away;
  return {.look = false, .cause = "", .line = line};
}

}  // namespace perdure
