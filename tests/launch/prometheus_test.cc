// A real Prometheus that finds a run by what the run itself has written, and fetches its metrics
// through a failure, a shrink and a second job.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "absl/time/clock.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

std::string Output(const std::string& command) {
  std::string output;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer{};
  while (const size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), got);
  return ::pclose(pipe) == 0 ? output : output + "(it failed)";
}

bool Await(const std::function<bool()>& done, absl::Duration timeout = absl::Minutes(2)) {
  for (const absl::Time until = absl::Now() + timeout; absl::Now() < until;
       absl::SleepFor(absl::Milliseconds(200)))
    if (done()) return true;
  return false;
}

class Prometheus {
 public:
  Prometheus(std::string folder, const std::string& targets, const std::string& more = "")
      : folder_(std::move(folder)) {
    fs::create_directories(folder_ + "/data");
    std::ofstream(folder_ + "/prometheus.yml")
        << "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        << "rule_files: ['" << SourceDirectory() << "/monitoring/rules/perdure.rules.yml']\n"
        << "scrape_configs:\n- job_name: perdure\n"
        << more << "  file_sd_configs: [{files: ['" << targets << "'], refresh_interval: 1s}]\n";
    const std::string config = "--config.file=" + folder_ + "/prometheus.yml",
                      data = "--storage.tsdb.path=" + folder_ + "/data";
    const char* argv[] = {"prometheus",       config.c_str(),
                          data.c_str(),       "--web.listen-address=127.0.0.1:0",
                          "--log.level=info", nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    const std::string log = folder_ + "/log";
    for (int fd : {1, 2})
      ::posix_spawn_file_actions_addopen(&actions, fd, log.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                         0600);
    EXPECT_EQ(
        ::posix_spawnp(&pid_, "prometheus", &actions, nullptr, const_cast<char**>(argv), environ),
        0);
    ::posix_spawn_file_actions_destroy(&actions);
    EXPECT_TRUE(Await([&] {
      const std::string text = Log();
      const size_t at = text.find("msg=\"Listening on\" address=");
      if (at == std::string::npos) return false;
      const size_t begin = text.find('=', text.find("address=", at)) + 1;
      address_ = text.substr(begin, text.find_first_of(" \n", begin) - begin);
      return Output("curl -sS http://" + address_ + "/-/ready").find("Ready") != std::string::npos;
    })) << Log();
  }
  ~Prometheus() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  std::string Log() const { return ReadFile(folder_ + "/log").value_or(""); }
  // Of /api/v1/...; what curl's -G --data-urlencode adds is in `more`.
  json Ask(const std::string& path, const std::string& more = "") const {
    const json answer = json::parse(
        Output(fmt::format("curl -sS -G 'http://{}/api/v1/{}' {}", address_, path, more)), nullptr,
        false);
    return answer.is_object() && answer.contains("data") ? answer["data"] : json();
  }
  // The vector that an expression gives now.
  json Query(const std::string& expression) const {
    std::ofstream(folder_ + "/query") << expression;
    const json data = Ask("query", fmt::format("--data-urlencode query@{}/query", folder_));
    return data.is_object() ? data["result"] : json::array();
  }
  double Value(const std::string& expression) const {
    const json result = Query(expression);
    return result.size() == 1
               ? std::strtod(result[0]["value"][1].get<std::string>().c_str(), nullptr)
               : std::nan("");
  }
  // The raw samples of a series in the last minutes: (time, text).
  std::vector<std::pair<double, std::string>> Samples(const std::string& series) const {
    std::vector<std::pair<double, std::string>> samples;
    for (const json& one : Query(series + "[15m]"))
      for (const json& sample : one["values"]) samples.emplace_back(sample[0], sample[1]);
    std::sort(samples.begin(), samples.end());
    return samples;
  }
  size_t ActiveTargets() const { return Ask("targets?state=active")["activeTargets"].size(); }

 private:
  const std::string folder_;
  std::string address_;
  pid_t pid_ = 0;
};

class PrometheusTest : public testing::Test {
 protected:
  void SetUp() override {
    if (Output("prometheus --version").find("prometheus, version") == std::string::npos)
      GTEST_SKIP() << "prometheus is not installed";
    folder_ = FreshFolder("prometheus");
    WriteNanoData(folder_);
    fs::create_directories(folder_ + "/textfile");
  }
  ~PrometheusTest() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }
  std::string run() const { return folder_ + "/run"; }
  std::vector<std::string> Job(const std::string& until) const {
    return {"run",
            NanoToml(),
            "--run-dir",
            run(),
            "--data-dir",
            folder_,
            "--nodes",
            "2",
            "--ranks-per-node",
            "1",
            "--set",
            "layout.tensor=1",
            "--set",
            "layout.pipeline=1",
            "--set",
            "layout.transport=" + BuiltTransport(),
            "--set",
            "phase.pretrain.samples=1000000",
            "--set",
            "monitoring.peak_tflops=1",
            "--set",
            "monitoring.textfile=" + folder_ + "/textfile",
            "--set",
            "checkpoint.every_steps=15",
            "--until-step",
            until,
            "--no-agent-restart"};
  }
  int64_t Step() const {
    const std::vector<std::string> steps = LossColumn(run(), "step");
    return steps.empty() ? 0 : std::stoll(steps.back());
  }

