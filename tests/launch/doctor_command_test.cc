// `perdure doctor` as a person, a script and srun call it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

class DoctorCommand : public testing::Test {
 protected:
  ~DoctorCommand() override { fs::remove_all(folder_); }
  static CommandResult Doctor(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "doctor");
    return Perdure(arguments);
  }
  std::vector<std::string> Task(int task, int tasks) const {
    return {"--run-dir", run_,
            "--bytes",   "32MiB",
            "--task",    std::to_string(task),
            "--tasks",   std::to_string(tasks),
            "--token",   "both",
            "--wait",    "20"};
  }
  void ExpectNothingLeft() const { EXPECT_TRUE(fs::is_empty(folder_)); }

  const std::string folder_ = fs::path(FreshFolder("doctor_command")).lexically_normal().string();
  const std::string run_ = folder_ + "/run";
};

json CheckOf(const json& report, const std::string& name) {
  for (const json& check : report["checks"])
    if (check["name"] == name) return check;
  ADD_FAILURE() << "no check " << name;
  return json::object();
}

TEST_F(DoctorCommand, TheTableEndsWithTheVerdict) {
  const CommandResult result = Doctor({"--run-dir", run_, "--bytes", "16MiB"});
  EXPECT_EQ(result.exit_code, 0) << result.output << result.errors;
  EXPECT_EQ(result.errors, "") << "no progress where nobody looks";
  EXPECT_THAT(result.output, HasSubstr("perdure doctor: " + run_ + ", 1 task\n"));
  EXPECT_THAT(result.output, HasSubstr("\nlink              ok          tmp/ to log/"));
  EXPECT_THAT(result.output,
              HasSubstr("\ntasks             not tested  one task only: srun -N 2 perdure doctor "
                        "--run-dir D (also task_owner, task_race, "));
  EXPECT_THAT(result.output, HasSubstr("\n\na run may live in " + run_));
  EXPECT_THAT(result.output, HasSubstr("; of one node: what other nodes see was not tested\n"));
  ExpectNothingLeft();
}

TEST_F(DoctorCommand, JsonHasTheSame) {
  const CommandResult result = Doctor({"--run-dir", run_ + "/", "--bytes", "16MiB", "--json"});
  const json report = json::parse(result.output, nullptr, false);
  ASSERT_TRUE(report.is_object()) << result.output;
  EXPECT_EQ(report["run_directory"], run_);
  EXPECT_EQ(report["may_live"], true);
  EXPECT_EQ(report["left_behind"], "");
  EXPECT_EQ(CheckOf(report, "link")["outcome"], "ok");
  EXPECT_EQ(CheckOf(report, "task_race")["outcome"], "not tested");
  EXPECT_GT(CheckOf(report, "record_time")["numbers"]["record_p50_seconds"], 0);
  EXPECT_GT(CheckOf(report, "bandwidth")["numbers"]["cached_write_bytes_per_second"], 0);
}

TEST_F(DoctorCommand, ARefusalIsExitCode1AndSaysWhatToTry) {
  ASSERT_TRUE(ReplaceFile(run_, "a file").ok());
  const CommandResult result = Doctor({"--run-dir", run_});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("directory         refused"));
  EXPECT_THAT(result.output, HasSubstr("Not a directory (errno 20)\n"));
  EXPECT_THAT(result.output, HasSubstr(" means: "));
  EXPECT_THAT(result.output, HasSubstr(" try: "));
  EXPECT_THAT(result.output, HasSubstr("a run may NOT live in " + run_ + ": directory\n"));
  EXPECT_EQ(ReadFile(run_).value_or(""), "a file");
}

TEST_F(DoctorCommand, WhereNobodyMayWriteIsRefused) {
  const CommandResult result = Doctor({"--run-dir", "/sys/doctor_command_test"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("refused     mkdir /sys/doctor_command_test: "));
  EXPECT_EQ(result.errors, "");
}

TEST_F(DoctorCommand, WrongUsage) {
  struct Case {
    std::vector<std::string> arguments;
    std::string words;
  };
  for (const Case& wrong : std::vector<Case>{
           {{}, "--run-dir is required"},
           {{"--run-dir", run_, "--sped"}, "--sped"},
           {{"--run-dir", run_, "--bytes", "many"}, "--bytes many: write a size"},
           {{"--run-dir", run_, "--tasks", "2"}, "--tasks and --task belong together"},
           {{"--run-dir", run_, "--task", "0"}, "--tasks and --task belong together"},
           {{"--run-dir", run_, "--tasks", "2", "--task", "0"}, "--tasks 2 needs --token"},
           {{"--run-dir", run_, "--tasks", "2", "--task", "2", "--token", "x"}, "task 2 of 2"},
           {{"--run-dir", run_, "--token", "../x"}, "--token '../x'"},
           {{"--run-dir", run_, "--wait", "0"}, "--wait"}}) {
    const CommandResult result = Doctor(wrong.arguments);
    EXPECT_EQ(result.exit_code, 2) << wrong.words;
    EXPECT_THAT(result.output + result.errors, HasSubstr(wrong.words));
  }
  ExpectNothingLeft();
}

TEST_F(DoctorCommand, TwoProcessesMakeOneTable) {
  std::vector<std::string> other = Task(1, 2);
  other.insert(other.begin(), "doctor");
  const std::string errors = folder_ + ".err";
  const int pid = StartPerdure(other, errors);
  const CommandResult result = Doctor(Task(0, 2));
  EXPECT_EQ(WaitFor(pid), 0);
  EXPECT_EQ(ReadFile(errors).value_or("?"), "");
  ::unlink(errors.c_str());
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr(", 2 tasks\n"));
  EXPECT_THAT(result.output, HasSubstr("\ntask_race         ok          200 slots, one winner"));
  EXPECT_THAT(result.output, HasSubstr("\ntask_names        ok"));
  EXPECT_THAT(result.output, Not(HasSubstr("of one node")));
  ExpectNothingLeft();
}

