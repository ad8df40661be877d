#include "tests/cluster/cluster_processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/files.h"

namespace perdure {
namespace {

std::string ProcFile(pid_t pid, const char* name) {
  return ReadFile("/proc/" + std::to_string(pid) + "/" + name).value_or("");
}

std::optional<FoundProcess> Find(pid_t pid) {
  const std::string stat = ProcFile(pid, "stat");
  // A name may hold anything, parentheses too; what follows the last one are numbers.
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream words(stat.substr(name_end + 1));
  std::string state, skipped;
  FoundProcess found{.pid = pid};
  words >> state >> found.parent;
  for (int field = 5; field < 22; ++field) words >> skipped;  // proc(5): the 22nd is the start.
  words >> found.start_ticks;
  if (!words || state == "Z" || state == "X") return std::nullopt;
  return found;
}

}  // namespace

FoundProcesses RunningProcesses() {
  FoundProcesses all;
  DIR* const proc = ::opendir("/proc");
  if (proc == nullptr) return all;
  while (const dirent* const entry = ::readdir(proc))
    if (const int pid = std::atoi(entry->d_name); pid > 0)
      if (const auto found = Find(pid)) all.insert(*found);
  ::closedir(proc);
  return all;
}

bool StartedWith(pid_t pid, std::string_view entry) {
  const std::string environment = '\0' + ProcFile(pid, "environ");
  return environment.find('\0' + std::string(entry) + '\0') != std::string::npos;
}

FoundProcesses Below(pid_t root, const FoundProcesses& all) {
  FoundProcesses below;
  std::set<pid_t> parents = {root};
  // A child may have a smaller id than its parent.
  for (size_t before = 0; before != parents.size();) {
    before = parents.size();
    for (const FoundProcess& process : all)
      if (process.pid != root && parents.contains(process.parent)) {
        parents.insert(process.pid);
        below.insert(process);
      }
  }
  return below;
}

void SignalEach(const FoundProcesses& processes, int signal) {
  for (const FoundProcess& process : processes) {
    const auto held = static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0));
    if (held < 0) continue;
    if (const auto now = Find(process.pid); now && now->start_ticks == process.start_ticks)
      (void)::syscall(SYS_pidfd_send_signal, held, signal, nullptr, 0);
    ::close(held);
  }
}

bool KillAll(const std::function<FoundProcesses()>& find) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (true) {
    const FoundProcesses found = find();
    if (found.empty()) return true;
    if (absl::Now() > deadline) return false;
    SignalEach(found, SIGKILL);
    absl::SleepFor(absl::Milliseconds(10));
  }
}

}  // namespace perdure