  // All panels' and alerts', on what was scraped: what is exported gives data, whatever is asked.
  void ExpectExpressionsGiveData(const Prometheus& prometheus) const {
    std::vector<std::string> expressions;
    for (const auto& entry :
         fs::directory_iterator(SourceDirectory() + "/monitoring/grafana/dashboards")) {
      const json dashboard = json::parse(ReadFile(entry.path()).value_or(""), nullptr, false);
      for (const json& panel : dashboard["panels"])
        for (const json& target : panel["targets"]) expressions.push_back(target["expr"]);
    }
    ASSERT_GT(expressions.size(), 50U);
    std::set<std::string> exported;
    const json names = prometheus.Ask("label/__name__/values");
    for (const json& name : names) exported.insert(name);
    for (std::string expression : expressions) {
      for (const auto& [variable, value] :
           {std::pair{"\\$__rate_interval", "1m"}, std::pair{"\\$__range", "10m"},
            std::pair{"\\$(job|instance|run)", ".+"}})
        expression = std::regex_replace(expression, std::regex(variable), value);
      // No node is slow, and the time of a job of this machine has no end.
      const bool absent = expression.find("perdure_node_slow_ratio") != std::string::npos ||
                          expression.find("perdure_job_time_left") != std::string::npos;
      EXPECT_EQ(prometheus.Query(expression).empty(), absent) << expression;
    }
    const json groups = prometheus.Ask("rules")["groups"];
    ASSERT_EQ(groups.size(), 1U);
    for (const json& rule : groups[0]["rules"]) EXPECT_EQ(rule["health"], "ok") << rule;
    EXPECT_FALSE(prometheus.Query("run:perdure_steps:rate5m").empty());
  }

  // What was told last, of all jobs, is what the journal alone gives.
  void ExpectGoodputOfTheJournal() const {
    std::map<int64_t, double> counts;  // Of each step, the time of the last that was taken.
    double taken = 0, starting = 0, recovering = 0;
    for (const json& step : JournalEvents(run(), "step")) {
      counts[step["step"]] = step["seconds"];
      taken += step["seconds"].get<double>();
    }
    for (const json& first : JournalEvents(run(), "first_step"))
      (first["why"] == "start" ? starting : recovering) +=
          first["seconds"].get<double>() - first["first"].get<double>();
    double productive = 0;
    for (const auto& [step, seconds] : counts) productive += seconds;
    const std::string told = ReadFile(folder_ + "/textfile/perdure_lucie-nano.prom").value_or("");
    const auto said = [&](const std::string& series) {
      const size_t at = told.find(series + " ");
      EXPECT_NE(at, std::string::npos) << series;
      return at == std::string::npos ? 0 : std::strtod(told.c_str() + at + series.size(), nullptr);
    };
    const auto kind = [&](const char* name) {
      return said(fmt::format("perdure_goodput_seconds{{run=\"lucie-nano\",kind=\"{}\"}}", name));
    };
    EXPECT_NEAR(kind("productive"), productive, 1e-4 * static_cast<double>(counts.size()));
    EXPECT_NEAR(kind("redone"), taken - productive, 1e-4 * static_cast<double>(counts.size()));
    EXPECT_NEAR(kind("starting"), starting, 1e-6);
    EXPECT_NEAR(kind("recovering"), recovering, 1e-6);
    double held = 0;
    for (const char* name : {"productive", "redone", "starting", "recovering", "saving", "other"})
      held += kind(name);
    EXPECT_NEAR(said("perdure_goodput_ratio{run=\"lucie-nano\"}"), productive / held, 1e-3);
    EXPECT_EQ(said("perdure_jobs_total{run=\"lucie-nano\",outcome=\"stopped\"}"), 1)
        << "the second one is about to be";
  }

  std::string folder_;
};