// Sets variables of the environment, for the commands that a test starts.
class Environment {
 public:
  using Values = std::vector<std::pair<std::string, std::string>>;
  explicit Environment(Values values) : values_(std::move(values)) {
    for (const auto& [name, value] : values_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const auto& [name, value] : values_) ::unsetenv(name.c_str());
  }

 private:
  const Values values_;
};

TEST_F(DoctorCommand, SrunNeedsNoFlags) {
  const Environment step({{"SLURM_JOB_ID", "17"},
                          {"SLURM_STEP_ID", "0"},
                          {"SLURM_NTASKS", "8"},  // Of the job.
                          {"SLURM_STEP_NUM_TASKS", "2"}});
  const std::vector<std::string> words = {"doctor", "--run-dir", run_, "--bytes", "16MiB"};
  int pid = 0;
  {
    const Environment first(Environment::Values{{"SLURM_PROCID", "1"}});
    pid = StartPerdure(words, "/dev/null");
  }
  const Environment second(Environment::Values{{"SLURM_PROCID", "0"}});
  const CommandResult result = Perdure(words);
  EXPECT_EQ(WaitFor(pid), 0);
  EXPECT_EQ(result.exit_code, 0) << result.output << result.errors;
  EXPECT_THAT(result.output, HasSubstr(", 2 tasks\n"));
  ExpectNothingLeft();
}

TEST_F(DoctorCommand, ABatchScriptWithoutSrunIsOneTask) {
  const Environment batch({{"SLURM_JOB_ID", "17"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}});
  const CommandResult result = Doctor({"--run-dir", run_, "--bytes", "16MiB"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.output, HasSubstr(", 1 task\n"));
}

TEST_F(DoctorCommand, ATaskThatIsAloneSaysSo) {
  const CommandResult result =
      Doctor({"--run-dir", run_, "--tasks", "2", "--task", "1", "--token", "alone", "--wait", "1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.output, "") << "the table is task 0's";
  EXPECT_THAT(result.errors, HasSubstr("perdure doctor: task 1: tasks: start did not come"));
  ExpectNothingLeft();
}

TEST_F(DoctorCommand, ASignalLeavesNothing) {
  // From its first file on, at moments all over what takes a second. Before main the signals are
  // those of the libraries that are being loaded.
  for (const int signal : {SIGTERM, SIGINT, SIGHUP})
    for (const int milliseconds : {0, 3, 30, 100, 300, 700}) {
      const int pid = StartPerdure({"doctor", "--run-dir", run_}, "/dev/null");
      while (!fs::exists(run_)) std::this_thread::sleep_for(std::chrono::microseconds(100));
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
      ::kill(pid, signal);
      EXPECT_EQ(WaitFor(pid), 128 + signal) << milliseconds << " ms";
      ExpectNothingLeft();
    }
}

TEST_F(DoctorCommand, KilledItLeavesOneDirectoryAndNoProcess) {
  const int pid = StartPerdure({"doctor", "--run-dir", run_, "--token", "killed"}, "/dev/null");
  while (!fs::exists(run_ + "/tmp/doctor.killed/task.0/log"))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ::kill(pid, SIGKILL);
  EXPECT_EQ(WaitFor(pid), 128 + SIGKILL);
  // Its children die with it: nobody goes on making files there.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  fs::remove_all(run_ + "/tmp/doctor.killed");
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_TRUE(fs::is_empty(run_ + "/tmp"));
}

TEST_F(DoctorCommand, ATerminalSeesWhatIsUnderWay) {
  int terminal = -1;
  const pid_t pid = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    ::execl(PERDURE_BINARY_DIR "/perdure", "perdure", "doctor", "--run-dir", run_.c_str(),
            "--bytes", "16MiB", nullptr);
    ::_exit(127);
  }
  std::string text;
  char piece[4096];
  for (ssize_t got = 1; got > 0;) {
    got = ::read(terminal, piece, sizeof piece);
    if (got > 0) text.append(piece, static_cast<size_t>(got));
  }
  ::close(terminal);
  EXPECT_EQ(WaitFor(pid), 0);
  for (const char* check : {"directory (1 of ", "link_race (", "bandwidth ("})
    EXPECT_THAT(text, HasSubstr(std::string("\r\033[Kdoctor: ") + check));
}

}  // namespace
}  // namespace perdure
