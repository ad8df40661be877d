#include "launch/backend.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "kernels/ops.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Gpus {
  int count = 0;
  std::string isa;  // Of the first; the ranks compare theirs.
  std::string why;  // There is no isa.
};

Gpus FindGpus() {
  Gpus gpus{.count = CudaDeviceCount()};
  const absl::StatusOr<std::string> isa = CudaIsa(0);
  (isa.ok() ? gpus.isa : gpus.why) = isa.ok() ? *isa : Message(isa.status());
  return gpus;
}

// FindGpus in a child that ends at once. A process that has called the driver keeps it: threads,
// memory, mappings that a fork would share. Agents are forked from this process, and though they
// exec at once, a launcher of a month has no use for a driver, nor for its crashes.
absl::StatusOr<Gpus> AskForGpus() {
  if (!CudaIsBuilt()) return FindGpus();
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe2");
  const pid_t pid = ::fork();
  if (pid < 0) {
    const int error = errno;
    ::close(ends[0]);
    ::close(ends[1]);
    return ErrnoStatus(error, "fork");
  }
  if (pid == 0) {
    const Gpus gpus = FindGpus();
    const std::string text = fmt::format("{}\n{}\n{}", gpus.count, gpus.isa, gpus.why);
    ::_exit(::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0
                                                                                            : 1);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (got > 0) text.append(buffer, static_cast<size_t>(got));
    if (got < 0 && errno != EINTR) break;
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  const size_t first = text.find('\n'), second = text.find('\n', first + 1);
  if (status != 0 || first == text.npos || second == text.npos)
    return Gpus{.why = WIFSIGNALED(status)
                           ? fmt::format("the CUDA driver died of signal {}", WTERMSIG(status))
                           : "the CUDA driver does not answer"};
  return Gpus{.count = std::atoi(text.c_str()),
              .isa = text.substr(first + 1, second - first - 1),
              .why = text.substr(second + 1)};
}

}  // namespace

absl::Status ResolveBackend(RunConfig& config, const RunConfig* frozen) {
  NumericsConfig& numerics = config.numerics;
  if (numerics.backend == "auto" && frozen != nullptr) numerics.backend = frozen->numerics.backend;
  Gpus gpus;
  if (numerics.backend != "cpu") {
    ASSIGN_OR_RETURN(gpus, AskForGpus());
  }
  if (numerics.backend == "auto") numerics.backend = gpus.count > 0 ? "cuda" : "cpu";
  const bool cuda = numerics.backend == "cuda";
  if (cuda && gpus.isa.empty())
    return FailedPrecondition(
        "numerics.backend is cuda but there is no GPU to use here: {}. Run on a machine with {}, "
        "or begin a new run with numerics.backend = \"cpu\"",
        gpus.why, frozen != nullptr ? "the kind of GPU that the run began on" : "one");
  const std::string here = cuda ? gpus.isa : CpuIsa();
  std::string& isa = numerics.isa;
  if (isa == "auto") isa = frozen != nullptr ? frozen->numerics.isa : here;
  if (isa == here) return absl::OkStatus();
  if (cuda)
    return FailedPrecondition(
        "numerics.isa is {} but this machine's GPU is {}: the bits would differ. Run on the same "
        "kind of GPU with the same versions of its libraries, or start the run anew",
        isa, here);
  return FailedPrecondition(
      "numerics.isa is {} but this machine's matmul library uses {}: the bits would differ. Run "
      "on the same kind of "
      "CPU, or start the run anew with ONEDNN_MAX_CPU_ISA set to what all machines have",
      isa, here);
}

std::vector<std::string> RankEnvironment(const RunConfig& config) {
  std::vector<std::string> environment;
  const auto set = [&](const char* name, const char* value) {
    if (::getenv(name) == nullptr) environment.push_back(fmt::format("{}={}", name, value));
  };
  // Waiting OpenMP threads must not burn a shared core.
  set("OMP_WAIT_POLICY", "passive");
  set("UCX_HANDLE_ERRORS", "none");
  if (config.numerics.backend != "cuda") return environment;
  // A stream of its own for each lane of a pipeline and for what is computed: of eight hardware
  // queues two streams would share one, and one wait behind the other.
  set("CUDA_DEVICE_MAX_CONNECTIONS", "32");
  // Loading a kernel at its first use may wait for all that run, hence for other ranks' messages.
  if (config.layout.device_transport != "staged") set("CUDA_MODULE_LOADING", "EAGER");
  return environment;
}

}  // namespace perdure
