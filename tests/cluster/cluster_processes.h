// Processes as /proc shows them: who descends from whom, and what environment they were started
// with. For ending all that a cluster of a test has brought into the world, and nothing else.
//
// Ids are used again by the kernel: who was found is signalled only while it is still the process
// that was found.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string_view>

namespace perdure {

struct FoundProcess {
  pid_t pid = 0, parent = 0;
  uint64_t start_ticks = 0;  // Since boot; with the id it names one process for ever.
  bool operator<(const FoundProcess& other) const { return pid < other.pid; }
};
using FoundProcesses = std::set<FoundProcess>;

// Those that run; who is dead and not yet waited for is none.
FoundProcesses RunningProcesses();
// Whether it was started with this "NAME=value". False where we may not know, or it has ended.
bool StartedWith(pid_t pid, std::string_view entry);
// Those of `all` that descend from `root`, without it.
FoundProcesses Below(pid_t root, const FoundProcesses& all);
// Sends it to those that are still there.
void SignalEach(const FoundProcesses& processes, int signal);
// SIGKILL to all that `find` finds, and once more until it finds nobody: a process may fork while
// it is being killed. False: after ten seconds there was still somebody.
bool KillAll(const std::function<FoundProcesses()>& find);

}  // namespace perdure
