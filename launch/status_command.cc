#include "launch/status_command.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "launch/agent_record.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exit_codes.h"
#include "launch/pending_reason.h"
#include "launch/slurm/scheduler.h"
#include "monitoring/loss_csv.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

// A person looks, and does not wait for a controller that is away.
constexpr absl::Duration kAsk = absl::Seconds(10);

std::string TimeText(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", time, absl::LocalTimeZone());
}

// How a job ended, or that it has not said so.
std::string Ending(const ChainJob& job, const std::vector<JobView>& known) {
  if (job.left.has_value()) return job.why;
  for (const JobView& view : known)
    if (view.id == job.job) return IsOver(view.state) ? "did not say: " + view.state_word : "runs";
  return "did not say";
}

Json JobJson(const ChainJob& job, const std::vector<JobView>& known) {
  Json json = {{"job", job.job},
               {"start", job.restarts + 1},
               {"nodes", job.nodes.size()},
               {"began", absl::ToDoubleSeconds(job.began - absl::UnixEpoch())},
               {"first_step", job.first_step}};
  if (job.left.has_value()) {
    json["left"] = absl::ToDoubleSeconds(*job.left - absl::UnixEpoch());
    json["last_step"] = job.last_step;
    json["exit_code"] = job.exit_code;
    if (job.time_over != absl::InfiniteFuture())
      json["unused"] = absl::ToDoubleSeconds(job.time_over - *job.left);
  }
  json["ended"] = Ending(job, known);
  return json;
}

// What is left at the pace of the newest step; null: nothing has been stepped.
Json Forecast(const std::string& run_directory, const Chain& chain, int64_t steps_total) {
  const auto last = LastLossRow(run_directory + "/metrics/loss.csv");
  const absl::StatusOr<RunConfig> config = LoadConfig(chain.config_path(), {});
  if (!last.ok() || !last->has_value() || !config.ok()) return nullptr;
  const double seconds = static_cast<double>(steps_total - (*last)->step) * (*last)->step_seconds;
  const double of_a_job = absl::ToDoubleSeconds(config->job.time_limit - config->job.leave_margin);
  return {{"seconds", seconds}, {"jobs", std::ceil(seconds / std::max(1.0, of_a_job))}};
}

// Of the time of all jobs, what the steps took that count; null: not known. A job that could not
// say when it was gone took until the next one began.
Json Goodput(const std::string& run_directory, const std::vector<ChainJob>& jobs) {
  const absl::StatusOr<double> steps = ReadStepSeconds(run_directory + "/metrics/loss.csv");
  absl::Duration all;
  for (size_t i = 0; i < jobs.size(); ++i)
    all += jobs[i].left.value_or(i + 1 < jobs.size() ? jobs[i + 1].began : absl::Now()) -
           jobs[i].began;
  if (!steps.ok() || all <= absl::ZeroDuration()) return nullptr;
  return *steps / absl::ToDoubleSeconds(all);
}

Json ChainJson(const std::string& run_directory, const Chain& chain, int64_t steps_total,
               const std::string& state) {
  Scheduler scheduler(RunCommand, {.timeout = kAsk});
  const absl::StatusOr<std::vector<JobView>> known = scheduler.JobsNamed(chain.common().job_name);
  const std::vector<JobView> views = known.value_or(std::vector<JobView>());
  Json json = {{"job_name", chain.common().job_name}, {"jobs", Json::array()}};
  const std::vector<ChainJob> jobs = chain.Jobs();
  for (const ChainJob& job : jobs) json["jobs"].push_back(JobJson(job, views));
  json["goodput"] = Goodput(run_directory, jobs);
  json["queued"] = Json::array();
  bool any = false;
  for (const JobView& view : views) {
    any = any || !IsOver(view.state);
    if (view.state != JobState::kPending) continue;
    Json queued = {{"job", view.id}, {"nodes", view.nodes_min}, {"reason", view.reason}};
    if (const std::string advice = AdviceFor(view.reason); !advice.empty())
      queued["advice"] = advice;
    json["queued"].push_back(std::move(queued));
  }
  if (!known.ok()) json["scheduler"] = Message(known.status());
  const std::optional<Chain::Stop> stop = chain.stopped();
  if (stop.has_value()) json["stopped"] = stop->why;
  // Nobody will go on with it.
  json["dry"] = known.ok() && !any && !stop.has_value() && state != "complete";
  json["left"] = state == "complete" ? Json() : Forecast(run_directory, chain, steps_total);
  return json;
}

