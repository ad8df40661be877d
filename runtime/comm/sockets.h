// The few socket calls that peer_watch.cc needs, with owned descriptors and statuses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

struct Listener {
  UniqueFd fd;  // Non-blocking, on every interface.
  uint16_t port = 0;
};
absl::StatusOr<Listener> ListenTcp();

// A non-blocking connection under way to a numeric address.
absl::StatusOr<UniqueFd> StartConnect(const std::string& ip, uint16_t port);
// Once writable: the errno with which the connection attempt ended, 0 for success.
int ConnectError(int fd);
// Makes the kernel notice within about 15 s that the other machine has gone without a word.
void NoticeSilentDeath(int fd);

// The addresses of this machine under which others may reach it: up, no loopback, no link-local
// ones.
absl::StatusOr<std::vector<std::string>> MachineAddresses();
// Equal for two processes exactly where 127.0.0.1 is the same place to both.
absl::StatusOr<std::string> HostIdentity();

}  // namespace perdure
