// perdure_sim: runs seeds or schedules of the simulator.
//
//   perdure_sim FROM COUNT [--jobs N]     seeds; prints what failed, and how fast it went
//   perdure_sim --seed N [--trace]        one, told
//   perdure_sim --schedule FILE [--trace]
//   perdure_sim --print N                 the schedule of a seed, as text
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/sim/world.h"

namespace perdure::sim {
namespace {

int RunOne(const Scenario& scenario, bool trace) {
  const Outcome outcome = World(scenario, trace).Run();
  std::printf(
      "seed %lu: digest %016lx, %lu events, %ld generations, %ld commits, %ld steps, ended at %.3f "
      "s\n",
      scenario.seed, outcome.digest, outcome.events, outcome.generations, outcome.commits,
      outcome.steps, static_cast<double>(outcome.ended) / 1e9);
  if (outcome.violation.empty()) return 0;
  std::printf("VIOLATION at %.4f s: %s\n", static_cast<double>(outcome.violated_at) / 1e9,
              outcome.violation.c_str());
  return 1;
}

int RunRange(uint64_t from, uint64_t count, uint64_t stride, bool stop) {
  const auto begin = std::chrono::steady_clock::now();
  uint64_t failed = 0, events = 0;
  int64_t commits = 0, generations = 0, steps = 0, leads = 0, slow_named = 0, slow_left = 0,
          saved_first = 0, rollbacks = 0;
  uint64_t memory = 0;
  uint32_t hit = 0;
  uint64_t done = 0;
  for (uint64_t seed = from; seed < from + count; seed += stride, ++done) {
    const Outcome outcome = World(DrawScenario(seed)).Run();
    events += outcome.events;
    commits += outcome.commits;
    generations += outcome.generations;
    steps += outcome.steps;
    leads += outcome.leads;
    memory += outcome.resumed_from_memory > 0;
    hit |= outcome.faults_hit;
    slow_named += outcome.slow_named;
    slow_left += outcome.slow_left;
    saved_first += outcome.saved_first;
    rollbacks += outcome.rollbacks;
    if (outcome.violation.empty()) continue;
    ++failed;
    std::printf("seed %lu: VIOLATION at %.4f s: %s\n", seed,
                static_cast<double>(outcome.violated_at) / 1e9, outcome.violation.c_str());
    std::fflush(stdout);
    if (stop) break;
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf(
      "%lu schedules, %lu failed, %.1f s, %.0f schedules/s, %.2f M events/s, %lu events each; "
      "leads %ld, generations %ld, "
      "commits %ld, steps %ld, from memory in %lu; slow named %ld, left out %ld; saved first %ld; "
      "went back %ld times; fault kinds hit %x\n",
      done, failed, seconds, static_cast<double>(done) / seconds,
      static_cast<double>(events) / seconds / 1e6, events / std::max<uint64_t>(done, 1), leads,
      generations, commits, steps, memory, slow_named, slow_left, saved_first, rollbacks, hit);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace perdure::sim

int main(int argc, char** argv) {
  using namespace perdure::sim;
  CLI::App app{"The simulator of Perdure's control plane"};
  uint64_t from = 0, count = 0;
  std::optional<uint64_t> seed, print;
  std::string schedule;
  bool trace = false, stop = false;
  uint64_t jobs = 1;
  app.add_option("from", from, "First seed");
  app.add_option("count", count, "Number of seeds");
  app.add_option("--seed", seed, "One seed");
  app.add_option("--print", print, "Print the schedule of a seed");
  app.add_option("--schedule", schedule, "A schedule as text");
  app.add_option("--jobs", jobs, "Processes");
  app.add_flag("--stop", stop, "End at the first violation");
  app.add_flag("--trace", trace, "Tell what happens");
  CLI11_PARSE(app, argc, argv);
  if (print) {
    std::fputs(Print(DrawScenario(*print)).c_str(), stdout);
    return 0;
  }
  if (seed) return RunOne(DrawScenario(*seed), trace);
  if (!schedule.empty()) {
    std::ifstream file(schedule);
    std::stringstream text;
    text << file.rdbuf();
    const auto scenario = ParseScenario(text.str());
    if (!scenario.ok()) {
      std::fprintf(stderr, "%s: %s\n", schedule.c_str(),
                   std::string(scenario.status().message()).c_str());
      return 2;
    }
    return RunOne(*scenario, trace);
  }
  std::vector<pid_t> children;
  for (uint64_t job = 1; job < jobs; ++job) {
    const pid_t child = fork();
    if (child == 0) return RunRange(from + job, count - job, jobs, stop);
    children.push_back(child);
  }
  int failed = RunRange(from, count, jobs, stop);
  for (pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failed |= status;
  }
  return failed == 0 ? 0 : 1;
}
