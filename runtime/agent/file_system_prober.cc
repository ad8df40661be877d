#include "runtime/agent/file_system_prober.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "runtime/agent/file_system_checks.h"
#include "runtime/agent/file_system_tasks.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

constexpr double kAlivePauseSeconds = 0.5;

int Badness(ProbeOutcome outcome) {
  switch (outcome) {
    case ProbeOutcome::kOk:
      return 0;
    case ProbeOutcome::kNotTested:
      return 1;
    case ProbeOutcome::kWarning:
      return 2;
    case ProbeOutcome::kRefused:
      return 3;
  }
  return 3;
}

// Tells the watching process, by a pipe, a JSON object a line.
class Teller {
 public:
  explicit Teller(int fd) : fd_(fd) {}
  void Begin(const std::string& check) { Tell({{"begin", check}}); }
  void Found(const ProbeCheck& check) { Tell({{"found", ToJson(check)}}); }
  void Making(const std::string& path) { Tell({{"making", path}}); }
  void NotMade(const std::string& path) { Tell({{"not_made", path}}); }
  void Claimed(bool claimed) { Tell({{"claimed", claimed}}); }
  void HandedOver() { Tell({{"handed_over", true}}); }
  void Finished() { Tell({{"finished", true}}); }
  void Alive() {
    const double now = MonotonicSeconds();
    if (now - told_ > kAlivePauseSeconds) Tell({{"alive", true}});
  }

 private:
  void Tell(const Json& what) {
    told_ = MonotonicSeconds();
    // Paths may be no UTF-8.
    const std::string line = what.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (size_t done = 0; done < line.size();) {
      const ssize_t put = ::write(fd_, line.data() + done, line.size() - done);
      if (put < 0 && errno != EINTR) return;  // Nobody listens; it will end us.
      if (put > 0) done += static_cast<size_t>(put);
    }
  }

  const int fd_;
  double told_ = 0;
};

class Prober {
 public:
  Prober(const ProbeOptions& options, int fd) : options_(options), teller_(fd) {}

  void Run() {
    Probe();
    teller_.Finished();
  }

 private:
  void Probe() {
    site_.run_directory = options_.run_directory;
    site_.directory = TaskDirectory(options_);
    site_.alive = [this] { teller_.Alive(); };
    teller_.Begin(kDirectoryCheck);
    const absl::Status made = MakeSite();
    Find(kDirectoryCheck,
         made.ok() ? Good("made with mode 0700, and removed in the end") : RefuseFor(made));
    if (!made.ok()) return SkipAll("there is no directory to test in");
    TaskMeeting meeting(ProbeDirectory(options_) + "/meeting", options_,
                        {{"made", std::vector<std::string>(made_.begin(), made_.end())}},
                        site_.alive);
    const bool together = options_.tasks > 1 && Gather(meeting);
    // A task that others miss has nobody to tell.
    if (options_.tasks > 1 && !together && options_.task > 0) return;
    CheckLocally();
    if (together) ProbeTogether(meeting);
    if (options_.tasks == 1) SkipTogether("one task only: srun -N 2 perdure doctor --run-dir D");
    if (options_.task == 0) Clean();
  }

  // The run directory and its tmp/, where they are absent, and what is ours.
  absl::Status MakeSite() {
    std::string prefix;
    for (const auto& part : std::filesystem::path(options_.run_directory + "/tmp")) {
      prefix = prefix.empty() ? part.string() : (std::filesystem::path(prefix) / part).string();
      RETURN_IF_ERROR(MakeOnce(prefix));
    }
    teller_.Claimed(true);
    RETURN_IF_ERROR(MakeDirectories(ProbeDirectory(options_) + "/meeting"));
    if (::mkdir(site_.directory.c_str(), 0700) != 0) {
      const int error = errno;
      teller_.Claimed(false);
      if (error != EEXIST) return ErrnoStatus(error, "mkdir " + site_.directory);
      return AlreadyExists(
          "{} is there: another task says that it is number {}, or an earlier probe was killed; "
          "remove that directory when nobody is at work, or take another --token",
          site_.directory, options_.task);
    }
    for (const char* folder : {"/tmp", "/log"})
      RETURN_IF_ERROR(MakeDirectories(site_.directory + folder));
    const uint64_t bytes = ProbeBytes(site_.directory, options_.bytes_max);
    site_.bytes = bytes / static_cast<uint64_t>(options_.tasks);
    return absl::OkStatus();
  }

