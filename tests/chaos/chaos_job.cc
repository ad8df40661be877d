#include "tests/chaos/chaos_job.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <set>
#include <thread>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {

std::vector<std::string> SmallModel(const std::string& run, const std::string& folder,
                                    int64_t until) {
  std::vector<std::string> words = {"run",        NanoToml(), "--run-dir",    run,
                                    "--data-dir", folder,     "--until-step", std::to_string(until),
                                    "--quiet"};
  for (const std::string& setting :
       {std::string("model.layers=2"), std::string("model.hidden=64"), std::string("model.heads=4"),
        std::string("model.kv_heads=4"), std::string("model.ffn=192"),
        "layout.transport=" + BuiltTransport()}) {
    words.push_back("--set");
    words.push_back(setting);
  }
  return words;
}

ChaosEnd ChaosEndOf(const std::string& run, int exit_code) {
  ChaosEnd end{.exit_code = exit_code, .certificate = {}, .loss_bits = {}};
  const nlohmann::json listed = ListedCheckpoints(run);
  if (listed.is_array() && !listed.empty())
    end.certificate = listed.back().value("certificate", std::string());
  end.loss_bits = LossColumn(run, "loss_bits");
  return end;
}

ChaosEnd Undisturbed(const std::string& folder, const std::vector<std::string>& more,
                     int64_t until) {
  const std::string run = folder + "/undisturbed";
  std::vector<std::string> words = SmallModel(run, folder, until);
  words.insert(words.end(), {"--nodes", "1", "--ranks-per-node", "1", "--set", "layout.tensor=1",
                             "--set", "layout.pipeline=1"});
  words.insert(words.end(), more.begin(), more.end());
  return ChaosEndOf(run, Perdure(words).exit_code);
}

ChaosJob::ChaosJob(const std::string& folder, const std::vector<std::string>& more,
                   int64_t ranks_per_node, int64_t until)
    : run_(folder + "/run"), errors_(folder + "/errors") {
  std::vector<std::string> words = SmallModel(run_, folder, until);
  words.insert(words.end(), {"--ranks-per-node", std::to_string(ranks_per_node)});
  words.insert(words.end(), more.begin(), more.end());
  pid_ = StartPerdure(words, errors_);
}

ChaosJob::~ChaosJob() {
  if (pid_ == 0) return;
  ::kill(pid_, SIGKILL);
  (void)WaitFor(pid_);
}

int64_t ChaosJob::Step() const {
  const auto row = LastLossRow(run_ + "/metrics/loss.csv");
  return row.ok() && row->has_value() ? (*row)->step : 0;
}

bool ChaosJob::AwaitStep(int64_t step) {
  const absl::Time deadline = absl::Now() + absl::Minutes(2);
  while (absl::Now() < deadline) {
    if (Step() >= step && Status().value("state", "") == "running") return true;
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid == pid_)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

bool ChaosJob::AwaitEvent(const std::string& name, const std::string& part, absl::Duration within) {
  const absl::Time deadline = absl::Now() + within;
  while (absl::Now() < deadline) {
    for (const nlohmann::json& event : JournalEvents(run_, name))
      if (event.dump().find(part) != std::string::npos) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

bool ChaosJob::AwaitOpenCheckpoint() const {
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (absl::Now() < deadline) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(run_ + "/ckpt", error))
      // The manifest is what is written last.
      if (!std::filesystem::exists(entry.path() / "manifest.json", error)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

nlohmann::json ChaosJob::Status() const { return StatusOf(run_); }

nlohmann::json ChaosJob::Member(int64_t node) const {
  const absl::StatusOr<std::string> text =
      ReadFile(fmt::format("{}/jobs/{}/node-{:05}.json", run_, Status().value("job", 0UL), node));
  return text.ok() ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
}

int ChaosJob::Agent(int64_t node) const {
  const nlohmann::json member = Member(node);
  return member.is_object() ? member.value("agent_pid", 0) : 0;
}

std::vector<int> ChaosJob::Ranks(int64_t node) const {
  std::vector<int> pids;
  const nlohmann::json member = Member(node);
  if (member.is_object())
    for (const nlohmann::json& rank : member["ranks"]) pids.push_back(rank["pid"]);
  return pids;
}

int64_t ChaosJob::Coordinator() const { return Status().value("coordinator", int64_t{-1}); }

int64_t ChaosJob::Behind(int64_t places) const {
  const nlohmann::json status = Status();
  const int64_t coordinator = status.value("coordinator", int64_t{-1});
  std::set<int64_t> nodes{coordinator};  // On a spare node it is no member.
  for (const nlohmann::json& member : status.value("members", nlohmann::json::array()))
    nodes.insert(member.value("node", int64_t{-1}));
  auto at = nodes.find(coordinator);
  for (; places > 0; --places)
    if (++at == nodes.end()) at = nodes.begin();
  return *at;
}

void ChaosJob::SignalAgent(int64_t node, int signal) const {
  const int agent = Agent(node);
  // 0 would be everybody in this process's group.
  ASSERT_GT(agent, 1) << "node " << node << " has no agent in the status: " << Status();
  ::kill(agent, signal);
}

void ChaosJob::SignalNode(int64_t node, int signal) const {
  for (const int rank : Ranks(node)) ::kill(rank, signal);
  SignalAgent(node, signal);
}

void ChaosJob::Stop() const { ::kill(pid_, SIGTERM); }

ChaosEnd ChaosJob::Wait() {
  const int exit_code = WaitFor(pid_);
  pid_ = 0;
  return ChaosEndOf(run_, exit_code);
}

std::string ChaosJob::Errors() const { return ReadFile(errors_).value_or(""); }

}  // namespace perdure
