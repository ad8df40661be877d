// The table of metrics, the page made of it, and what dashboards and rules name.
#include "monitoring/metric_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kSource = PERDURE_SOURCE_DIR;

// "" where it ended with 0, else what it printed.
std::string Fails(const std::string& command) {
  std::string output;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer{};
  while (const size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), got);
  return ::pclose(pipe) == 0 ? "" : output + "(it failed)";
}

// Metrics that an expression names: series of histograms count as the histogram.
std::set<std::string> NamesIn(const std::string& text) {
  std::set<std::string> names;
  const std::regex name("\\b(perdure|process)_[a-z_]+");
  for (std::sregex_iterator at(text.begin(), text.end(), name), end; at != end; ++at) {
    std::string found = at->str();
    // A recorded rule: run:perdure_...
    if (at->position() > 0 && text[static_cast<size_t>(at->position()) - 1] == ':') continue;
    for (const char* suffix : {"_bucket", "_sum", "_count"})
      if (found.ends_with(suffix)) found.resize(found.size() - std::string(suffix).size());
    names.insert(found);
  }
  return names;
}

std::set<std::string> Known() {
  std::set<std::string> known;
  for (const MetricSpec& spec : MetricList()) known.emplace(spec.name);
  return known;
}

struct Dashboard {
  std::string file;
  json body;
};
std::vector<Dashboard> Dashboards() {
  std::vector<Dashboard> dashboards;
  for (const auto& entry : fs::directory_iterator(kSource + "/monitoring/grafana/dashboards"))
    dashboards.push_back({entry.path().filename(),
                          json::parse(ReadFile(entry.path()).value_or(""), nullptr, false)});
  return dashboards;
}

std::vector<std::string> ExpressionsOf(const json& dashboard) {
  std::vector<std::string> expressions;
  for (const json& panel : dashboard["panels"])
    for (const json& target : panel["targets"]) expressions.push_back(target["expr"]);
  for (const json& annotation : dashboard["annotations"]["list"])
    expressions.push_back(annotation["expr"]);
  return expressions;
}

TEST(MetricList, NamesFollowTheConventions) {
  std::set<std::string_view> seen;
  for (const MetricSpec& spec : MetricList()) {
    const std::string name(spec.name);
    EXPECT_TRUE(seen.insert(spec.name).second) << name << " is there twice";
    EXPECT_TRUE(name.starts_with("perdure_") || name.starts_with("process_")) << name;
    EXPECT_EQ(name.ends_with("_total"), spec.kind == MetricKind::kCounter) << name;
    EXPECT_FALSE(spec.help.empty()) << name;
    EXPECT_EQ(spec.buckets.empty(), spec.kind != MetricKind::kHistogram) << name;
    EXPECT_TRUE(std::is_sorted(spec.buckets.begin(), spec.buckets.end())) << name;
    for (const char* abbreviated :
         {"_ms", "_secs", "_sec", "_mb", "_gb", "_pct", "_percent", "_kb"})
      EXPECT_FALSE(name.ends_with(abbreviated)) << name;
    for (const LabelSpec& label : spec.labels) {
      EXPECT_NE(label.name, "run") << name << ": all have it";
      EXPECT_FALSE(label.values.empty()) << name;
    }
  }
}

TEST(MetricList, ThePageIsMadeOfIt) {
  const std::string path = kSource + "/docs/metrics.md";
  if (std::getenv("UPDATE_GOLDEN") != nullptr) std::ofstream(path) << MetricsPage();
  EXPECT_EQ(ReadFile(path).value_or(""), MetricsPage())
      << "UPDATE_GOLDEN=1 build/tests/metric_list_test writes it";
}

TEST(MetricList, IsWhatRulesAndDashboardsName) {
  const std::set<std::string> known = Known();
  std::set<std::string> used;
  const std::string rules = ReadFile(kSource + "/monitoring/rules/perdure.rules.yml").value_or("");
  ASSERT_NE(rules, "");
  for (const std::string& name : NamesIn(rules)) EXPECT_TRUE(known.contains(name)) << name;
  for (const Dashboard& dashboard : Dashboards())
    for (const std::string& expression : ExpressionsOf(dashboard.body))
      for (const std::string& name : NamesIn(expression)) {
        EXPECT_TRUE(known.contains(name)) << dashboard.file << ": " << name;
        used.insert(name);
      }
  for (const std::string& name : known)
    EXPECT_TRUE(used.contains(name)) << name << " is on no dashboard";
}

