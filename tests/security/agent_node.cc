// perdure_agent_node: one agent in one process, as a launcher will host it, whose ranks step
// together with those of the other processes. It tells a Board how it is.
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/agent/agent.h"
#include "runtime/agent/job_start.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/control/rank_guard.h"
#include "runtime/wire/protect_process.h"
#include "tests/agent/prompt_ranks.h"
#include "tests/security/board.h"
#include "tests/wire/wire_harness.h"

namespace perdure {
namespace {

constexpr absl::Duration kBeat = absl::Milliseconds(10);
constexpr uint64_t kScanEvery = 10;  // Beats.

struct HostParts {
  std::string run_directory;
  uint32_t node = 0, nodes = 5;
  uint64_t job = 7;
  uint64_t restart = 1;
  uint16_t port = 0;
  uint64_t descriptors = 256;
};

Board* board = nullptr;
NodeBoard* mine = nullptr;

// Ranks that step as far as all others have come, while they may.
class PacedRanks : public PromptRanks {
 public:
  using PromptRanks::Do;
  using PromptRanks::PromptRanks;
  void Do(const Member::Run& order) override {
    guard_.Join(order.generation);
    finished_ = 0;
    mine->step = 0;
    mine->generation = order.generation;
    stepped_ = false;
    running_ = true;
  }
  void Do(const Member::Renew& order) override { guard_.Renew(order.generation, order.until); }
  void Do(const Member::StopRanks& order) override {
    running_ = false;
    PromptRanks::Do(order);
  }
  void Do(const Member::KillRanks& order) override {
    running_ = false;
    PromptRanks::Do(order);
  }

  void Step() {
    if (!running_) return;
    const absl::Time now = MonotonicNow();
    if (stepped_) {
      const int64_t pause = absl::ToInt64Nanoseconds(now - last_);
      mine->pause_most = std::max(mine->pause_most.load(), pause);
    }
    const bool may = guard_.MayStep(now);
    if (stepped_ && may_ && !may) ++mine->lapses;
    may_ = may;
    if (!may) return;
    int32_t others = 0;
    for (const NodeBoard& node : board->nodes)
      others += node.generation == mine->generation && node.step >= finished_;
    if (others < prepare().shape.ranks()) return;
    mine->step = ++finished_;
    stepped_ = true;
    last_ = now;
    Tell(Member::Progress{prepare().generation, finished_, false});
  }

 private:
  RankGuard guard_;
  bool running_ = false, stepped_ = false, may_ = false;
  StepIndex finished_ = 0;
  absl::Time last_;
};

void CountDescriptors() {
  rlimit limit{};
  PERDURE_CHECK(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  uint32_t open = 0, inherited = 0, local = 0;
  for (int fd = 0; fd < static_cast<int>(limit.rlim_cur); ++fd) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags < 0) continue;
    ++open;
    inherited += fd > 2 && (flags & FD_CLOEXEC) == 0;
    int domain = 0;
    socklen_t bytes = sizeof domain;
    local += ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) == 0 && domain == AF_UNIX;
  }
  mine->descriptors = open;
  mine->inherited = inherited;
  mine->unix_sockets = local;
}

// As a network would do it: without a word.
void Cut(uint32_t port, uint64_t descriptors) {
  for (int fd = 3; fd < static_cast<int>(descriptors); ++fd) {
    sockaddr_in peer{};
    socklen_t bytes = sizeof peer;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &bytes) == 0 &&
        peer.sin_family == AF_INET && ntohs(peer.sin_port) == port)
      ::shutdown(fd, SHUT_RDWR);
  }
}

void Publish(const Agent& agent) {
  const Wire& wire = agent.peers().wire();
  const WireCounters& counters = wire.counters();
  const WireUsage usage = wire.Usage();
  mine->port = wire.address().port;
  mine->leads = agent.lead() != nullptr;
  mine->term = agent.member().term();
  for (size_t i = 0; i < kRefusals; ++i) mine->refused[i] = counters.refused[i];
  mine->accepted = counters.accepted;
  mine->attempts = counters.attempts;
  mine->frames_received = counters.frames_received;
  mine->malformed = agent.peers().counters().malformed;
  mine->connections = usage.connections;
  mine->half_open = usage.half_open;
  mine->unconfirmed = usage.unconfirmed;
  mine->bytes_bound = usage.bytes_bound;
  mine->resident = ResidentBytes();
  mine->resident_most = std::max(mine->resident_most.load(), mine->resident.load());
  ++mine->beats;
}

