#include "runtime/agent/file_system_tasks.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <set>
#include <thread>

#include "runtime/agent/run_key.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

constexpr auto kPollPause = std::chrono::milliseconds(2);
constexpr auto kPollPauseMax = std::chrono::milliseconds(50);
constexpr int kRaceSlots = 200;
constexpr int kNames = 20;
constexpr size_t kNameBytes = 100'000;  // More than goes with one message.
// The run log looks for a name that must be there for 20 x 25 ms.
constexpr double kLogPatience = 0.5;
constexpr double kLateMost = 5;  // Not looked for any longer.

std::string HostName() {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  return host;
}

// An own change makes a client that caches directories (NFS) ask its server anew.
void Nudge(const std::string& directory, int task) {
  const std::string path = fmt::format("{}/nudge.{}", directory, task);
  (void)WriteProbeFile(path, "", /*sync=*/false);
  ::unlink(path.c_str());
}

std::string NameContent(int number) {
  std::string text;
  while (text.size() < kNameBytes) text += fmt::format("{:08}", number);
  return text;
}

}  // namespace

TaskMeeting::TaskMeeting(std::string directory, const ProbeOptions& options, Json self,
                         std::function<void()> alive)
    : directory_(std::move(directory)),
      task_(options.task),
      tasks_(options.tasks),
      wait_seconds_(absl::ToDoubleSeconds(options.wait)),
      alive_(std::move(alive)),
      self_(std::move(self)),
      selves_(static_cast<size_t>(options.tasks), Json::object()) {
  const std::array<uint8_t, 16> nonce = RandomNonce();
  self_["nonce"] = fmt::format("{:02x}", fmt::join(nonce.begin(), nonce.end(), ""));
  self_["host"] = HostName();
  self_["user"] = static_cast<unsigned>(::geteuid());
}

std::string TaskMeeting::NameOf(int k) const {
  return fmt::format("task {} (host {})", k, Self(k).value("host", "?"));
}

absl::Status TaskMeeting::Say(const std::string& name, const Json& what) const {
  // By rename, and unsynced: the tasks must meet also where links or fsync are what is wrong.
  return ReplaceFileFast(directory_ + "/" + name, what.dump() + "\n");
}

absl::StatusOr<Json> TaskMeeting::AwaitUntil(const std::string& name, double deadline) const {
  std::chrono::milliseconds pause = kPollPause;
  for (;;) {
    const absl::StatusOr<std::string> text = ReadFile(directory_ + "/" + name);
    if (text.ok() && text->ends_with('\n')) {
      Json what = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
      if (what.is_object()) return what;
    }
    if (MonotonicSeconds() > deadline)
      return DeadlineExceeded("{} did not come to be in {:.0f} s", name, wait_seconds_);
    alive_();
    Nudge(directory_, task_);
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kPollPauseMax);
  }
}

absl::StatusOr<Json> TaskMeeting::Await(const std::string& name) const {
  return AwaitUntil(name, MonotonicSeconds() + wait_seconds_);
}

absl::Status TaskMeeting::GatherSelves() {
  const double deadline = MonotonicSeconds() + wait_seconds_;
  std::vector<int> missing;
  Json nonces = Json::array();
  for (int k = 0; k < tasks_; ++k) {
    absl::StatusOr<Json> self = AwaitUntil(fmt::format("self.{}", k), deadline);
    if (self.ok())
      selves_[static_cast<size_t>(k)] = *std::move(self);
    else
      missing.push_back(k);
    nonces.push_back(Self(k).value("nonce", ""));
  }
  RETURN_IF_ERROR(Say("start", {{"nonces", nonces}, {"missing", missing}}));
  if (missing.empty()) return absl::OkStatus();
  return DeadlineExceeded(
      "of {} tasks number {} did not show up within {:.0f} s in {}: is that the same directory on "
      "every node? did they start?",
      tasks_, fmt::join(missing, ", "), wait_seconds_, directory_);
}

absl::Status TaskMeeting::Begin() {
  RETURN_IF_ERROR(Say(fmt::format("self.{}", task_), self_));
  if (task_ == 0) return GatherSelves();
  // Task 0 may have begun to wait when this one did not live yet.
  ASSIGN_OR_RETURN(const Json start, AwaitUntil("start", MonotonicSeconds() + 2 * wait_seconds_));
  const Json nonces = start.value("nonces", Json::array());
  const size_t own = static_cast<size_t>(task_);
  if (own >= nonces.size() || (nonces[own] != self_["nonce"] && nonces[own] != ""))
    return AlreadyExists("{} is of an earlier probe: remove it, or take another --token",
                         directory_);
  const Json missing = start.value("missing", Json::array());
  if (missing.empty()) return absl::OkStatus();
  return FailedPrecondition("task 0 missed tasks {}", missing.dump());
}

