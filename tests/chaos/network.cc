#include "tests/chaos/network.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A process that does nothing in a network of its own.
absl::StatusOr<int> Hold() {
  int ready[2];
  if (::pipe2(ready, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe2");
  const int pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char made = ::unshare(CLONE_NEWNET) == 0 ? 'y' : 'n';
    if (::write(ready[1], &made, 1) == 1 && made == 'y')
      while (true) ::pause();
    ::_exit(1);
  }
  ::close(ready[1]);
  char made = 'n';
  const bool told = ::read(ready[0], &made, 1) == 1;
  ::close(ready[0]);
  if (told && made == 'y') return pid;
  (void)::waitpid(pid, nullptr, 0);
  return Unavailable("networks of one's own are not allowed here: they need root");
}

absl::Status In(int holder, const std::string& words) {
  const std::string command =
      fmt::format("nsenter --net=/proc/{}/ns/net ip {} >/dev/null 2>&1", holder, words);
  if (std::system(command.c_str()) != 0)
    return Unavailable("`{}` failed: are iproute2 and util-linux there?", command);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Network> Network::Create(int nodes) {
  Network network;
  ASSIGN_OR_RETURN(network.hub_, Hold());
  RETURN_IF_ERROR(In(network.hub_, "link add name hub type bridge"));
  RETURN_IF_ERROR(In(network.hub_, "link set hub up"));
  for (int node = 0; node < nodes; ++node) {
    ASSIGN_OR_RETURN(const int holder, Hold());
    network.nodes_.push_back(holder);
    RETURN_IF_ERROR(In(network.hub_, fmt::format("link add name port{} type veth peer name eth0 "
                                                 "netns {}",
                                                 node, holder)));
    RETURN_IF_ERROR(In(network.hub_, fmt::format("link set port{} master hub up", node)));
    RETURN_IF_ERROR(In(holder, fmt::format("addr add {}/24 dev eth0", network.Address(node))));
    RETURN_IF_ERROR(In(holder, "link set eth0 up"));
    RETURN_IF_ERROR(In(holder, "link set lo up"));
  }
  return network;
}

Network::~Network() {
  for (const int holder : nodes_) {
    ::kill(holder, SIGKILL);
    (void)::waitpid(holder, nullptr, 0);
  }
  if (hub_ == 0) return;
  ::kill(hub_, SIGKILL);
  (void)::waitpid(hub_, nullptr, 0);
}

int Network::On(int node, const std::function<int()>& start) const {
  const int here = ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  const std::string path = fmt::format("/proc/{}/ns/net", nodes_[static_cast<size_t>(node)]);
  const int there = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  PERDURE_CHECK(here >= 0 && there >= 0 && ::setns(there, CLONE_NEWNET) == 0);
  const int result = start();
  PERDURE_CHECK(::setns(here, CLONE_NEWNET) == 0);
  ::close(here);
  ::close(there);
  return result;
}

std::string Network::Address(int node) const { return fmt::format("10.99.0.{}", node + 1); }

absl::Status Network::Cable(int node, const char* state) const {
  return In(hub_, fmt::format("link set port{} {}", node, state));
}

}  // namespace perdure