// Times that a busy machine keeps, and little room, so that its bounds are felt.
AgentOptions Options(const HostParts& parts) {
  AgentOptions options;
  options.run_directory = parts.run_directory;
  options.job = JobStart(parts.job, parts.restart);
  options.node = parts.node;
  options.nodes = parts.nodes;
  options.port = parts.port;
  options.control.heartbeat = absl::Milliseconds(100);
  options.control.lease_agent = options.control.lease_support = absl::Seconds(4);
  options.control.lease_log = absl::Seconds(4);
  options.control.poll = absl::Milliseconds(500);
  options.control.seek = absl::Milliseconds(100);
  options.control.node_silence = absl::Seconds(4);
  options.control.close_silence = absl::Seconds(3);
  options.control.leader_silence = absl::Milliseconds(1500);
  // Node 3, whose connections are attacked, offers itself when it has been cut off for 3 s.
  options.control.stagger = absl::Seconds(1);
  options.control.gather = absl::Milliseconds(300);
  options.control.save_every = absl::Hours(1);
  options.rule = {.data = 4,
                  .data_min = 4,
                  .leaves = 1 << 20,
                  .grow_after = absl::Hours(1),
                  .wait_max = absl::Minutes(5)};
  options.peers.wire.connections_max = 64;
  options.peers.wire.outgoing_bytes_max = size_t{2} << 20;
  options.peers.wire.outgoing_bytes_total = size_t{8} << 20;
  options.peers.wire.incoming_bytes_total = size_t{4} << 20;
  options.peers.wire.admission.place_time = absl::Seconds(1);
  return options;
}

absl::Status Host(const HostParts& parts) {
  RETURN_IF_ERROR(ProtectProcess());
  RETURN_IF_ERROR(ForbidNewPrivileges());
  ASSIGN_OR_RETURN(const std::unique_ptr<EventLoop> loop, EventLoop::New());
  ASSIGN_OR_RETURN(RunLog run_log, RunLog::Open(parts.run_directory));
  ASSIGN_OR_RETURN(const std::unique_ptr<ControlLog> log,
                   ControlLog::New(loop.get(), std::move(run_log)));
  PacedRanks ranks(loop.get());
  NoStore store;
  std::optional<int> code;
  AgentHooks hooks;
  hooks.remark = [](const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); };
  hooks.ended = [&](int exit_code) {
    code = exit_code;
    loop->Stop();
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<Agent> agent,
                   Agent::New(loop.get(), log.get(), Options(parts), &ranks, &store, hooks));
  ranks.agent = agent.get();
  std::function<void()> beat = [&] {
    ranks.Step();
    if (const uint32_t port = mine->cut; port != 0) {
      Cut(port, parts.descriptors);
      mine->cut = 0;
    }
    if (mine->beats % kScanEvery == 0) CountDescriptors();
    Publish(*agent);
    loop->AddTimer(MonotonicNow() + kBeat, beat);
  };
  beat();
  loop->Run();
  std::exit(*code);
}

int Main(const HostParts& parts) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  void* const shared =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, kBoardDescriptor, 0);
  if (shared == MAP_FAILED || parts.node >= kBoardNodes) return 2;
  ::close(kBoardDescriptor);
  board = static_cast<Board*>(shared);
  mine = &board->nodes[parts.node];
  const rlimit files{.rlim_cur = parts.descriptors, .rlim_max = parts.descriptors};
  PERDURE_CHECK(::setrlimit(RLIMIT_NOFILE, &files) == 0);
  const absl::Status status = Host(parts);
  std::fprintf(stderr, "node %u: %s\n", parts.node, Message(status).c_str());
  return 1;
}

}  // namespace
}  // namespace perdure

// The network between this agent and one port may lead through somebody else's hands.
extern "C" int connect(int fd, const sockaddr* to, socklen_t bytes) {
  sockaddr_in v4{};
  if (to->sa_family == AF_INET && bytes == sizeof v4) {
    std::memcpy(&v4, to, sizeof v4);
    const uint32_t from = perdure::mine->redirect_from;
    if (from != 0 && ntohs(v4.sin_port) == from)
      v4.sin_port = htons(static_cast<uint16_t>(perdure::mine->redirect_to));
    to = reinterpret_cast<const sockaddr*>(&v4);
    return static_cast<int>(::syscall(SYS_connect, fd, to, bytes));
  }
  return static_cast<int>(::syscall(SYS_connect, fd, to, bytes));
}

int main(int argc, char** argv) {
  CLI::App app{"One agent of a job that is attacked"};
  perdure::HostParts parts;
  app.add_option("run", parts.run_directory)->required();
  app.add_option("--node", parts.node);
  app.add_option("--nodes", parts.nodes);
  app.add_option("--job", parts.job);
  app.add_option("--restart", parts.restart);
  app.add_option("--port", parts.port);
  app.add_option("--descriptors", parts.descriptors);
  CLI11_PARSE(app, argc, argv);
  return perdure::Main(parts);
}
