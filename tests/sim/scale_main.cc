// perdure_sim_scale: what one lost node costs the control plane at sizes that no machine here has.
//
// For each size: a job starts on all nodes at once, steps, loses a node that has ranks, re-forms on
// a spare. Times are of the simulated world, with its delays for making ranks (up to 60 ms) and
// loading (up to 300 ms); the coordinator's processor time is this machine's.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>

#include "tests/sim/world.h"

namespace perdure::sim {
namespace {

Scenario Large(int32_t nodes, int32_t slots) {
  Scenario s;
  s.seed = 1;
  s.nodes = nodes;
  s.slots = slots;
  s.domains = std::max(1, nodes / 32);
  s.rule = {.tensor = std::min(4, slots),
            .pipeline = 4,
            .data = 0,
            .data_min = 1,
            .leaves = 1 << 20,
            .spares = 2,
            .nodes_max = nodes,
            .ranks_per_node = slots,
            .grow_after = absl::Minutes(10),
            .wait_max = absl::Hours(1)};
  // A leaf's hash is work of the world, not of the control plane.
  s.rule.leaves = nodes * slots / (s.rule.tensor * s.rule.pipeline);
  s.step = kSecond;
  s.delay_min = kMs / 50;
  s.delay_max = kMs;
  s.log_delay_max = 10 * kMs;
  s.heal_at = 3600 * kSecond;
  s.control.save_every = absl::Hours(1);
  return s;
}

double Ms(Nanos t) { return static_cast<double>(t) / 1e6; }

bool Measure(int32_t nodes, int32_t slots, bool json) {
  const auto begin = std::chrono::steady_clock::now();
  World world(Large(nodes, slots));
  const auto until = [&](const auto& done, Nanos limit) {
    while (!done() && world.now() < limit && world.RunUntil(world.now() + kMs).violation.empty()) {
    }
    return done();
  };
  world.Measure(true);
  if (!until([&] { return world.newest_step() >= 2; }, 120 * kSecond)) {
    std::printf("%d nodes: no step; %s\n", nodes, world.RunUntil(world.now()).violation.c_str());
    return false;
  }
  const Nanos first = world.now();
  const double first_cpu = Ms(world.lead_nanos());
  const Generation before = world.stepping();
  const size_t memory = mallinfo2().uordblks;
  // Steady state: what heartbeats cost.
  const int64_t steady = world.lead_nanos();
  world.RunUntil(world.now() + 2 * kSecond);
  const double steady_cpu = Ms(world.lead_nanos() - steady) / 2;
  const Nanos broken = world.now();
  world.Break(static_cast<NodeId>(nodes / 2));
  using Phase = Coordinator::Phase;
  until([&] { return world.Lead() != nullptr && world.Lead()->phase() != Phase::kRunning; },
        broken + 60 * kSecond);
  const Nanos detected = world.now();
  const int64_t cpu_detected = world.lead_nanos();
  const Outcome at_detection = world.RunUntil(world.now());
  until([&] { return world.Lead() != nullptr && world.Lead()->phase() == Phase::kRunning; },
        broken + 120 * kSecond);
  const Nanos formed = world.now();
  const int64_t cpu_formed = world.lead_nanos();
  const Outcome at_formed = world.RunUntil(world.now());
  const bool stepped = until([&] { return world.stepping() > before; }, broken + 120 * kSecond);
  const Outcome& end = world.RunUntil(world.now());
  const double messages = static_cast<double>(at_formed.messages - at_detection.messages) / nodes;
  const double bytes =
      static_cast<double>(at_formed.message_bytes - at_detection.message_bytes) / nodes;
  const double real =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (json)
    std::printf(
        "{\"nodes\": %d, \"ranks\": %d, \"start_ms\": %.0f, \"start_cpu_ms\": %.1f, \"detect_ms\": "
        "%.0f, \"reform_ms\": %.0f, "
        "\"reform_cpu_ms\": %.1f, \"messages_per_node\": %.1f, \"bytes_per_node\": %.0f, "
        "\"steady_cpu_ms_per_s\": %.1f, "
        "\"memory_per_node\": %.0f}\n",
        nodes, nodes * slots, Ms(first), first_cpu, Ms(detected - broken), Ms(formed - detected),
        Ms(cpu_formed - cpu_detected), messages, bytes, steady_cpu,
        static_cast<double>(memory) / nodes);
  else
    std::printf("%6d %7d %8.0f %10.1f %9.0f %9.0f %11.1f %9.1f %10.0f %10.1f %9.0f %7.0f %s\n",
                nodes, nodes * slots, Ms(first), first_cpu, Ms(detected - broken),
                Ms(formed - detected), Ms(cpu_formed - cpu_detected), messages, bytes, steady_cpu,
                static_cast<double>(memory) / nodes, real,
                end.violation.empty() && stepped ? "" : end.violation.c_str());
  std::fflush(stdout);
  return end.violation.empty() && stepped;
}

}  // namespace
}  // namespace perdure::sim

int main(int argc, char** argv) {
  CLI::App app{"What a lost node costs the control plane, by size"};
  std::vector<int32_t> nodes = {125, 400, 1250, 4000, 12500};
  int32_t slots = 8;
  bool json = false;
  app.add_option("nodes", nodes, "Sizes");
  app.add_option("--ranks-per-node", slots, "Ranks of a node");
  app.add_flag("--json", json, "One object a line");
  CLI11_PARSE(app, argc, argv);
  if (!json)
    std::printf("%6s %7s %8s %10s %9s %9s %11s %9s %10s %10s %9s %7s\n", "nodes", "ranks",
                "start ms", "cpu ms", "detect ms", "reform ms", "cpu ms", "msg/node", "bytes/node",
                "cpu ms/s", "mem/node", "real s");
  bool good = true;
  for (int32_t n : nodes) good = perdure::sim::Measure(n, slots, json) && good;
  return good ? 0 : 1;
}
