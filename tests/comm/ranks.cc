#include "tests/comm/ranks.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kExitFailed = 3;
constexpr int kExitUnimplemented = 77;
constexpr int kExitAsserted = 1;  // UCX's code after an assertion that does not hold.

TransportOptions OptionsOf(const Wiring& wiring, int rank, int size) {
  TransportOptions options;
  options.rank = rank;
  options.size = size;
  options.network = wiring.network;
  return options;
}

// So that a test that is itself stopped leaves nobody behind.
void DieWithParent() { PERDURE_CHECK(::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); }

[[noreturn]] void EndChild() {
  std::fflush(nullptr);
  ::_exit(testing::Test::HasFailure() ? kExitFailed : 0);
}

// Stream sockets between parent and child carry length-prefixed strings.
void WriteAll(int fd, const void* data, size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::send(fd, from, bytes, MSG_NOSIGNAL);
    if (count <= 0) return;  // The other side's end is reported by whoever waits for it.
    from += count;
    bytes -= static_cast<size_t>(count);
  }
}

bool ReadAll(int fd, void* data, size_t bytes) {
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::recv(fd, to, bytes, 0);
    if (count <= 0) return false;
    to += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

void WriteString(int fd, const std::string& text) {
  const uint64_t bytes = text.size();
  WriteAll(fd, &bytes, sizeof bytes);
  WriteAll(fd, text.data(), text.size());
}

bool ReadString(int fd, std::string& text) {
  uint64_t bytes = 0;
  if (!ReadAll(fd, &bytes, sizeof bytes)) return false;
  text.resize(bytes);
  return ReadAll(fd, text.data(), bytes);
}

void RunProcessRank(const Wiring& wiring, int rank, int size, int fd, const UnconnectedBody& body) {
  auto transport = NewTransport(wiring.kind, OptionsOf(wiring, rank, size));
  ASSERT_TRUE(transport.ok()) << transport.status();
  const absl::StatusOr<std::string> address = (*transport)->LocalAddress();
  ASSERT_TRUE(address.ok()) << address.status();
  WriteString(fd, *address);
  std::vector<std::string> table(static_cast<size_t>(size));
  for (std::string& entry : table) ASSERT_TRUE(ReadString(fd, entry));
  body(*transport, table);
}

// libfabric's shm leaves its region behind when its process is killed.
void RemoveSharedMemoryOf(pid_t pid) {
  const std::string prefix = fmt::format("{}:", pid);
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored))
    if (entry.path().filename().string().starts_with(prefix))
      std::filesystem::remove(entry.path(), ignored);
}

// Waits for a child, at most until the deadline; its wait status, or -1 if it had to be killed.
int Reap(pid_t pid, absl::Time deadline) {
  int status = 0;
  while (::waitpid(pid, &status, WNOHANG) == 0) {
    if (absl::Now() >= deadline) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, &status, 0);
      RemoveSharedMemoryOf(pid);
      return -1;
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  RemoveSharedMemoryOf(pid);
  return status;
}

void ExpectEnd(int status, bool killed, const std::string& who, bool may_assert = false) {
  if (status == -1) {
    ADD_FAILURE() << who << " was not done in time";
  } else if (may_assert && WIFEXITED(status) && WEXITSTATUS(status) == kExitAsserted) {
    fmt::print(stderr, "{} was ended by an assertion of UCX\n", who);
  } else if (killed) {
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << who << ": " << status;
  } else {
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << who << " ended with wait status " << status;
  }
}

// A forked child and the parent's end of the socket between them.
struct Child {
  pid_t pid = -1;
  int fd = -1;
};

// `others` are the parent's ends of the sockets to its other children, which this one must not
// hold open.
Child Fork(const std::vector<Child>& others, const std::function<void(int fd)>& body) {
  int pair[2];
  PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  PERDURE_CHECK(pid >= 0);
  if (pid == 0) {
    DieWithParent();
    ::close(pair[0]);
    for (const Child& other : others) ::close(other.fd);
    body(pair[1]);
    EndChild();
  }
  ::close(pair[1]);
  return {pid, pair[0]};
}

// Hands the addresses of all to all.
void Introduce(const std::vector<Child>& children) {
  std::vector<std::string> table(children.size());
  for (size_t rank = 0; rank < children.size(); ++rank)
    EXPECT_TRUE(ReadString(children[rank].fd, table[rank])) << "rank " << rank << " has no address";
  for (const Child& child : children)
    for (const std::string& entry : table) WriteString(child.fd, entry);
}

void RunProcesses(const Wiring& wiring, const RunOptions& options, const UnconnectedBody& body) {
  const absl::Time deadline = absl::Now() + options.limit;
  std::vector<Child> children;
  for (int rank = 0; rank < options.size; ++rank)
    children.push_back(
        Fork(children, [&](int fd) { RunProcessRank(wiring, rank, options.size, fd, body); }));
  Introduce(children);
  for (int rank = 0; rank < options.size; ++rank) {
    const Child& child = children[static_cast<size_t>(rank)];
    ExpectEnd(Reap(child.pid, deadline), options.killed.contains(rank),
              fmt::format("rank {}", rank), options.may_assert);
    ::close(child.fd);
  }
}

