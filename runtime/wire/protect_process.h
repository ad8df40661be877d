// What a process does that holds a key: nobody but root may look into it, and nothing of it lands
// in a file. Call before a key is read. Inherited by threads; children that exec call it again.
#pragma once

#include "absl/status/status.h"

namespace perdure {

// No core files (RLIMIT_CORE = 0), and not dumpable: no ptrace and no /proc/PID/{mem, maps,
// environ, fd} even for processes of our own uid; those files then belong to root.
absl::Status ProtectProcess();

// Neither this process nor what it executes gains privileges (set-uid programs run without).
absl::Status ForbidNewPrivileges();

}  // namespace perdure
