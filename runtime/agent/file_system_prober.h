// The half of ProbeFileSystem that asks: it makes the probe's directory, goes through the checks,
// meets the other tasks, cleans up, and tells the half that watches what it does and finds.
//
// It runs in a process of its own, which may be killed at any point.
#pragma once

#include <set>
#include <string>

#include "absl/status/status.h"
#include "runtime/agent/file_system_probe.h"

namespace perdure {

inline constexpr const char* kDirectoryCheck = "directory";
inline constexpr const char* kTasksCheck = "tasks";

// Where everything lies that a probe makes, but for the directories above it.
std::string ProbeDirectory(const ProbeOptions& options);
std::string TaskDirectory(const ProbeOptions& options);  // Of this task, in it.

// Goes through all of it. Writes JSON objects to `fd`, one a line:
//   {"begin": NAME}       a check begins
//   {"found": CHECK}      what came of it; a later one of that name replaces it
//   {"alive": true}       it takes long but goes on
//   {"making": PATH}      a directory that will have to be removed when it is empty,
//   {"not_made": PATH}    or not, because somebody else made it
//   {"claimed": BOOL}     ProbeDirectory is this probe's to remove
//   {"finished": true}    nothing more will come
void RunProbe(const ProbeOptions& options, int fd);

// Removes the directory, unless it is "", and those of `made` that are empty.
absl::Status RemoveProbe(const std::string& directory, const std::set<std::string>& made);

}  // namespace perdure