absl::Status TaskMeeting::Meet(const std::string& point) {
  RETURN_IF_ERROR(Say(fmt::format("{}.{}", point, task_), Json::object()));
  if (task_ != 0) return Await(point + ".all").status();
  for (int k = 1; k < tasks_; ++k)
    if (const absl::Status came = Await(fmt::format("{}.{}", point, k)).status(); !came.ok())
      return DeadlineExceeded("{} did not come to '{}': {}", NameOf(k), point, Message(came));
  return Say(point + ".all", Json::object());
}

Json ToJson(const TaskSight& sight) {
  Json race = Json::array();
  for (const RaceView& view : sight.race) race.push_back({view.won, view.winner});
  return {{"race", race},
          {"seen_seconds", sight.seen_seconds},
          {"torn", sight.torn},
          {"torn_seconds", sight.torn_seconds},
          {"owner_of_others", sight.owner_of_others}};
}

absl::StatusOr<TaskSight> SightFromJson(const Json& json) {
  TaskSight sight;
  try {  // The library says so that something else stands there.
    for (const Json& view : json.at("race"))
      sight.race.push_back({view.at(0).get<bool>(), view.at(1).get<int>()});
    sight.seen_seconds = json.at("seen_seconds").get<std::vector<double>>();
    sight.torn = json.at("torn").get<int>();
    sight.torn_seconds = json.at("torn_seconds").get<double>();
    sight.owner_of_others = json.at("owner_of_others").get<unsigned>();
  } catch (const Json::exception& error) {
    return DataLoss("what another task said reads otherwise: {}", error.what());
  }
  if (sight.race.size() != kRaceSlots)
    return DataLoss("another task raced for {} slots instead of {}: one build on every node",
                    sight.race.size(), kRaceSlots);
  return sight;
}

