#include "launch/chain.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/exit_codes.h"
#include "runtime/base/digest.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }
absl::Time TimeOf(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

// nullopt: it is torn, or of another shape.
std::optional<Json> ReadJson(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return std::nullopt;
  Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  return json;
}

template <typename T>
T Value(const Json& json, const char* key, T otherwise) {
  const auto at = json.find(key);
  if (at == json.end()) return otherwise;
  if constexpr (std::is_same_v<T, std::string>) {
    return at->is_string() ? at->template get<std::string>() : otherwise;
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    const bool strings =
        at->is_array() &&
        std::all_of(at->begin(), at->end(), [](const Json& each) { return each.is_string(); });
    return strings ? at->template get<std::vector<std::string>>() : otherwise;
  } else {
    return at->is_number() ? at->template get<T>() : otherwise;
  }
}

std::optional<ChainJob> ParseJob(const Json& json) {
  ChainJob job{.job = Value(json, "job", int64_t{0}),
               .restarts = Value(json, "restarts", 0),
               .nodes = Value(json, "nodes", std::vector<std::string>{}),
               .began = TimeOf(Value(json, "began", 0.0))};
  if (job.job <= 0) return std::nullopt;
  if (json.contains("time_over")) job.time_over = TimeOf(Value(json, "time_over", 0.0));
  job.first_step = Value(json, "first_step", int64_t{0});
  if (!json.contains("left")) return job;
  job.left = TimeOf(Value(json, "left", 0.0));
  job.exit_code = Value(json, "exit_code", kExitFailed);
  job.last_step = Value(json, "last_step", int64_t{0});
  job.why = Value(json, "why", std::string());
  return job;
}

}  // namespace

absl::StatusOr<Chain> Chain::Create(const std::string& run_directory, const Common& common) {
  Chain chain(run_directory + "/chain", common);
  RETURN_IF_ERROR(MakeDirectories(chain.directory_ + "/jobs"));
  const Json json = {{"version", 1},
                     {"job_name", common.job_name},
                     {"data_directory", common.data_directory},
                     {"options", common.options}};
  RETURN_IF_ERROR(ReplaceFile(chain.directory_ + "/chain.json", json.dump(2) + "\n"));
  return chain;
}

absl::StatusOr<Chain> Chain::Open(const std::string& run_directory) {
  const std::string path = run_directory + "/chain/chain.json";
  RETURN_IF_ERROR(ReadFile(path).status());
  const std::optional<Json> json = ReadJson(path);
  const Json read = json.value_or(Json::object());
  Common common{.job_name = Value(read, "job_name", std::string()),
                .data_directory = Value(read, "data_directory", std::string()),
                .options = Value(read, "options", std::vector<std::string>{})};
  if (Value(read, "version", 0) != 1 || common.job_name.empty() || common.data_directory.empty())
    return DataLoss(
        "{} is no chain's description, or of another version: perdure submit makes it "
        "anew",
        path);
  return Chain(run_directory + "/chain", std::move(common));
}

std::vector<ChainJob> Chain::Jobs() const {
  std::vector<ChainJob> jobs;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory_ + "/jobs", error))
    if (entry.path().extension() == ".json")
      if (const std::optional<Json> json = ReadJson(entry.path()); json.has_value())
        if (std::optional<ChainJob> job = ParseJob(*json); job.has_value())
          jobs.push_back(*std::move(job));
  std::sort(jobs.begin(), jobs.end(), [](const ChainJob& a, const ChainJob& b) {
    return std::tie(a.began, a.job, a.restarts) < std::tie(b.began, b.job, b.restarts);
  });
  return jobs;
}

