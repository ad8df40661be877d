// perdure_sim_chain: the long chain. Lucie's run in 20-hour jobs under failures, job by job, and
// the same run by the script it was trained with.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "launch/config.h"
#include "runtime/base/status.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {
namespace {

struct Arguments {
  std::string config = PERDURE_SOURCE_DIR "/launch/recipes/lucie/run.toml";
  std::vector<std::string> settings;
  uint64_t seed = 1;
  uint64_t seeds = 1;
  bool script_timeline = false;
  ChainAssumptions assumed;
};

void AddAssumptions(CLI::App& app, ChainAssumptions& a) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str();
  };
  add("--device-share", a.device_share,
      "Of failures: a GPU or its memory (Llama 3: 30.1 + 17.2 %)");
  add("--node-share", a.node_share,
      "Of failures: node or network gone (Llama 3: what is left of its 78 % hardware)");
  add("--corruption-share", a.corruption_share,
      "Of failures: a device computes wrongly (Llama 3: 6 of 419)");
  add("--unseen-share", a.unseen_share,
      "Of device failures: the scheduler gives the node to the next job (BLOOM met it; share "
      "assumed)");
  add("--strike-hours", a.strike_hours, "Until such a node fails again, mean (assumed)");
  add("--repair-hours", a.repair_hours, "Until a bad node is good again (assumed)");
  add("--preempted-share", a.preempted_share, "Of jobs: taken away with notice (assumed)");
  add("--crashed-share", a.crashed_share, "Of jobs: die as a whole (assumed)");
  add("--kill-wait", a.kill_wait, "Seconds from SIGTERM to SIGKILL (Jean Zay)");
  add("--partition-nodes", a.partition_nodes, "Jean Zay's H100 part");
  add("--wait-hours-min", a.wait_hours_min,
      "In the queue, at least (BLOOM's chronicles: 1 to 30 h)");
  add("--wait-hours-max", a.wait_hours_max,
      "In the queue, at most (the same; evenly by log, assumed)");
  add("--age-counts", a.age_counts,
      "A job's age counts while it waits for the one before (Slurm: PriorityFlags=ACCRUE_ALWAYS "
      "only; 0: its wait begins when that one ends)");
  add("--whole-share", a.whole_share, "Of jobs that ask for a range: get all (assumed)");
  add("--requeue-delay", a.requeue_delay, "Seconds until a requeued job is eligible (Slurm 22.05)");
  add("--dispatch", a.dispatch, "Seconds from eligible to begun at least (assumed)");
  add("--step", a.step, "Seconds on 512 GPUs, median (Lucie's log; its spread over windows kept)");
  add("--extension-step", a.extension_step, "Seconds on 128 GPUs (Lucie: 1,220 steps in 12.9 h)");
  add("--jitter", a.jitter, "Of each step, either way, at most (assumed)");
  add("--launch-min", a.launch_min, "Seconds from a job's begin to its processes, least (assumed)");
  add("--launch-max", a.launch_max, "The most, usually (assumed)");
  add("--slow-launch-share", a.slow_launch_share, "Of jobs: a slow file system (assumed)");
  add("--slow-launch-min", a.slow_launch_min, "Then at least (assumed)");
  add("--slow-launch-max", a.slow_launch_max, "Then at most (assumed)");
  add("--start-up", a.start_up, "Seconds from processes to the first step (assumed)");
  add("--script-start-up", a.script_start_up, "The script's (assumed: the same)");
  add("--state-gb", a.state_gb, "GB of a checkpoint (14 bytes a parameter)");
  add("--write-gb-per-second", a.write_gb_per_second,
      "Of the file system (BLOOM measured it on Jean Zay); Perdure reads back besides");
  add("--commit", a.commit, "Seconds of a save besides (assumed)");
  add("--save-spread", a.save_spread, "A save takes up to so much longer (assumed)");
  add("--slow-save-share", a.slow_save_share, "Of saves (assumed)");
  add("--slow-save-factor", a.slow_save_factor, "Take so much longer (assumed)");
  add("--freeze", a.freeze, "Seconds that training stands for a save (assumed)");
  add("--detect-rank", a.detect_rank, "Seconds (pidfd)");
  add("--detect-node", a.detect_node, "Seconds (perdure_sim_scale)");
  add("--reform", a.reform, "Seconds (perdure_sim_scale)");
  add("--load", a.load, "Seconds, from memory of peers (assumed)");
  add("--new-process", a.new_process, "Seconds, of a rank made anew (assumed)");
  add("--kept-process", a.kept_process, "Seconds, of ranks that stay (assumed)");
  add("--stop", a.stop, "Seconds at most, of ending all processes (assumed)");
  add("--script-timer-minutes", a.script_timer_minutes, "Lucie's --exit-duration-in-mins");
  add("--script-save-steps", a.script_save_steps, "Lucie's --save-interval");
  add("--script-save-steps-later", a.script_save_steps_later, "Of the extension (Lucie)");
  add("--script-detect-rank", a.script_detect_rank, "Seconds, --kill-on-bad-exit (assumed)");
  add("--script-detect-node", a.script_detect_node, "Seconds, SlurmdTimeout's default");
  add("--script-convert-minutes", a.script_convert_minutes, "Between phases (BLOOM: 47 min 55 s)");
  add("--person-from", a.person_from, "Hour of the day at which somebody begins to look (assumed)");
  add("--person-until", a.person_until, "And ends (assumed)");
  add("--person-every-minutes", a.person_every_minutes, "Looks so often meanwhile (assumed)");
}

