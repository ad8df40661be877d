// Other processes by number: whether they live, until when. A number alone may have been given to
// somebody else, so a process is known by (pid, start time).
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "absl/time/time.h"

namespace perdure {

// When the process started, in clock ticks since boot (field 22 of /proc/PID/stat); 0 when there is
// none.
uint64_t ProcessStart(pid_t pid);

// Whether that process runs still: a zombie does not. start 0: any process of that number.
bool ProcessLives(pid_t pid, uint64_t start);

// What its first thread does, as proc(5) has it: 'R' runs, 'S' sleeps, 'D' waits for a disk or a
// device, 'T' was stopped, 't' by a debugger. 0: there is no such process, or nobody can tell.
char ProcessState(pid_t pid);

// Waits for its end; false after `timeout`.
bool AwaitProcessEnd(pid_t pid, absl::Duration timeout);

}  // namespace perdure