absl::Status Chain::Tell(const ChainJob& job) const {
  Json json = {{"job", job.job},
               {"restarts", job.restarts},
               {"nodes", job.nodes},
               {"began", Seconds(job.began)},
               {"first_step", job.first_step}};
  if (job.time_over != absl::InfiniteFuture()) json["time_over"] = Seconds(job.time_over);
  if (job.left.has_value()) {
    json["left"] = Seconds(*job.left);
    json["exit_code"] = job.exit_code;
    json["last_step"] = job.last_step;
    json["why"] = job.why;
  }
  return ReplaceFile(fmt::format("{}/jobs/{}-{}.json", directory_, job.job, job.restarts),
                     json.dump() + "\n");
}

absl::Status Chain::TellAsked(int64_t job, const std::string& nodes) const {
  RETURN_IF_ERROR(MakeDirectories(directory_ + "/asked"));
  return ReplaceFile(fmt::format("{}/asked/{}", directory_, job), nodes + "\n");
}

std::string Chain::Asked(int64_t job) const {
  std::string nodes = ReadFile(fmt::format("{}/asked/{}", directory_, job)).value_or("");
  if (!nodes.empty() && nodes.back() == '\n') nodes.pop_back();
  return nodes;
}

absl::Status Chain::StopFor(const Stop& stop) const {
  if (stopped().has_value()) return absl::OkStatus();
  const Json json = {{"why", stop.why}, {"job", stop.job}, {"time", Seconds(stop.time)}};
  return ReplaceFile(directory_ + "/stopped.json", json.dump() + "\n");
}

std::optional<Chain::Stop> Chain::stopped() const {
  const std::string path = directory_ + "/stopped.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return std::nullopt;
  // One that cannot be read stops it as well.
  const Json json = ReadJson(path).value_or(Json::object());
  return Stop{.why = Value(json, "why", "for a reason that cannot be read in " + path),
              .job = Value(json, "job", int64_t{0}),
              .time = TimeOf(Value(json, "time", 0.0))};
}

absl::Status Chain::GoOn() const {
  std::error_code error;
  std::filesystem::remove(directory_ + "/stopped.json", error);
  return error ? ErrnoStatus(error.value(), "remove " + directory_ + "/stopped.json")
               : absl::OkStatus();
}

std::string JobNameOf(const std::string& run_name, const std::string& run_directory) {
  return fmt::format("perdure-{}-{}", run_name, DigestOf(run_directory).Hex().substr(0, 8));
}

std::string NodesFor(const RunConfig& config, int64_t step) {
  const StepSchedule schedule(config);
  std::string own;
  if (!config.foreign()) {
    const int phase = schedule.At(std::clamp<int64_t>(step, 0, schedule.steps() - 1)).phase;
    own = config.phases[static_cast<size_t>(phase)].nodes;
  }
  const absl::StatusOr<NodeRange> range = ParseNodeRange(own.empty() ? config.job.nodes : own);
  const int64_t least = range.ok() ? range->least + config.job.spares : 1;
  const int64_t most = range.ok() ? range->most + config.job.spares : 1;
  return least == most ? std::to_string(least) : fmt::format("{}-{}", least, most);
}

int64_t OtherNodesFrom(const RunConfig& config, int64_t step) {
  const StepSchedule schedule(config);
  const std::string nodes = NodesFor(config, step);
  for (size_t p = 1; p < schedule.phases().size(); ++p) {
    const int64_t first = schedule.phases()[p].first_step;
    if (first > step && NodesFor(config, first) != nodes) return first;
  }
  return -1;
}

NextJob NextJobAfter(int exit_code) {
  if (exit_code == kExitComplete) return NextJob::kNone;
  if (exit_code == kExitNoRestart || exit_code == kExitUsage) return NextJob::kStopped;
  return NextJob::kQueued;
}

bool NoProgress(const std::vector<ChainJob>& jobs, int64_t step, int64_t jobs_max) {
  int64_t without = 0;
  for (auto job = jobs.rbegin(); job != jobs.rend() && job->first_step >= step; ++job)
    if (++without >= jobs_max) return true;
  return false;
}

}  // namespace perdure
