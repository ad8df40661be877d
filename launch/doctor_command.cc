#include "launch/doctor_command.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "launch/byte_count.h"
#include "launch/exit_codes.h"
#include "runtime/agent/file_system_probe.h"
#include "runtime/agent/run_key.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTasksMax = 4096;
constexpr size_t kTokenBytesMax = 64;

struct DoctorArguments {
  std::string run_directory;
  std::string bytes = "256MiB";
  std::string token;
  int tasks = 0, task = -1;  // 0, -1: as Slurm says.
  int64_t wait_seconds = 60;
  bool json = false;
};

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::optional<int> Number(const std::string& text) {
  int number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || text.empty()) return std::nullopt;
  return number;
}

// A step that srun started says how many tasks it has and which one this is. A batch script without
// srun has neither, though it may know a number of tasks.
void TakeFromSlurm(DoctorArguments& arguments) {
  const std::string job = Environment("SLURM_JOB_ID"), step = Environment("SLURM_STEP_ID");
  std::optional<int> tasks = Number(Environment("SLURM_STEP_NUM_TASKS"));
  if (!tasks) tasks = Number(Environment("SLURM_NTASKS"));
  const std::optional<int> task = Number(Environment("SLURM_PROCID"));
  if (job.empty() || !Number(step) || !tasks || !task) return;
  arguments.tasks = *tasks;
  arguments.task = *task;
  if (!arguments.token.empty()) return;
  arguments.token = fmt::format("{}.{}", job, step);
  const std::string restarts = Environment("SLURM_RESTART_COUNT");
  if (!restarts.empty()) arguments.token += "." + restarts;
}

absl::Status CheckToken(const std::string& token) {
  const std::string_view allowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (token.empty() || token.size() > kTokenBytesMax ||
      token.find_first_not_of(allowed) != token.npos)
    return InvalidArgument(
        "--token '{}': 1 to {} letters, digits, '.', '_', '-'; it becomes part of a name", token,
        kTokenBytesMax);
  return absl::OkStatus();
}

absl::StatusOr<ProbeOptions> OptionsOf(DoctorArguments arguments) {
  if ((arguments.tasks == 0) != (arguments.task < 0))
    return InvalidArgument("--tasks and --task belong together: give both, or neither");
  if (arguments.tasks == 0) TakeFromSlurm(arguments);
  ProbeOptions options;
  options.tasks = std::max(arguments.tasks, 1);
  options.task = std::max(arguments.task, 0);
  options.token = arguments.token;
  if (options.task >= options.tasks || options.tasks > kTasksMax)
    return InvalidArgument("task {} of {}: tasks count from 0, and there may be {}", options.task,
                           options.tasks, kTasksMax);
  if (options.token.empty() && options.tasks > 1)
    return InvalidArgument("--tasks {} needs --token: any word that all of them are given",
                           options.tasks);
  if (options.token.empty()) {
    const std::array<uint8_t, 16> nonce = RandomNonce();
    options.token = fmt::format("{:02x}", fmt::join(nonce.begin(), nonce.begin() + 8, ""));
  }
  RETURN_IF_ERROR(CheckToken(options.token));
  ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes("--bytes", arguments.bytes));
  options.bytes_max = static_cast<uint64_t>(bytes);
  options.wait = absl::Seconds(arguments.wait_seconds);
  options.run_directory =
      std::filesystem::absolute(arguments.run_directory).lexically_normal().string();
  while (options.run_directory.size() > 1 && options.run_directory.back() == '/')
    options.run_directory.pop_back();
  return options;
}

std::string Count(int number, const char* of) {
  return fmt::format("{} {}{}", number, of, number == 1 ? "" : "s");
}

std::string Verdict(const ProbeOptions& options, const ProbeReport& report) {
  std::string refused;
  for (const ProbeCheck& check : report.checks)
    if (check.outcome == ProbeOutcome::kRefused)
      refused += (refused.empty() ? "" : ", ") + check.name;
  if (!report.may_live())
    return fmt::format("a run may NOT live in {}: {}", options.run_directory,
                       refused.empty() ? "this was cut short" : refused);
  std::string text = fmt::format("a run may live in {}", options.run_directory);
  const int warnings = report.Count(ProbeOutcome::kWarning);
  if (warnings > 0) text += ", with " + Count(warnings, "warning");
  if (options.tasks == 1) text += "; of one node: what other nodes see was not tested";
  return text;
}

