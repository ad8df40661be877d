#include "runtime/comm/cancellation.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<std::shared_ptr<Cancellation>> Cancellation::New() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.open()) return ErrnoStatus(errno, "eventfd that wakes a transport");
  return std::shared_ptr<Cancellation>(new Cancellation(std::move(fd)));
}

void Cancellation::Set(const std::string& reason) {
  const std::lock_guard lock(setting_);
  if (set()) return;
  status_ = Cancelled("told to stop: {}", reason);
  set_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  PERDURE_CHECK(::write(fd_.get(), &one, sizeof one) == sizeof one);
}

}  // namespace perdure