// "median (5 % .. 95 %)".
std::string Spread(std::vector<double> values, int digits) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return fmt::format("{:.{}f} ({:.{}f} .. {:.{}f})", at(0.5), digits, at(0.05), digits, at(0.95),
                     digits);
}

int RunSeeds(const Arguments& arguments, const ChainOptions& options) {
  struct Column {
    const char* name;
    int digits;
    double (*of)(const ChainOutcome&);
  };
  const Column columns[] = {
      {"starts of jobs", 0, [](const ChainOutcome& o) { return double(o.rows.size()); }},
      {"failures met", 0, [](const ChainOutcome& o) { return double(o.failures); }},
      {"days", 1,
       [](const ChainOutcome& o) { return absl::ToDoubleHours(o.ends - o.begins) / 24; }},
      {"days between jobs", 1,
       [](const ChainOutcome& o) { return absl::ToDoubleHours(o.waited()) / 24; }},
      {"GPU-hours held", 0, [](const ChainOutcome& o) { return o.hours().held(); }},
      {"GPU-hours lost", 0, [](const ChainOutcome& o) { return o.hours().lost(); }},
      {"  steps taken again", 0, [](const ChainOutcome& o) { return o.hours().redone; }},
      {"  starting", 0, [](const ChainOutcome& o) { return o.hours().starting; }},
      {"  recovering", 0, [](const ChainOutcome& o) { return o.hours().recovering; }},
      {"  saving and leaving", 0,
       [](const ChainOutcome& o) { return o.hours().saving + o.hours().leaving; }},
      {"  spares, shrunk layouts", 0, [](const ChainOutcome& o) { return o.hours().idle; }},
      {"goodput, %", 2,
       [](const ChainOutcome& o) { return 100 * o.hours().productive / o.hours().held(); }},
      {"unused by a job, most s", 0,
       [](const ChainOutcome& o) {
         double most = 0;
         for (const ChainRow& row : o.rows)
           if (row.at_its_end) most = std::max(most, absl::ToDoubleSeconds(row.unused));
         return most;
       }},
      {"killed at the limit", 0, [](const ChainOutcome& o) { return double(o.by_limit); }}};
  std::vector<ChainOutcome> chains, scripts;
  int violations = 0;
  for (uint64_t seed = arguments.seed; seed < arguments.seed + arguments.seeds; ++seed) {
    chains.push_back(SimulateChain(options, seed));
    scripts.push_back(SimulateScript(options, seed));
    for (const ChainOutcome* outcome : {&chains.back(), &scripts.back()}) {
      if (outcome->violation.empty()) continue;
      ++violations;
      std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed),
                  outcome->violation.c_str());
    }
  }
  std::printf("| median (5 %% .. 95 %%) of %llu seeds | Perdure | script |\n|---|---|---|\n",
              static_cast<unsigned long long>(arguments.seeds));
  for (const Column& column : columns) {
    std::vector<double> ours, theirs;
    for (const ChainOutcome& outcome : chains) ours.push_back(column.of(outcome));
    for (const ChainOutcome& outcome : scripts) theirs.push_back(column.of(outcome));
    std::printf("| %s | %s | %s |\n", column.name, Spread(ours, column.digits).c_str(),
                Spread(theirs, column.digits).c_str());
  }
  return violations == 0 ? 0 : 1;
}

int RunOne(const Arguments& arguments, const ChainOptions& options) {
  const ChainOutcome chain = SimulateChain(options, arguments.seed);
  const ChainOutcome script = SimulateScript(options, arguments.seed);
  std::fputs(Timeline(chain).c_str(), stdout);
  if (arguments.script_timeline) std::printf("\nthe script\n%s", Timeline(script).c_str());
  std::printf("\n%s", Summary(chain, script).c_str());
  for (const ChainOutcome* outcome : {&chain, &script})
    if (!outcome->violation.empty()) std::printf("WRONG: %s\n", outcome->violation.c_str());
  return chain.violation.empty() && script.violation.empty() ? 0 : 1;
}

}  // namespace
}  // namespace perdure::sim

int main(int argc, char** argv) {
  using namespace perdure;
  CLI::App app{"A run of months in bounded jobs, by Perdure and by the script of Lucie"};
  sim::Arguments arguments;
  app.add_option("--config", arguments.config, "The run")->capture_default_str();
  app.add_option("--set", arguments.settings,
                 "KEY=VALUE over it; first come job.nodes=128 and slurm.site=jean-zay-h100")
      ->allow_extra_args(false);
  app.add_option("--seed", arguments.seed, "The first")->capture_default_str();
  app.add_option("--seeds", arguments.seeds, "So many: medians instead of a timeline")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--gpu-hours-between", arguments.assumed.gpu_hours_between,
                 "Failures: 50700 Llama 3, 8100 Meta RSC, 64000 BLOOM")
      ->capture_default_str();
  app.add_flag("--script-timeline", arguments.script_timeline, "The script's jobs, too");
  sim::AddAssumptions(app, arguments.assumed);
  CLI11_PARSE(app, argc, argv);
  std::vector<std::string> settings = {"job.nodes=128", "slurm.site=jean-zay-h100"};
  settings.insert(settings.end(), arguments.settings.begin(), arguments.settings.end());
  absl::StatusOr<RunConfig> config = LoadConfig(arguments.config, settings);
  if (!config.ok()) {
    std::fprintf(stderr, "perdure_sim_chain: %s\n", Message(config.status()).c_str());
    return 2;
  }
  const sim::ChainOptions options{.assumed = arguments.assumed, .config = *std::move(config)};
  return arguments.seeds > 1 ? sim::RunSeeds(arguments, options) : sim::RunOne(arguments, options);
}
