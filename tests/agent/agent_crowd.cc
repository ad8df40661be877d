// perdure_agent_crowd: what a lost node costs a coordinator that is a real process, with thousands
// of real agents connected to it.
//
// One process is node 0's agent, which leads; others hold the remaining agents, each with its own
// wire, identity and listener, over loopback, on one real run directory. Ranks answer at once and
// do not step; all else is what a job has. Once all run, one agent is gone; the time until the
// coordinator has noticed, and until the next generation has been told to go, are taken by the
// coordinator's own process, with its processor time and memory.
#include <malloc.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "runtime/agent/agent.h"
#include "runtime/base/status.h"
#include "tests/agent/prompt_ranks.h"

namespace perdure {
namespace {

struct CrowdOptions {
  int agents = 4000;  // Beside the coordinator's.
  int processes = 2;
  int64_t heartbeat_ms = 250;
  std::string run_directory;
  double seconds_max = 300;  // For all of it.
};

struct OneAgent {
  explicit OneAgent(EventLoop* loop) : ranks(loop) {}
  PromptRanks ranks;
  NoStore store;
  std::unique_ptr<Agent> agent;
};

AgentOptions Options(const CrowdOptions& crowd, NodeId node) {
  AgentOptions options;
  options.run_directory = crowd.run_directory;
  options.job = 1;
  options.node = node;
  options.nodes = static_cast<NodeId>(crowd.agents + 1);
  options.control.heartbeat = absl::Milliseconds(crowd.heartbeat_ms);
  options.control.gather = absl::Seconds(120);
  options.control.save_every = absl::Hours(24);
  options.rule = {.data = crowd.agents,  // One spare.
                  .data_min = 1,
                  .leaves = 1 << 20,
                  .grow_after = absl::Hours(1),
                  .wait_max = absl::Hours(1)};
  if (node != 0) {
    // What an agent that does not lead needs.
    options.peers.wire.connections_max = 64;
    options.peers.wire.admission = {.places = 4, .sources = 8, .hellos = 64};
  }
  return options;
}

std::unique_ptr<OneAgent> Start(EventLoop* loop, ControlLog* log, const CrowdOptions& crowd,
                                NodeId node, bool tells) {
  auto one = std::make_unique<OneAgent>(loop);
  AgentHooks hooks;
  if (tells)
    hooks.remark = [](const std::string& text) { std::fprintf(stderr, "  %s\n", text.c_str()); };
  absl::StatusOr<std::unique_ptr<Agent>> agent =
      Agent::New(loop, log, Options(crowd, node), &one->ranks, &one->store, std::move(hooks));
  if (!agent.ok()) {
    std::fprintf(stderr, "node %u: %s\n", node, Message(agent.status()).c_str());
    std::_Exit(1);
  }
  one->agent = *std::move(agent);
  one->ranks.agent = one->agent.get();
  return one;
}

// Agents first, first + step, ...; when a byte comes, the one in the middle dies.
int RunCrowd(const CrowdOptions& crowd, int first, int commands) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto loop = *EventLoop::New();
  const auto log = *ControlLog::New(loop.get(), *RunLog::Open(crowd.run_directory));
  std::map<int, std::unique_ptr<OneAgent>> agents;
  for (int node = first; node <= crowd.agents; node += crowd.processes)
    agents[node] = Start(loop.get(), log.get(), crowd, static_cast<NodeId>(node), false);
  const absl::Status added = loop->AddFd(commands, EventLoop::kReadable, [&](uint32_t) {
    char command = 0;
    if (::read(commands, &command, 1) != 1) std::_Exit(0);  // The coordinator has ended.
    auto victim = agents.begin();
    std::advance(victim, agents.size() / 2);
    victim->second->agent.reset();
  });
  if (!added.ok()) return 1;
  loop->Run();
  return 0;
}

double CpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

int64_t ResidentKb() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line))
    if (line.starts_with("VmRSS:")) return std::atol(line.c_str() + 6);
  return 0;
}

class Measurement {
 public:
  Measurement(const CrowdOptions& crowd, int commands)
      : crowd_(crowd), commands_(commands), loop_(*EventLoop::New()) {
    log_ = *ControlLog::New(loop_.get(), *RunLog::Open(crowd.run_directory));
    empty_kb_ = ResidentKb();
    begin_ = MonotonicNow();
    lead_ = Start(loop_.get(), log_.get(), crowd, 0, true);
  }