void PrintChain(const Json& chain, const std::string& run_directory) {
  std::printf("chain       %s\n", chain["job_name"].get<std::string>().c_str());
  std::printf("  %-10s %5s %6s  %-19s %9s %9s  %s\n", "job", "start", "nodes", "began", "from step",
              "to step", "ended");
  for (const Json& job : chain["jobs"])
    std::printf("  %-10s %5s %6s  %-19s %9s %9s  %s\n", job["job"].dump().c_str(),
                job["start"].dump().c_str(), job["nodes"].dump().c_str(),
                TimeText(absl::UnixEpoch() + absl::Seconds(job["began"].get<double>())).c_str(),
                job["first_step"].dump().c_str(),
                job.contains("last_step") ? job["last_step"].dump().c_str() : "-",
                job["ended"].get<std::string>().c_str());
  for (const Json& job : chain["queued"]) {
    std::printf("  %-10s queued, %s nodes: %s\n", job["job"].dump().c_str(),
                job["nodes"].dump().c_str(), job["reason"].get<std::string>().c_str());
    if (job.contains("advice"))
      std::printf("  %-10s never starts by itself: %s\n", "",
                  job["advice"].get<std::string>().c_str());
  }
  if (chain.contains("scheduler"))
    std::printf("  what is queued is not known: %s\n",
                chain["scheduler"].get<std::string>().c_str());
  if (chain.contains("stopped"))
    std::printf("  stopped: %s; perdure submit goes on\n",
                chain["stopped"].get<std::string>().c_str());
  if (chain["dry"] == true)
    std::printf(
        "  nothing is queued, and the run is not complete: perdure submit goes on with %s\n",
        run_directory.c_str());
  if (chain["goodput"].is_number())
    std::printf("goodput     %.1f %% of the time of its jobs\n",
                100 * chain["goodput"].get<double>());
  if (chain["left"].is_object())
    std::printf(
        "left        %s of steps, %.0f jobs\n",
        absl::FormatDuration(absl::Seconds(std::round(chain["left"]["seconds"].get<double>())))
            .c_str(),
        chain["left"]["jobs"].get<double>());
}

void PrintRun(const Json& s) {
  const auto text = [&](const char* key) {
    return s.contains(key) ? (s[key].is_string() ? s[key].get<std::string>() : s[key].dump()) : "-";
  };
  std::printf(
      "run         %s\nstate       %s\nphase       %s\nstep        %s of %s\nloss        "
      "%s\ntokens/s    %s\n",
      text("name").c_str(), text("state").c_str(), text("phase").c_str(), text("step").c_str(),
      text("steps_total").c_str(), text("loss").c_str(), text("tokens_per_second").c_str());
  std::printf("generation  %s\nlayout      %s\nnodes       %s%s\n", text("generation").c_str(),
              text("layout").c_str(), text("nodes").c_str(),
              JobLives(text("state")) ? "" : " until the job ended");
  for (const Json& member : s["members"]) {
    std::printf("node %-6s ranks", member["node"].dump().c_str());
    for (const Json& rank : member["ranks"])
      std::printf(" %s (process %s)", rank["rank"].dump().c_str(), rank["pid"].dump().c_str());
    std::printf("\n");
  }
}

// Whether that job has not ended; nothing: the scheduler does not answer.
std::optional<bool> SlurmJobLives(int64_t job) {
  Scheduler scheduler(RunCommand, {.timeout = kAsk});
  const absl::StatusOr<JobView> view = scheduler.Job(JobText(job));
  if (absl::IsNotFound(view.status())) return false;
  if (!view.ok()) return std::nullopt;
  return view->state != JobState::kPending && !IsOver(view->state);
}

int Status(const std::string& run_directory, bool json) {
  const absl::StatusOr<Chain> chain = Chain::Open(run_directory);
  absl::StatusOr<Json> status = ReadStatus(run_directory, SlurmJobLives);
  // A chain whose first job waits has no status yet.
  if (!status.ok() && !(absl::IsNotFound(status.status()) && chain.ok())) {
    std::fprintf(stderr, "perdure status: %s\n", Message(status.status()).c_str());
    return kExitUsage;
  }
  Json all = status.ok() ? *status : Json{{"state", "queued"}};
  if (chain.ok())
    all["chain"] =
        ChainJson(run_directory, *chain, all.value("steps_total", int64_t{0}), all["state"]);
  if (json) {
    std::printf("%s\n", all.dump(2).c_str());
    return kExitComplete;
  }
  if (status.ok()) PrintRun(*status);
  if (chain.ok()) PrintChain(all["chain"], run_directory);
  return kExitComplete;
}

}  // namespace

void AddStatusCommand(CLI::App& app, int* exit_code) {
  auto directory = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* status =
      app.add_subcommand("status", "What a run is doing now, and the jobs of its chain");
  status->add_option("run_dir", *directory, "The run's directory")->required();
  status->add_flag("--json", *json, "As JSON");
  status->callback([directory, json, exit_code] { *exit_code = Status(*directory, *json); });
}

}  // namespace perdure