void RunThreads(const Wiring& wiring, int size, const UnconnectedBody& body) {
  const std::shared_ptr<LocalHub> hub = wiring.kind == "local" ? NewLocalHub(size) : nullptr;
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::string> table;
  for (int rank = 0; rank < size; ++rank) {
    auto transport = NewTransport(wiring.kind, OptionsOf(wiring, rank, size), hub);
    ASSERT_TRUE(transport.ok()) << transport.status();
    const absl::StatusOr<std::string> address = (*transport)->LocalAddress();
    ASSERT_TRUE(address.ok()) << address.status();
    transports.push_back(*std::move(transport));
    table.push_back(*address);
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back(
        [&, transport = std::move(transports[static_cast<size_t>(rank)])]() mutable {
          body(transport, table);
        });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

std::vector<Wiring> AllWirings() {
  return {{"LocalThreads", "local", "", false},      {"UcxProcesses", "ucx", "", true},
          {"UcxThreads", "ucx", "", false},          {"UcxTcpProcesses", "ucx", "tcp", true},
          {"UcxCopyProcesses", "ucx", "^cma", true}, {"OfiProcesses", "libfabric", "", true},
          {"OfiThreads", "libfabric", "", false},    {"OfiShmProcesses", "libfabric", "shm", true}};
}

std::ostream& operator<<(std::ostream& out, const Wiring& wiring) { return out << wiring.label; }

std::string LabelOf(const testing::TestParamInfo<Wiring>& instance) { return instance.param.label; }

bool IsLinked(const Wiring& wiring) {
  static std::map<std::string, bool> known;
  const auto found = known.find(wiring.kind);
  if (found != known.end()) return found->second;
  if (wiring.kind == "local") return known[wiring.kind] = true;
  const pid_t pid = ::fork();
  PERDURE_CHECK(pid >= 0);
  if (pid == 0) {
    const auto transport = NewTransport(wiring.kind, OptionsOf(wiring, 0, 1));
    ::_exit(absl::IsUnimplemented(transport.status()) ? kExitUnimplemented : 0);
  }
  const int status = Reap(pid, absl::Now() + absl::Seconds(30));
  return known[wiring.kind] = !(WIFEXITED(status) && WEXITSTATUS(status) == kExitUnimplemented);
}

void RunForked(const std::function<void()>& body, absl::Duration limit) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  PERDURE_CHECK(pid >= 0);
  if (pid == 0) {
    DieWithParent();
    body();
    EndChild();
  }
  ExpectEnd(Reap(pid, absl::Now() + limit), /*killed=*/false, "the child");
}

void RunGenerations(const Wiring& wiring, const GenerationOptions& options,
                    const GenerationBody& body) {
  if (!wiring.processes) {
    PERDURE_CHECK(!options.last_is_new);
    const auto all = [&] {
      for (int g = 0; g < options.generations && !testing::Test::HasFailure(); ++g)
        RunThreads(wiring, options.size,
                   [&](auto& transport, const auto& table) { body(transport, table, g); });
    };
    return wiring.kind == "local" ? all() : RunForked(all, options.limit);
  }
  const absl::Time deadline = absl::Now() + options.limit;
  const int last = options.size - 1, lasting = options.last_is_new ? last : options.size;
  const auto live = [&](int rank, int fd, int generation) {
    RunProcessRank(wiring, rank, options.size, fd,
                   [&](auto& transport, const auto& table) { body(transport, table, generation); });
  };
  std::vector<Child> children;
  for (int rank = 0; rank < lasting; ++rank)
    children.push_back(Fork(children, [&](int fd) {
      for (int g = 0; g < options.generations && !testing::Test::HasFailure(); ++g) {
        live(rank, fd, g);
        WriteString(fd, "through");
      }
    }));
  for (int g = 0; g < options.generations && !testing::Test::HasFailure(); ++g) {
    std::vector<Child> present = children;
    if (options.last_is_new) present.push_back(Fork(children, [&](int fd) { live(last, fd, g); }));
    Introduce(present);
    std::string through;
    for (int rank = 0; rank < lasting; ++rank)
      EXPECT_TRUE(ReadString(children[static_cast<size_t>(rank)].fd, through))
          << "rank " << rank << ", generation " << g;
    if (!options.last_is_new) continue;
    ::kill(present.back().pid, SIGKILL);
    (void)Reap(present.back().pid, deadline);
    ::close(present.back().fd);
  }
  for (size_t rank = 0; rank < children.size(); ++rank) {
    ExpectEnd(Reap(children[rank].pid, deadline), false, fmt::format("rank {}", rank));
    ::close(children[rank].fd);
  }
}

void RunUnconnected(const Wiring& wiring, const RunOptions& options, const UnconnectedBody& body) {
  if (wiring.processes) return RunProcesses(wiring, options, body);
  PERDURE_CHECK(options.killed.empty());
  if (wiring.kind == "local") return RunThreads(wiring, options.size, body);
  RunForked([&] { RunThreads(wiring, options.size, body); });
}

void RunRanks(const Wiring& wiring, const RunOptions& options, const Body& body) {
  RunUnconnected(wiring, options,
                 [&](std::unique_ptr<Transport>& transport, const std::vector<std::string>& table) {
                   const absl::Status status = transport->Connect(table, kConnectTimeout);
                   ASSERT_TRUE(status.ok()) << "rank " << transport->rank() << ": " << status;
                   body(transport);
                 });
}

}  // namespace perdure