namespace {

// All tasks go for the same slots in the same order. Who wins one pauses, so that the others catch
// up and the next one is contested.
absl::Status Race(TaskMeeting& meeting, TaskSight& sight) {
  const std::string log = meeting.directory() + "/race";
  RETURN_IF_ERROR(MakeDirectories(log));
  RETURN_IF_ERROR(meeting.Meet("race"));
  for (int slot = 0; slot < kRaceSlots; ++slot) {
    double begin = 0;
    ASSIGN_OR_RETURN(const RaceView view,
                     RaceForSlot(meeting.directory(), log, slot, meeting.task(), meeting.tasks(),
                                 [&] { begin = MonotonicSeconds(); }));
    if (view.won)
      std::this_thread::sleep_for(std::chrono::duration<double>(MonotonicSeconds() - begin));
    sight.race.push_back(view);
  }
  return absl::OkStatus();
}

// Looks for a name that was seen to be absent until it is there and whole; a name that stays away
// or torn too long is given up.
Json AwaitName(const std::string& path, int number) {
  const std::string expected = NameContent(number);
  const double begin = MonotonicSeconds();
  double torn_since = 0;
  while (MonotonicSeconds() - begin < kLateMost) {
    const absl::StatusOr<std::string> there = ReadFile(path);
    const double now = MonotonicSeconds();
    if (there.ok() && *there == expected)
      return {{"came", true}, {"torn_seconds", torn_since > 0 ? now - torn_since : 0}};
    if (!absl::IsNotFound(there.status()) && torn_since == 0) torn_since = now;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const double now = MonotonicSeconds();
  return {{"came", torn_since > 0}, {"torn_seconds", torn_since > 0 ? now - torn_since : 0}};
}

absl::Status MakeName(const TaskMeeting& meeting, const std::string& path, int number,
                      TaskSight& sight) {
  const std::string temporary = fmt::format("{}/name.{}", meeting.directory(), number);
  RETURN_IF_ERROR(WriteProbeFile(temporary, NameContent(number), /*sync=*/true));
  // As the log does it; where links are refused, as everything else is.
  const bool linked = ::link(temporary.c_str(), path.c_str()) == 0;
  if (!linked && ::rename(temporary.c_str(), path.c_str()) != 0)
    return ErrnoStatus(errno, fmt::format("rename {} to {}", temporary, path));
  const double begin = MonotonicSeconds();
  bool all = true;
  for (int k = 0; k < meeting.tasks(); ++k) {
    if (k == meeting.task()) continue;
    ASSIGN_OR_RETURN(const Json seen, meeting.Await(fmt::format("seen.{}.{}", number, k)));
    all = all && seen["came"].get<bool>();
  }
  sight.seen_seconds.push_back(all ? MonotonicSeconds() - begin : kLateMost);
  return absl::OkStatus();
}

// Each task in turn makes a name that all others have seen to be absent, the way a run log is
// followed. Its clock measures until all have answered: no less than it took them to see it.
absl::Status FollowNames(TaskMeeting& meeting, TaskSight& sight) {
  const std::string folder = meeting.directory() + "/names";
  RETURN_IF_ERROR(MakeDirectories(folder));
  bool late = false;
  for (int number = 0; number < kNames && !late; ++number) {
    const std::string path = fmt::format("{}/{:08}.rec", folder, number);
    if (ReadFile(path).ok()) return Internal("{} is there before it was made", path);
    RETURN_IF_ERROR(meeting.Meet(fmt::format("absent.{}", number)));
    const int maker = number % meeting.tasks();
    if (maker == meeting.task()) {
      RETURN_IF_ERROR(MakeName(meeting, path, number, sight));
      late = sight.seen_seconds.back() > kLogPatience;
      RETURN_IF_ERROR(meeting.Say(fmt::format("made.{}", number), {{"late", late}}));
      continue;
    }
    const Json seen = AwaitName(path, number);
    const double torn_seconds = seen["torn_seconds"];
    sight.torn += torn_seconds > 0 ? 1 : 0;
    sight.torn_seconds = std::max(sight.torn_seconds, torn_seconds);
    RETURN_IF_ERROR(meeting.Say(fmt::format("seen.{}.{}", number, meeting.task()), seen));
    // One late name is an answer; twenty would take minutes.
    ASSIGN_OR_RETURN(const Json made, meeting.Await(fmt::format("made.{}", number)));
    late = made["late"];
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TaskSight> LookTogether(TaskMeeting& meeting) {
  TaskSight sight;
  struct stat info {};
  const std::string other = meeting.directory() + "/self.0";
  if (::stat(other.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + other);
  sight.owner_of_others = info.st_uid;
  RETURN_IF_ERROR(FollowNames(meeting, sight));
  RETURN_IF_ERROR(Race(meeting, sight));
  return sight;
}

std::vector<std::string> TaskCheckNames() {
  return {"tasks", "task_owner", "task_race", "task_names", "task_content", "task_clocks"};
}

namespace {

ProbeCheck Named(const char* name, ProbeCheck check) {
  check.name = name;
  return check;
}

ProbeCheck JudgeHosts(const TaskMeeting& meeting) {
  std::set<std::string> hosts;
  for (int k = 0; k < meeting.tasks(); ++k) hosts.insert(meeting.Self(k).value("host", "?"));
  const std::string seen = fmt::format("{} tasks on {}", meeting.tasks(), fmt::join(hosts, ", "));
  if (hosts.size() > 1) return Good(seen);
  return Warn(seen + " alone",
              "one kernel serves all of them: nothing is known of what other nodes see",
              "srun -N 2 --ntasks-per-node 1 perdure doctor --run-dir D");
}

ProbeCheck JudgeOwners(const TaskMeeting& meeting, const std::vector<TaskSight>& sights) {
  const unsigned user = meeting.Self(0).value("user", 0U);
  for (int k = 0; k < meeting.tasks(); ++k) {
    const unsigned own = meeting.Self(k).value("user", 0U);
    const unsigned sees = sights[static_cast<size_t>(k)].owner_of_others;
    if (own != user || sees != user)
      return Refuse(fmt::format("{} runs as user {}; it sees files of task 0, user {}, as those of "
                                "user {}",
                                meeting.NameOf(k), own, user, sees),
                    "nodes could not read each other's files, or anybody's",
                    "the same user, and the same mapping of users, on every node");
  }
  return Good(fmt::format("user {} everywhere", user));
}

ProbeCheck JudgeRace(const std::vector<TaskSight>& sights) {
  std::vector<int> won(sights.size());
  for (size_t slot = 0; slot < kRaceSlots; ++slot) {
    std::vector<RaceView> views;
    for (const TaskSight& sight : sights) views.push_back(sight.race[slot]);
    if (const auto wrong = JudgeSlot(static_cast<int>(slot), views))
      return Refuse(*wrong + " (racers are tasks)",
                    "two nodes could both believe that they own the run",
                    "another file system for the run directory; look at the mount's options for "
                    "caching of names");
    ++won[static_cast<size_t>(views[0].winner)];
  }
  return Good(fmt::format("{} slots, one winner each, all tasks agree; won by task: {}", kRaceSlots,
                          fmt::join(won, ", ")));
}

ProbeCheck JudgeNames(const std::vector<TaskSight>& sights) {
  std::vector<double> seconds;
  for (const TaskSight& sight : sights)
    seconds.insert(seconds.end(), sight.seen_seconds.begin(), sight.seen_seconds.end());
  const Spread spread = SpreadOf(seconds);
  const std::string advice =
      "NFS: mount with lookupcache=positive, or noac, or actimeo=1; FUSE: negative_timeout=0, "
      "entry_timeout=0";
  const std::string seen = fmt::format(
      "a name seen to be absent was seen by all after {:.1f} ms (p50), {:.1f} ms at most, answer "
      "included; {} names",
      1e3 * spread.p50, 1e3 * spread.max, seconds.size());
  ProbeCheck check = Good(seen);
  if (spread.max >= kLateMost)
    check = Refuse(
        fmt::format("a name that a node had seen to be absent was unknown to it for {:.0f} s and "
                    "more after another had made it",
                    kLateMost),
        "a job that starts on another node could find the run log damaged that is not", advice);
  else if (spread.max > kLogPatience)
    check = Warn(seen,
                 "the run log waits 0.5 s for such a name: a start on another node, just after a "
                 "job ended, can fail",
                 advice);
  check.numbers = {{"seen_p50_seconds", spread.p50}, {"seen_max_seconds", spread.max}};
  return check;
}

ProbeCheck JudgeContent(const TaskMeeting& meeting, const std::vector<TaskSight>& sights) {
  for (int k = 0; k < meeting.tasks(); ++k) {
    const TaskSight& sight = sights[static_cast<size_t>(k)];
    if (sight.torn > 0)
      return Refuse(
          fmt::format("{} saw {} files under their names before size and bytes were right, for "
                      "{:.3f} s at most, though they were synced, closed and then linked",
                      meeting.NameOf(k), sight.torn, sight.torn_seconds),
          "a record that is read torn counts as damage of the run log, and stops the run",
          "look at the mount's options for caching of attributes and data (NFS: nocto must not be "
          "set)");
  }
  return Good("whole as soon as they were seen");
}

ProbeCheck JudgeClocks(const TaskMeeting& meeting,
                       const std::vector<std::vector<ProbeCheck>>& checks) {
  double least = 0, most = 0;
  int least_task = 0, most_task = 0;
  for (int k = 0; k < meeting.tasks(); ++k)
    for (const ProbeCheck& check : checks[static_cast<size_t>(k)]) {
      const auto offset = check.numbers.find("offset_seconds");
      if (offset == check.numbers.end()) continue;
      if (k == 0 || offset->second < least) least = offset->second, least_task = k;
      if (k == 0 || offset->second > most) most = offset->second, most_task = k;
    }
  ProbeCheck check = Good(
      fmt::format("files are dated {:+.3f} s from the clock of {} to {:+.3f} s from that of {}",
                  least, meeting.NameOf(least_task), most, meeting.NameOf(most_task)));
  check.numbers = {{"spread_seconds", most - least}};
  if (most - least <= 1) return check;
  check.outcome = ProbeOutcome::kWarning;
  check.meaning = "times in journal, reports and evidence of these nodes will not agree";
  check.advice = "run NTP (chronyd, ntpd) on every node";
  return check;
}

}  // namespace

std::vector<ProbeCheck> JudgeTogether(const TaskMeeting& meeting,
                                      const std::vector<TaskSight>& sights,
                                      const std::vector<std::vector<ProbeCheck>>& checks) {
  return {Named("tasks", JudgeHosts(meeting)),
          Named("task_owner", JudgeOwners(meeting, sights)),
          Named("task_race", JudgeRace(sights)),
          Named("task_names", JudgeNames(sights)),
          Named("task_content", JudgeContent(meeting, sights)),
          Named("task_clocks", JudgeClocks(meeting, checks))};
}

}  // namespace perdure
