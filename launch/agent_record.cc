#include "launch/agent_record.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <utility>
#include <vector>

#include "launch/exec_options.h"
#include "runtime/agent/process.h"
#include "runtime/agent/progress_file.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// Whoever started the agents, and so outlives them.
Json StatusHead(const RunConfig& config, pid_t launcher) {
  Json head = {{"launcher_pid", launcher},
               {"launcher_start", ProcessStart(launcher)},
               {"name", config.name}};
  if (config.foreign())
    head["command"] = config.exec.command;
  else
    head["steps_total"] = StepSchedule(config).steps();
  return head;
}

absl::Status WriteStatus(const std::string& run_directory, Json status) {
  status["time"] = TimeNow();
  return ReplaceFileFast(run_directory + "/status.json", status.dump(2) + "\n");
}

}  // namespace

AgentRecord::AgentRecord(std::string run_directory, const RunConfig& config, bool quiet)
    : run_directory_(std::move(run_directory)),
      config_(config),
      schedule_(config),
      line_(config, quiet) {}

absl::StatusOr<std::unique_ptr<AgentRecord>> AgentRecord::Open(const std::string& run_directory,
                                                               const RunConfig& config,
                                                               bool quiet) {
  std::unique_ptr<AgentRecord> record(new AgentRecord(run_directory, config, quiet));
  RETURN_IF_ERROR(MakeDirectories(run_directory + "/metrics"));
  RETURN_IF_ERROR(MakeDirectories(run_directory + "/ckpt"));
  ASSIGN_OR_RETURN(record->journal_, Journal::Open(run_directory + "/journal.jsonl"));
  return record;
}

void AgentRecord::Warn(const absl::Status& status) {
  if (status.ok() || warned_) return;
  warned_ = true;
  Say(fmt::format("warning: {}; training goes on without that record", Message(status)));
}

void AgentRecord::Say(const std::string& line) { line_.Say(line, true); }

void AgentRecord::Event(std::string_view event, const Json& fields) {
  Warn(journal_->Append(event, fields));
}

void AgentRecord::Step(uint64_t generation, int64_t ranks, const StepReport& r) {
  const bool again = r.seconds == 0;
  // Where the generation begins is known with its first step.
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (generation != generation_) {
    OpenLosses(generation, again ? kAll : r.step - 1);
    const auto rows = ReadLossBits(run_directory_ + "/metrics/loss.csv", r.step);
    rows_ = again && rows.ok() ? *rows : decltype(rows_)();
  }
  if (again && r.step <= last_row_) {
    // What the run has left behind, when it went back, is of other samples; its rows are still
    // there if whoever took the steps again could not write.
    const auto row = rows_.find(r.step);
    if (row == rows_.end() || row->second == LossBits(r.loss)) return;
    OpenLosses(generation, r.step - 1);
  }
  if (!again && r.step != last_row_ + 1) OpenLosses(generation, r.step - 1);
  last_row_ = r.step;
  const std::string& phase = config_.phases[static_cast<size_t>(r.phase)].name;
  if (loss_csv_ != nullptr) Warn(loss_csv_->Append(LossRowOf(config_, generation, ranks, r)));
  if (again) {
    Event("step_told_again",
          {{"step", r.step}, {"generation", generation}, {"loss_bits", LossBits(r.loss)}});
    return;
  }
  Event("step", {{"step", r.step},
                 {"generation", generation},
                 {"phase", phase},
                 {"samples", {r.first_sample, r.first_sample + r.batch}},
                 {"sample_chain", r.sample_chain.Hex()},
                 {"loss_bits", LossBits(r.loss)},
                 {"seconds", r.seconds},
                 {"wait_seconds", r.wait_seconds}});
  line_.Show(r);
}

void AgentRecord::OpenLosses(uint64_t generation, int64_t resume_step) {
  const std::string path = run_directory_ + "/metrics/loss.csv";
  generation_ = generation;
  loss_csv_.reset();
  absl::StatusOr<std::unique_ptr<LossCsv>> csv = LossCsv::Open(path, resume_step);
  Warn(csv.status());
  if (csv.ok()) loss_csv_ = *std::move(csv);
  const absl::StatusOr<std::optional<LossRow>> last = LastLossRow(path);
  last_row_ = last.ok() && last->has_value() ? (*last)->step : 0;
}

void AgentRecord::Job(const Json& state) {
  if (state == job_) return;
  job_ = state;
  Json status = StatusHead(config_, ::getppid());
  status.update(state);
  if (Json& first = status["time_to_first_step"]; first.is_object() && first["seconds"].is_null())
    if (Json told = FirstStepTold(state); !told.is_null()) first = std::move(told);
  Warn(WriteStatus(run_directory_, std::move(status)));
}