  absl::Status MakeOnce(const std::string& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) return absl::OkStatus();
    if (errno != ENOENT) return ErrnoStatus(errno, "look for " + path);
    teller_.Making(path);
    made_.insert(path);
    if (::mkdir(path.c_str(), 0700) == 0) return absl::OkStatus();
    const int error = errno;
    teller_.NotMade(path);
    made_.erase(path);
    return error == EEXIST ? absl::OkStatus() : ErrnoStatus(error, "mkdir " + path);
  }

  void Find(const std::string& name, ProbeCheck check) {
    check.name = name;
    teller_.Found(check);
    found_.push_back(std::move(check));
  }

  bool Has(const std::string& name, ProbeOutcome outcome) const {
    return std::any_of(found_.begin(), found_.end(), [&](const ProbeCheck& check) {
      return check.name == name && check.outcome == outcome;
    });
  }
  bool Passed(const std::string& name) const {
    return Has(name, ProbeOutcome::kOk) || Has(name, ProbeOutcome::kWarning);
  }

  void SkipAll(const std::string& why) {
    for (const ProbeEntry& entry : LocalChecks()) Find(entry.name, Skip(why));
    SkipTogether(why);
  }

  void SkipTogether(const std::string& why) {
    for (const std::string& name : TaskCheckNames())
      if (!Has(name, ProbeOutcome::kRefused)) Find(name, Skip(why));
  }

  bool Gather(TaskMeeting& meeting) {
    teller_.Begin(kTasksCheck);
    const absl::Status status = meeting.Begin();
    // Whoever outlives the others removes what they made.
    for (int k = 1; k < options_.tasks && options_.task == 0; ++k)
      for (const Json& path : meeting.Self(k).value("made", Json::array()))
        if (path.is_string() && made_.insert(path.get<std::string>()).second)
          teller_.Making(path.get<std::string>());
    if (status.ok()) return true;
    Find(kTasksCheck, RefuseFor(status));
    SkipTogether("not all tasks came");
    if (options_.task > 0 && !absl::IsDeadlineExceeded(status)) Leave();
    return false;
  }

  void CheckLocally() {
    for (const ProbeEntry& entry : LocalChecks()) {
      teller_.Begin(entry.name);
      const auto missing =
          std::find_if(entry.needs.begin(), entry.needs.end(),
                       [&](const char* needed) { return needed != nullptr && !Passed(needed); });
      if (missing != entry.needs.end()) {
        Find(entry.name, Skip(fmt::format("it needs {}", *missing)));
        continue;
      }
      absl::StatusOr<ProbeCheck> check = entry.run(site_);
      Find(entry.name, check.ok() ? *std::move(check) : RefuseFor(check.status()));
    }
  }

  void ProbeTogether(TaskMeeting& meeting) {
    teller_.Begin("task_names");
    const absl::StatusOr<TaskSight> sight = LookTogether(meeting);
    if (!sight.ok()) {
      Find(kTasksCheck, RefuseFor(sight.status()));
      return SkipTogether("not all tasks came that far");
    }
    if (options_.task > 0) return HandOver(meeting, *sight);
    const absl::Status status = JudgeAll(meeting, *sight);
    if (status.ok()) return;
    Find(kTasksCheck, RefuseFor(status));
    SkipTogether("not all tasks told what they had found");
  }

  // Task 0, which is at work, removes the rest.
  void Leave() {
    (void)RemoveProbe(site_.directory, {});
    teller_.Claimed(false);
  }

  void HandOver(const TaskMeeting& meeting, const TaskSight& sight) {
    Leave();
    Json checks = Json::array();
    for (const ProbeCheck& check : found_) checks.push_back(ToJson(check));
    const absl::Status status = meeting.Say(fmt::format("result.{}", options_.task),
                                            {{"checks", checks}, {"sight", ToJson(sight)}});
    if (status.ok())
      teller_.HandedOver();
    else
      Find(kTasksCheck, RefuseFor(status));
  }

  // Of each check the worst that any task found.
  void Merge(const TaskMeeting& meeting, int task, const std::vector<ProbeCheck>& theirs) {
    for (ProbeCheck& own : found_)
      for (const ProbeCheck& other : theirs) {
        if (other.name != own.name || Badness(other.outcome) <= Badness(own.outcome)) continue;
        own = other;
        own.seen = meeting.NameOf(task) + ": " + other.seen;
        teller_.Found(own);
      }
  }

  absl::Status JudgeAll(const TaskMeeting& meeting, const TaskSight& own) {
    std::vector<TaskSight> sights = {own};
    std::vector<std::vector<ProbeCheck>> checks = {found_};
    for (int k = 1; k < options_.tasks; ++k) {
      const absl::StatusOr<Json> result = meeting.Await(fmt::format("result.{}", k));
      if (!result.ok())
        return DeadlineExceeded("{} did not say what it had found: {}", meeting.NameOf(k),
                                Message(result.status()));
      ASSIGN_OR_RETURN(TaskSight sight, SightFromJson(result->value("sight", Json::object())));
      sights.push_back(std::move(sight));
      std::vector<ProbeCheck>& theirs = checks.emplace_back();
      for (const Json& check : result->value("checks", Json::array()))
        theirs.push_back(CheckFromJson(check));
      Merge(meeting, k, theirs);
    }
    for (ProbeCheck& check : JudgeTogether(meeting, sights, checks)) {
      const std::string name = check.name;
      Find(name, std::move(check));
    }
    return absl::OkStatus();
  }

  void Clean() {
    teller_.Begin(kDirectoryCheck);
    if (RemoveProbe(ProbeDirectory(options_), made_).ok()) teller_.Claimed(false);
  }

  const ProbeOptions& options_;
  Teller teller_;
  ProbeSite site_;
  std::set<std::string> made_;  // Directories beside the probe's own.
  std::vector<ProbeCheck> found_;
};

}  // namespace

std::string ProbeDirectory(const ProbeOptions& options) {
  return fmt::format("{}/tmp/doctor.{}", options.run_directory, options.token);
}

std::string TaskDirectory(const ProbeOptions& options) {
  return fmt::format("{}/task.{}", ProbeDirectory(options), options.task);
}

// Until all of it is gone, as others may still be writing there.
absl::Status RemoveProbe(const std::string& directory, const std::set<std::string>& made) {
  std::error_code error;
  for (int i = 0; i < 3 && !directory.empty(); ++i) {
    std::filesystem::remove_all(directory, error);
    if (!error) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  // Of a longer name first; what somebody else has begun to use stays.
  for (auto path = made.rbegin(); path != made.rend(); ++path) ::rmdir(path->c_str());
  if (error) return ErrnoStatus(error.value(), "remove " + directory);
  return absl::OkStatus();
}

void RunProbe(const ProbeOptions& options, int fd) { Prober(options, fd).Run(); }

}  // namespace perdure