// Checks that were not made, one after the other and for one reason, are one row.
std::string Table(const ProbeOptions& options, const ProbeReport& report) {
  std::string text =
      fmt::format("perdure doctor: {}, {}\n\n{:<17} {:<10}  {}\n", options.run_directory,
                  Count(options.tasks, "task"), "check", "outcome", "seen");
  for (size_t i = 0; i < report.checks.size(); ++i) {
    const ProbeCheck& check = report.checks[i];
    std::string also;
    while (check.outcome == ProbeOutcome::kNotTested && i + 1 < report.checks.size() &&
           report.checks[i + 1].outcome == check.outcome && report.checks[i + 1].seen == check.seen)
      also += (also.empty() ? " (also " : ", ") + report.checks[++i].name;
    text += fmt::format("{:<17} {:<10}  {}{}\n", check.name, ProbeOutcomeName(check.outcome),
                        check.seen, also.empty() ? "" : also + ")");
    if (!check.meaning.empty()) text += fmt::format("{:<29} means: {}\n", "", check.meaning);
    if (!check.advice.empty()) text += fmt::format("{:<29} try: {}\n", "", check.advice);
  }
  return text + "\n" + Verdict(options, report) + "\n";
}

std::string PrintJson(const ProbeOptions& options, const ProbeReport& report) {
  Json json = {{"run_directory", options.run_directory},
               {"tasks", options.tasks},
               {"may_live", report.may_live()},
               {"verdict", Verdict(options, report)}};
  json["checks"] = Json::array();
  for (const ProbeCheck& check : report.checks)
    json["checks"].push_back({{"name", check.name},
                              {"outcome", ProbeOutcomeName(check.outcome)},
                              {"seen", check.seen},
                              {"meaning", check.meaning},
                              {"advice", check.advice},
                              {"numbers", check.numbers}});
  json["left_behind"] = report.left_behind;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// One line that says what is under way, where somebody can see it.
class ProgressLine {
 public:
  explicit ProgressLine(const ProbeOptions& options)
      : terminal_(options.task == 0 && ::isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() {
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }
  void Show(const std::string& check) {
    const auto names = ProbeCheckNames();
    const auto at = std::find(names.begin(), names.end(), check) - names.begin();
    if (!terminal_) return;
    fmt::print(stderr, "\r\033[Kdoctor: {} ({} of {})", check, at + 1, names.size());
    std::fflush(stderr);
  }

 private:
  const bool terminal_;
};

// Other tasks say only what task 0 cannot know.
int ReportOfOther(const ProbeOptions& options, const ProbeReport& report) {
  if (report.handed_over) return kExitComplete;
  for (const ProbeCheck& check : report.checks)
    if (check.outcome == ProbeOutcome::kRefused)
      fmt::print(stderr, "perdure doctor: task {}: {}: {}; try: {}\n", options.task, check.name,
                 check.seen, check.advice);
  return kExitFailed;
}

int RunDoctor(const DoctorArguments& arguments) {
  const absl::StatusOr<ProbeOptions> options = OptionsOf(arguments);
  if (!options.ok()) {
    fmt::print(stderr, "perdure doctor: {}\n", Message(options.status()));
    return kExitUsage;
  }
  ProbeReport report;
  {
    ProgressLine line(*options);
    report = ProbeFileSystem(*options, [&](const std::string& check) { line.Show(check); });
  }
  if (!report.left_behind.empty())
    fmt::print(stderr, "perdure doctor: left behind: {}\n", report.left_behind);
  if (report.signal != 0) {
    fmt::print(stderr, "perdure doctor: stopped by signal {}\n", report.signal);
    std::fflush(nullptr);
    ::signal(report.signal, SIG_DFL);
    ::raise(report.signal);
  }
  if (options->task > 0) return ReportOfOther(*options, report);
  fmt::print("{}", arguments.json ? PrintJson(*options, report) : Table(*options, report));
  return report.may_live() ? kExitComplete : kExitFailed;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, int* exit_code) {
  const auto arguments = std::make_shared<DoctorArguments>();
  CLI::App* doctor = app.add_subcommand(
      "doctor", "Whether a run may live in a directory: asks its file system and the clocks");
  doctor
      ->add_option("--run-dir", arguments->run_directory,
                   "The run's directory; made where it is absent, and then removed again")
      ->required();
  doctor->add_option("--bytes", arguments->bytes,
                     "On disk at a time, at most; never more than 1 % of what is free");
  doctor->add_option("--tasks", arguments->tasks, "So many take part (default: as srun says, or 1)")
      ->check(CLI::Range(1, kTasksMax));
  doctor->add_option("--task", arguments->task, "Which of them this is, from 0; 0 prints the table")
      ->check(CLI::Range(0, kTasksMax - 1));
  doctor->add_option("--token", arguments->token, "A word that all tasks have in common");
  doctor->add_option("--wait", arguments->wait_seconds, "Seconds for a task that has not come")
      ->check(CLI::Range(int64_t{1}, int64_t{3600}));
  doctor->add_flag("--json", arguments->json, "Print JSON");
  doctor->callback([arguments, exit_code] { *exit_code = RunDoctor(*arguments); });
}

}  // namespace perdure