// What a coordinator of the job before this one has told of the generation's first step; null:
// nothing.
Json AgentRecord::FirstStepTold(const Json& state) const {
  const absl::StatusOr<std::string> text = ReadFile(run_directory_ + "/status.json");
  if (!text.ok()) return {};
  const Json before = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!before.is_object() || before.value("job", Json()) != state.value("job", Json())) return {};
  Json told = before.value("time_to_first_step", Json());
  const bool same = told.is_object() && told.value("generation", Json()) ==
                                            state["time_to_first_step"].value("generation", Json());
  return same ? told : Json();
}

void AgentRecord::Node(const std::string& directory, const Json& node) {
  if (node == node_) return;
  node_ = node;
  Warn(ReplaceFileFast(fmt::format("{}/node-{:05}.json", directory, node["node"].get<int64_t>()),
                       node.dump(2) + "\n"));
}

absl::Status RecordState(const std::string& run_directory, const RunConfig& config,
                         const std::string& state, int64_t slurm_job) {
  Json status = Json::object();
  const absl::StatusOr<std::string> text = ReadFile(run_directory + "/status.json");
  if (text.ok())
    if (Json before = Json::parse(*text, nullptr, /*allow_exceptions=*/false); before.is_object())
      status = std::move(before);
  status.update(StatusHead(config, ::getpid()));
  status["slurm_job"] = slurm_job;
  status["state"] = state;
  // What is over is told as it was.
  if (state == "starting") status["nodes"] = Json::array();
  return WriteStatus(run_directory, std::move(status));
}

// ---- reading

std::vector<Json> AgentRecord::ReadNodes(const std::string& directory,
                                         const std::vector<NodeId>& nodes) {
  std::vector<Json> said;
  for (const NodeId node : nodes) {
    const absl::StatusOr<std::string> text =
        ReadFile(fmt::format("{}/node-{:05}.json", directory, node));
    if (!text.ok()) continue;
    Json one = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (one.is_object()) said.push_back(std::move(one));
  }
  return said;
}

bool JobLives(std::string_view state) {
  return state == "starting" || state == "running" || state == "recovering" || state == "stopping";
}

absl::StatusOr<nlohmann::ordered_json> ReadStatus(const std::string& run_directory,
                                                  const SlurmLives& slurm_lives) {
  const std::string path = run_directory + "/status.json";
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok())
    return NotFound("{} is not there: {} is no run directory, or its first job has not begun", path,
                    run_directory);
  const Json read = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!read.is_object() || !read.contains("state") || !read["state"].is_string())
    return DataLoss("{} is not a status; the next job writes it anew", path);
  const std::string state = read["state"];
  const bool live = JobLives(state);
  const auto slurm_job = read.value("slurm_job", int64_t{0});
  const auto lives = [&]() -> bool {
    if (slurm_job == 0)
      return ProcessLives(read.value("launcher_pid", 0), read.value("launcher_start", uint64_t{0}));
    // Its launchers are elsewhere.
    return slurm_lives == nullptr || slurm_lives(slurm_job).value_or(true);
  };
  const bool lost = live && !lives();
  nlohmann::ordered_json status;
  const auto copy = [&](const char* key) { status[key] = read.value(key, Json()); };
  copy("name");
  copy("state");
  if (lost) status["state"] = "lost";  // It ended without being able to say so.
  const absl::StatusOr<std::optional<LossRow>> last =
      LastLossRow(run_directory + "/metrics/loss.csv");
  const bool stepped = last.ok() && last->has_value();
  if (read.contains("command")) {
    // A trainer that is not ours: what it has said itself.
    copy("command");
    status["progress"] = Json();
    if (std::optional<Json> line = ProgressFile::Last(ProgressPath(run_directory)))
      status["progress"] = *std::move(line);
  } else {
    status["phase"] = stepped ? Json((*last)->phase) : Json();
    status["step"] = stepped ? (*last)->step : 0;
    copy("steps_total");
    status["loss"] = stepped ? Json((*last)->loss) : Json();
    status["tokens_per_second"] = stepped ? Json((*last)->tokens_per_second) : Json();
  }
  copy("generation");
  copy("layout");
  copy("time_to_first_step");
  copy("slow");
  std::vector<NodeId> nodes;
  if (const auto list = read.find("nodes"); list != read.end() && list->is_array())
    for (const Json& node : *list)
      if (node.is_number_unsigned()) nodes.push_back(node.get<NodeId>());
  status["nodes"] = nodes.size();
  // It may have no ranks, and is a member all the same.
  if (const auto lead = read.find("coordinator"); lead != read.end() && lead->is_number_unsigned())
    if (std::find(nodes.begin(), nodes.end(), lead->get<NodeId>()) == nodes.end())
      nodes.push_back(lead->get<NodeId>());
  copy("job");
  copy("slurm_job");
  copy("coordinator");
  copy("launcher_pid");
  copy("launcher_start");
  status["members"] = Json::array();
  if (live && !lost)
    for (Json& member : AgentRecord::ReadNodes(
             fmt::format("{}/jobs/{}", run_directory, read.value("job", uint64_t{0})), nodes)) {
      member.erase("devices");
      status["members"].push_back(nlohmann::ordered_json(member));
    }
  copy("time");
  return status;
}

}  // namespace perdure