// The rules of Grafana's dashboard linter that mean something here.
TEST(Dashboards, AreAsTheLinterWantsThem) {
  ASSERT_EQ(Dashboards().size(), 3U);
  for (const auto& [file, body] : Dashboards()) {
    ASSERT_TRUE(body.is_object()) << file;
    EXPECT_EQ(body["editable"], false) << file;
    EXPECT_FALSE(body["uid"].get<std::string>().empty()) << file;
    EXPECT_EQ(body["schemaVersion"], 39) << file;
    std::map<std::string, json> variables;
    int sources = 0;
    for (const json& variable : body["templating"]["list"]) {
      variables[variable["name"]] = variable;
      sources += variable["type"] == "datasource";
    }
    EXPECT_EQ(sources, 1) << file;
    EXPECT_EQ(variables["datasource"]["type"], "datasource") << file;
    EXPECT_EQ(variables["datasource"]["label"], "Data Source") << file;
    for (const char* name : {"job", "instance", "run"}) {
      const json& variable = variables[name];
      EXPECT_EQ(variable["multi"], true) << file << name;
      EXPECT_EQ(variable["allValue"], ".+") << file << name;
      EXPECT_EQ(variable["refresh"], 2) << file << name << ": on time range change";
    }
    for (const json& panel : body["panels"]) {
      const std::string at = file + ": " + panel["title"].dump();
      EXPECT_FALSE(panel["title"].get<std::string>().empty()) << at;
      EXPECT_FALSE(panel["description"].get<std::string>().empty()) << at;
      EXPECT_EQ(panel["datasource"]["uid"], "$datasource") << at;
      EXPECT_THAT((std::set<std::string>{"none", "s", "bytes", "percentunit"}),
                  testing::Contains(panel["fieldConfig"]["defaults"]["unit"].get<std::string>()))
          << at;
      ASSERT_FALSE(panel["targets"].empty()) << at;
      std::set<std::string> letters;
      for (const json& target : panel["targets"]) {
        const std::string expression = target["expr"];
        EXPECT_TRUE(letters.insert(target["refId"]).second) << at;
        EXPECT_THAT(expression, HasSubstr("job=~\"$job\"")) << at;
        EXPECT_THAT(expression, HasSubstr("instance=~\"$instance\"")) << at;
        const std::regex counters("([a-z]+)\\(\\w+(_total|_bucket)\\b");
        const std::regex counter("\\w+(_total|_bucket)\\{");
        const auto count = [&](const std::regex& what) {
          return std::distance(std::sregex_iterator(expression.begin(), expression.end(), what),
                               {});
        };
        EXPECT_EQ(count(counter), count(std::regex("(rate|increase)\\(\\w+(_total|_bucket)\\{")))
            << at << ": counters are for rates";
        if (expression.find("rate(") != std::string::npos) {
          EXPECT_THAT(expression, HasSubstr("[$__rate_interval]")) << at;
        }
      }
    }
  }
}

TEST(Dashboards, AreWhatTheScriptMakes) {
  const std::string made = fmt::format("{}dashboards.{}", testing::TempDir(), ::getpid());
  fs::create_directories(made);
  EXPECT_EQ(Fails("python3 " + kSource + "/monitoring/grafana/make_dashboards.py " + made), "");
  for (const Dashboard& dashboard : Dashboards())
    EXPECT_EQ(ReadFile(made + "/" + dashboard.file).value_or("none"),
              ReadFile(kSource + "/monitoring/grafana/dashboards/" + dashboard.file).value_or(""))
        << dashboard.file;
  fs::remove_all(made);
}

class Promtool : public testing::Test {
 protected:
  void SetUp() override {
    if (!Fails("promtool --version").empty()) GTEST_SKIP() << "promtool is not installed";
  }
};

TEST_F(Promtool, TakesTheRules) {
  EXPECT_EQ(Fails("promtool check rules " + kSource + "/monitoring/rules/perdure.rules.yml"), "");
  EXPECT_EQ(Fails("promtool test rules " + kSource + "/monitoring/rules/perdure.rules.test.yml"),
            "");
}

// As rules, with the variables replaced: then it parses them.
TEST_F(Promtool, TakesTheExpressionsOfDashboards) {
  const std::string path = fmt::format("{}expressions.{}.yml", testing::TempDir(), ::getpid());
  json rules = json::array();
  for (const Dashboard& dashboard : Dashboards())
    for (std::string expression : ExpressionsOf(dashboard.body)) {
      for (const auto& [variable, value] :
           {std::pair{"\\$__rate_interval", "5m"}, std::pair{"\\$__interval", "1m"},
            std::pair{"\\$__range", "1d"}, std::pair{"\\$(job|instance|run)", ".+"}})
        expression = std::regex_replace(expression, std::regex(variable), value);
      rules.push_back({{"record", "a:b"},
                       {"expr", expression},
                       {"labels", {{"n", std::to_string(rules.size())}}}});
    }
  std::ofstream(path) << json{{"groups", {{{"name", "all"}, {"rules", rules}}}}}.dump();
  EXPECT_EQ(Fails("promtool check rules " + path), "");
  fs::remove(path);
}

// Each alert has a section in docs/alerts.md, which its annotation names.
TEST(Alerts, AreExplained) {
  const std::string rules = ReadFile(kSource + "/monitoring/rules/perdure.rules.yml").value_or("");
  const std::string page = ReadFile(kSource + "/docs/alerts.md").value_or("");
  const std::regex alert("- alert: (\\w+)");
  int count = 0;
  for (std::sregex_iterator at(rules.begin(), rules.end(), alert), end; at != end; ++at, ++count) {
    const std::string name = (*at)[1];
    std::string anchor = name;
    std::transform(anchor.begin(), anchor.end(), anchor.begin(), ::tolower);
    EXPECT_THAT(page, testing::ContainsRegex("## [A-Za-z, ]*" + name)) << name;
    EXPECT_THAT(rules, HasSubstr("docs/alerts.md#" + anchor)) << name;
  }
  EXPECT_GE(count, 12);
}

}  // namespace
}  // namespace perdure