TEST_F(PrometheusTest, FollowsARunThroughAFailureAShrinkAndTheNextJob) {
  Prometheus prometheus(folder_ + "/prometheus", run() + "/targets/*.json");
  int pid = StartPerdure(Job("1000000"), folder_ + "/errors");
  ASSERT_TRUE(Await([&] { return prometheus.Value("up{job=\"perdure\"}") == 1; }))
      << ReadFile(folder_ + "/errors").value_or("") << prometheus.Log();
  ASSERT_TRUE(Await([&] { return prometheus.Value("perdure_step") >= 20; }));
  EXPECT_EQ(prometheus.Value("perdure_ranks"), 2);
  EXPECT_EQ(prometheus.Value("perdure_state{state=\"running\"}"), 1);
  // What it says is clean.
  const json target = prometheus.Ask("targets?state=active")["activeTargets"][0];
  EXPECT_EQ(target["labels"]["instance"], "lucie-nano");
  const std::string scraped = Output("curl -sS " + target["scrapeUrl"].get<std::string>());
  std::ofstream(folder_ + "/metrics") << scraped;
  EXPECT_EQ(Output("promtool check metrics < " + folder_ + "/metrics"), "");

  // A rank is killed: one failure more, and the run goes on.
  const json before = StatusOf(run());
  ::kill(before["members"][1]["ranks"][0]["pid"], SIGKILL);
  ASSERT_TRUE(Await([&] { return prometheus.Value("sum(perdure_failures_total)") == 1; }));
  ASSERT_TRUE(Await([&] { return prometheus.Value("perdure_generation") == 2; }));
  // An agent is, and is not started again: one rank is left.
  const json now = StatusOf(run());
  for (const json& member : now["members"])
    if (member["node"] != now["coordinator"]) ::kill(member["agent_pid"], SIGKILL);
  ASSERT_TRUE(Await([&] { return prometheus.Value("perdure_ranks") == 1; }));
  const int64_t step = Step();
  ASSERT_TRUE(Await([&] { return prometheus.Value("perdure_step") > static_cast<double>(step); }));
  ::kill(pid, SIGTERM);
  EXPECT_EQ(WaitFor(pid), 75) << ReadFile(folder_ + "/errors").value_or("");
  EXPECT_FALSE(fs::exists(run() + "/targets/perdure.json")) << "nobody is sent there any more";
  ASSERT_TRUE(Await([&] { return prometheus.ActiveTargets() == 0; }));
  ASSERT_TRUE(Await([&] { return prometheus.Query("perdure_step").empty(); })) << "it is stale";

  // The next job's endpoint is another one; its series are the same.
  const int64_t left = Step();
  pid = StartPerdure(Job("1000000"), folder_ + "/errors");
  ASSERT_TRUE(Await([&] { return prometheus.Value("perdure_step") > static_cast<double>(left); }));
  EXPECT_EQ(prometheus.Query("perdure_step").size(), 1U);
  EXPECT_EQ(prometheus.Value("count(count by (run) (count_over_time(perdure_step[15m])))"), 1);
  EXPECT_EQ(prometheus.Value("count(count_over_time(perdure_step[15m]))"), 1) << "one series";
  ExpectExpressionsGiveData(prometheus);
  ::kill(pid, SIGTERM);
  WaitFor(pid);
  ExpectGoodputOfTheJournal();

  // Each sample is a row of loss.csv, bit for bit.
  std::map<std::string, std::pair<std::string, std::string>> rows;
  const std::vector<std::string> steps = LossColumn(run(), "step"),
                                 losses = LossColumn(run(), "loss"),
                                 tokens = LossColumn(run(), "tokens");
  for (size_t i = 0; i < steps.size(); ++i) rows[steps[i]] = {losses[i], tokens[i]};
  std::map<double, std::string> loss_at, tokens_at;
  for (const auto& [time, value] : prometheus.Samples("perdure_loss")) loss_at[time] = value;
  for (const auto& [time, value] : prometheus.Samples("perdure_tokens")) tokens_at[time] = value;
  size_t compared = 0;
  for (const auto& [time, value] : prometheus.Samples("perdure_step")) {
    const auto row = rows.find(value);
    if (row == rows.end() || !loss_at.contains(time)) continue;
    EXPECT_EQ(std::strtod(loss_at[time].c_str(), nullptr),
              std::strtod(row->second.first.c_str(), nullptr))
        << value;
    EXPECT_EQ(std::strtod(tokens_at[time].c_str(), nullptr),
              std::strtod(row->second.second.c_str(), nullptr))
        << value;
    ++compared;
  }
  EXPECT_GT(compared, 5U);
}

}  // namespace
}  // namespace perdure