  int Run() {
    using Phase = Coordinator::Phase;
    const auto running = [&](size_t members) {
      const Coordinator* lead = lead_->agent->lead();
      return lead != nullptr && lead->phase() == Phase::kRunning &&
             lead->members().size() == members;
    };
    const auto all = static_cast<size_t>(crowd_.agents);
    if (!Until([&] { return running(all); })) return Missing("the first generation");
    const double start = Since(begin_), start_cpu = CpuSeconds();
    const int64_t started_kb = ResidentKb();
    Rest(absl::Seconds(2));  // Every report of it has come.
    const double before = CpuSeconds();
    const WireCounters quiet = lead_->agent->peers().wire().counters();
    Rest(absl::Seconds(2));
    const double steady = (CpuSeconds() - before) / 2;
    const WireCounters counters = lead_->agent->peers().wire().counters();
    const double frames = static_cast<double>(counters.frames_received - quiet.frames_received) / 2;

    if (Replaced()) return Missing("a quiet time");
    const Generation generation = lead_->agent->lead()->layout().generation;
    const absl::Time killed = MonotonicNow();
    if (::write(commands_, "k", 1) != 1) return Missing("the crowd");
    if (!Until([&] { return lead_->agent->lead()->phase() != Phase::kRunning; }))
      return Missing("the detection");
    const double detect = Since(killed), cpu = CpuSeconds();
    const absl::Time detected = MonotonicNow();
    if (!Until(
            [&] { return running(all) && lead_->agent->lead()->layout().generation > generation; }))
      return Missing("the second generation");
    const double reform = Since(detected), reform_cpu = CpuSeconds() - cpu;
    const WireCounters after = lead_->agent->peers().wire().counters();
    const WireUsage usage = lead_->agent->peers().wire().Usage();
    std::printf(
        "{\"agents\": %d, \"processes\": %d, \"heartbeat_ms\": %ld, \"connections\": %u, "
        "\"start_s\": %.3f, \"start_cpu_s\": %.3f, \"detect_s\": %.3f, \"reform_s\": %.3f, "
        "\"reform_cpu_s\": %.3f, \"steady_cpu\": %.3f, \"reports_per_s\": %.0f, "
        "\"frames_per_agent\": %.1f, \"bytes_per_agent\": %.0f, \"resident_mb\": %.1f, "
        "\"resident_kb_per_agent\": %.2f, \"wire_bound_mb\": %.0f}\n",
        crowd_.agents, crowd_.processes, crowd_.heartbeat_ms, usage.connections, start, start_cpu,
        detect, reform, reform_cpu, steady, frames,
        static_cast<double>(after.frames_sent - counters.frames_sent) / crowd_.agents,
        static_cast<double>(after.bytes_sent - counters.bytes_sent) / crowd_.agents,
        static_cast<double>(ResidentKb()) / 1024,
        static_cast<double>(started_kb - empty_kb_) / crowd_.agents,
        static_cast<double>(usage.bytes_bound) / (1 << 20));
    return 0;
  }

 private:
  static double Since(absl::Time then) { return absl::ToDoubleSeconds(MonotonicNow() - then); }
  bool Until(const std::function<bool()>& done) {
    const absl::Time end = begin_ + absl::Seconds(crowd_.seconds_max);
    while (!Replaced() && !done() && MonotonicNow() < end)
      loop_->RunOnce(MonotonicNow() + absl::Milliseconds(5));
    return !Replaced() && done();
  }
  // Somebody else leads, in the other process perhaps: nothing is measured any more.
  bool Replaced() {
    led_ |= lead_->agent->lead() != nullptr;
    return led_ && lead_->agent->lead() == nullptr;
  }
  void Rest(absl::Duration time) {
    const absl::Time end = MonotonicNow() + time;
    while (MonotonicNow() < end) loop_->RunOnce(end);
  }
  int Missing(const char* what) {
    if (Replaced()) {
      std::fprintf(stderr,
                   "%s did not come: agent 0 was silent for more than a second and was "
                   "replaced as coordinator; try again on a quieter machine\n",
                   what);
      return 1;
    }
    const Coordinator* lead = lead_->agent->lead();
    std::fprintf(stderr, "%s did not come in %g s; phase %d, %u connections\n", what,
                 crowd_.seconds_max, lead == nullptr ? -1 : static_cast<int>(lead->phase()),
                 lead_->agent->peers().wire().Usage().connections);
    return 1;
  }

  const CrowdOptions crowd_;
  const int commands_;
  const std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<ControlLog> log_;
  std::unique_ptr<OneAgent> lead_;
  bool led_ = false;
  int64_t empty_kb_ = 0;
  absl::Time begin_;
};

int Main(const CrowdOptions& crowd) {
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
  (void)RunLog::Open(crowd.run_directory);  // The key, before all open it.
  std::vector<pid_t> children;
  int first_commands = -1;
  for (int i = 0; i < crowd.processes; ++i) {
    int ends[2];
    if (::pipe(ends) != 0) return 1;
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(ends[1]);
      std::_Exit(RunCrowd(crowd, i + 1, ends[0]));
    }
    ::close(ends[0]);
    children.push_back(child);
    if (i == 0) first_commands = ends[1];
  }
  const int code = Measurement(crowd, first_commands).Run();
  for (const pid_t child : children) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  return code;
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  CLI::App app{"What a lost node costs a real coordinator, by the number of agents"};
  perdure::CrowdOptions crowd;
  app.add_option("run", crowd.run_directory,
                 "A new run's directory; without it one that goes away");
  app.add_option("--followers", crowd.agents, "Beside the coordinator's");
  app.add_option("--processes", crowd.processes, "That hold them");
  app.add_option("--heartbeat-ms", crowd.heartbeat_ms, "Of each agent");
  app.add_option("--seconds", crowd.seconds_max, "For all of it");
  CLI11_PARSE(app, argc, argv);
  const bool temporary = crowd.run_directory.empty();
  if (temporary) {
    crowd.run_directory = std::filesystem::temp_directory_path() / "perdure-crowd-XXXXXX";
    if (::mkdtemp(crowd.run_directory.data()) == nullptr) return 1;
  }
  const int code = perdure::Main(crowd);
  if (temporary) std::filesystem::remove_all(crowd.run_directory);
  return code;
}
