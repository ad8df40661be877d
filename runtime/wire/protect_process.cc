#include "runtime/wire/protect_process.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#include <cerrno>

#include "runtime/base/status.h"

namespace perdure {

absl::Status ProtectProcess() {
  const rlimit none{.rlim_cur = 0, .rlim_max = 0};
  if (::setrlimit(RLIMIT_CORE, &none) != 0) return ErrnoStatus(errno, "setrlimit RLIMIT_CORE 0");
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
    return ErrnoStatus(errno, "prctl PR_SET_DUMPABLE 0");
  return absl::OkStatus();
}

absl::Status ForbidNewPrivileges() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
    return ErrnoStatus(errno, "prctl PR_SET_NO_NEW_PRIVS 1");
  return absl::OkStatus();
}

}  // namespace perdure
