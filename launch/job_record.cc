#include "launch/job_record.h"

#include <unistd.h>

#include <cstdio>

#include "runtime/agent/process.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr auto kStatusEvery = std::chrono::milliseconds(200);

}  // namespace

JobRecord::JobRecord(std::string run_directory, const RunConfig& config, uint64_t generation,
                     int64_t nodes, bool quiet)
    : run_directory_(std::move(run_directory)),
      config_(config),
      schedule_(config),
      generation_(generation),
      nodes_(nodes),
      line_(config, quiet) {}

absl::StatusOr<std::unique_ptr<JobRecord>> JobRecord::Open(const std::string& run_directory,
                                                           const RunConfig& config,
                                                           uint64_t generation, int64_t resume_step,
                                                           int64_t nodes, bool quiet) {
  std::unique_ptr<JobRecord> record(new JobRecord(run_directory, config, generation, nodes, quiet));
  RETURN_IF_ERROR(MakeDirectories(run_directory + "/metrics"));
  ASSIGN_OR_RETURN(record->journal_, Journal::Open(run_directory + "/journal.jsonl"));
  ASSIGN_OR_RETURN(record->loss_csv_,
                   LossCsv::Open(run_directory + "/metrics/loss.csv", resume_step));
  const LayoutConfig& layout = config.layout;
  nlohmann::ordered_json& status = record->status_;
  status["name"] = config.name;
  status["state"] = "starting";
  status["phase"] = nullptr;
  status["step"] = resume_step;
  status["steps_total"] = record->schedule_.steps();
  status["loss"] = nullptr;
  status["tokens_per_second"] = nullptr;
  status["generation"] = generation;
  status["layout"] = {{"tensor", layout.tensor},
                      {"pipeline", layout.pipeline},
                      {"data", layout.data},
                      {"zero", layout.zero}};
  status["nodes"] = nodes;
  status["supervisor_pid"] = ::getpid();
  status["supervisor_start"] = ProcessStart(::getpid());
  status["members"] = nlohmann::json::array();
  return record;
}

void JobRecord::Warn(const absl::Status& status) {
  if (status.ok() || warned_) return;
  warned_ = true;
  Say(fmt::format("warning: {}; training goes on without that record", Message(status)));
}

void JobRecord::Say(const std::string& line) { line_.Say(line, false); }

void JobRecord::Event(std::string_view event, const nlohmann::json& fields) {
  Warn(journal_->Append(event, fields));
}

void JobRecord::Step(const StepReport& r) {
  const std::string& phase = config_.phases[static_cast<size_t>(r.phase)].name;
  const double tokens_per_second = static_cast<double>(r.step_tokens) / r.seconds;
  Warn(loss_csv_->Append(LossRowOf(config_, generation_, config_.layout.ranks(), r)));
  Event("step", {{"step", r.step},
                 {"generation", generation_},
                 {"phase", phase},
                 {"samples", {r.first_sample, r.first_sample + r.batch}},
                 {"sample_chain", r.sample_chain.Hex()}});
  status_["state"] = status_["state"] == "starting" ? "running" : status_["state"];
  status_["phase"] = phase;
  status_["step"] = r.step;
  status_["loss"] = r.loss;
  status_["tokens_per_second"] = tokens_per_second;
  WriteStatus(false);
  line_.Show(r);
}

void JobRecord::State(const std::string& state, const std::vector<LocalRank>& ranks) {
  status_["state"] = state;
  nlohmann::json members = nlohmann::json::array();
  for (const LocalRank& rank : ranks) {
    if (members.empty() || members.back()["node"] != rank.node)
      members.push_back(
          {{"node", rank.node}, {"agent_pid", ::getpid()}, {"ranks", nlohmann::json::array()}});
    members.back()["ranks"].push_back({{"rank", rank.rank}, {"pid", rank.pid}});
  }
  status_["members"] = members;
  WriteStatus(true);
  if (state != "running" && state != "starting") line_.Close();
}

void JobRecord::WriteStatus(bool force) {
  const auto now = std::chrono::steady_clock::now();
  if (!force && now - status_written_ < kStatusEvery) return;
  status_written_ = now;
  status_["time"] = TimeNow();
  Warn(ReplaceFileFast(run_directory_ + "/status.json", status_.dump(2) + "\n"));
}

}  // namespace perdure
