#include "launch/status_command.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "launch/agent_record.h"
#include "launch/chain.h"
#include "launch/chain_queue.h"
#include "launch/config.h"
#include "launch/exec_options.h"
#include "launch/exit_codes.h"
#include "launch/hook.h"
#include "launch/pending_reason.h"
#include "launch/run_check.h"
#include "launch/slurm/scheduler.h"
#include "launch/slurm_step.h"
#include "monitoring/loss_csv.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

struct StatusArguments {
  std::vector<std::string> run_directories;
  int64_t stall_minutes = 30;
  bool json = false, check = false, tell = false;
};

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
  if (s.contains("command")) {
    std::string command;
    for (const Json& word : s["command"]) command += word.get<std::string>() + " ";
    std::printf("run         %s\nstate       %s\ncommand     %s\nprogress    %s\n",
                text("name").c_str(), text("state").c_str(), command.c_str(),
                s["progress"].is_null() ? "it has said nothing in PERDURE_PROGRESS"
                                        : s["progress"].dump().c_str());
  } else {
    std::printf(
        "run         %s\nstate       %s\nphase       %s\nstep        %s of %s\nloss        "
        "%s\ntokens/s    %s\n",
        text("name").c_str(), text("state").c_str(), text("phase").c_str(), text("step").c_str(),
        text("steps_total").c_str(), text("loss").c_str(), text("tokens_per_second").c_str());
  }
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

// 0: it is not said.
int64_t NumberOf(const Json& json, const char* key) {
  const auto at = json.find(key);
  return at != json.end() && at->is_number_integer() ? at->get<int64_t>() : 0;
}

absl::StatusOr<Json> AllOf(const std::string& run_directory) {
  const absl::StatusOr<Chain> chain = Chain::Open(run_directory);
  absl::StatusOr<Json> status =
      ReadStatus(run_directory, [](int64_t job) { return SlurmJobRuns(job, kAsk); });
  // A chain whose first job waits has no status yet.
  if (!status.ok() && !(absl::IsNotFound(status.status()) && chain.ok())) return status.status();
  Json all = status.ok() ? *status : Json{{"state", "queued"}};
  if (chain.ok())
    all["chain"] = ChainJson(run_directory, *chain, NumberOf(all, "steps_total"), all["state"]);
  return all;
}

int Refuse(const absl::Status& status) {
  std::fprintf(stderr, "perdure status: %s\n", Message(status).c_str());
  return kExitUsage;
}

int Status(const std::string& run_directory, bool json) {
  const absl::StatusOr<Json> all = AllOf(run_directory);
  if (!all.ok()) return Refuse(all.status());
  if (json) {
    std::printf("%s\n", all->dump(2).c_str());
    return kExitComplete;
  }
  if (all->contains("name")) PrintRun(*all);
  if (all->contains("chain")) PrintChain((*all)["chain"], run_directory);
  return kExitComplete;
}

// ---- whether somebody must look

// Since the newest step, or since the job's state changed, which begins with "starting".
absl::Duration SinceStep(const std::string& run_directory) {
  std::filesystem::file_time_type newest = std::filesystem::file_time_type::min();
  for (const std::string& path : {run_directory + "/metrics/loss.csv", ProgressPath(run_directory),
                                  run_directory + "/status.json"}) {
    std::error_code error;
    const auto written = std::filesystem::last_write_time(path, error);
    if (!error) newest = std::max(newest, written);
  }
  if (newest == std::filesystem::file_time_type::min()) return absl::ZeroDuration();
  return absl::FromChrono(std::filesystem::file_time_type::clock::now() - newest);
}

// Tells the run's hook of a trouble, once as long as it stays the same. RUN/chain/told has the last
// one; what has no chain is told each time.
absl::Status TellOnce(const std::string& run_directory, const Json& all,
                      const RunVerdict& verdict) {
  const std::string told = run_directory + "/chain/told";
  const absl::StatusOr<Chain> chain = Chain::Open(run_directory);
  if (!verdict.look) {
    std::error_code error;
    std::filesystem::remove(told, error);
    return absl::OkStatus();
  }
  if (chain.ok() && ReadFile(told).value_or("") == verdict.cause) return absl::OkStatus();
  ASSIGN_OR_RETURN(const RunConfig config,
                   LoadConfig(chain.ok() ? chain->config_path() : run_directory + "/run.toml", {}));
  RETURN_IF_ERROR(TellHook({.hook = config.job.hook,
                            .event = "look",
                            .run_name = config.name,
                            .run_directory = run_directory,
                            .job = NumberOf(all, "slurm_job"),
                            .step = NumberOf(all, "step"),
                            .why = verdict.line}));
  return chain.ok() ? ReplaceFile(told, verdict.cause) : absl::OkStatus();
}

int Check(const StatusArguments& arguments) {
  int exit_code = kExitComplete;
  for (const std::string& said : arguments.run_directories) {
    const std::string directory = std::filesystem::absolute(said);
    const absl::StatusOr<Json> all = AllOf(directory);
    if (!all.ok()) {
      const int refused = Refuse(all.status());
      exit_code = exit_code == kExitComplete ? refused : exit_code;
      continue;
    }
    const RunVerdict verdict =
        JudgeRun(*all, SinceStep(directory), absl::Minutes(arguments.stall_minutes));
    std::printf("%s %s: %s\n", verdict.look ? "LOOK" : "ok  ", said.c_str(), verdict.line.c_str());
    if (verdict.look) exit_code = kExitFailed;
    if (!arguments.tell) continue;
    if (const absl::Status told = TellOnce(directory, *all, verdict); !told.ok())
      std::fprintf(stderr, "perdure status: nobody was told: %s\n", Message(told).c_str());
  }
  return exit_code;
}

}  // namespace

void AddStatusCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<StatusArguments>();
  CLI::App* status =
      app.add_subcommand("status", "What a run is doing now, and the jobs of its chain");
  status->add_option("run_dir", arguments->run_directories, "The run's directory")->required();
  CLI::Option* json = status->add_flag("--json", arguments->json, "As JSON");
  CLI::Option* check = status->add_flag(
      "--check", arguments->check,
      "A line for each run; exit code 1 if somebody must look at one of them. For cron");
  check->excludes(json);
  status->add_flag("--tell", arguments->tell, "And tell job.hook, with the word look")
      ->needs(check);
  status
      ->add_option("--stall-minutes", arguments->stall_minutes,
                   "How long a running job may take for a step (30)")
      ->needs(check)
      ->check(CLI::PositiveNumber);
  status->callback([arguments, exit_code] {
    if (arguments->check)
      *exit_code = Check(*arguments);
    else if (arguments->run_directories.size() == 1)
      *exit_code = Status(arguments->run_directories.front(), arguments->json);
    else
      *exit_code = Refuse(InvalidArgument("several runs are for --check"));
  });
}

}  // namespace perdure
