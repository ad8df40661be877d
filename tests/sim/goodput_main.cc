// perdure_sim_goodput: what failures cost a run of months, in a chain of 20-hour jobs, against the
// same run with hourly checkpoints and full restarts.
//
// Hours pass in one event, so this is another simulation than World's: it draws failures, asks the
// production's planner what to do at each, and charges what World and the benchmarks measured.
// Goodput is productive time of GPUs over time of GPUs held by jobs, spares included; waiting in
// the scheduler's queue is nobody's GPU time.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <map>

#include "runtime/control/layout_planner.h"
#include "tests/prng.h"

namespace perdure::sim {
namespace {

struct Machine {
  const char* name;
  int32_t nodes, spares;         // Of 8 GPUs.
  double failures_per_node_day;  // That interrupt a job.
};

// Seconds. Where no source is named it is assumed, and on the dear side.
struct Costs {
  double step = 4.54;        // Lucie on 512 GPUs, as published.
  double detect_rank = 0.1;  // pidfd (facts of the kernel).
  double detect_node = 1.8;  // perdure_sim_scale, silence of 2 s.
  double reform = 0.45;      // perdure_sim_scale: stop, decide, START, table, Go.
  double new_process = 20;   // Device context, communicators, at a rank that is new.
  double kept_process = 3;   // Communicators alone, at ranks that stay.
  double load = 2;           // From memory of peers over the fabric.
  double job_start = 180;    // Spawn, load from the file system, first step.
  double job_leave = 30;     // Last save, stop.
  double job = 20 * 3600;
  double hardware =
      0.78;  // Of failures take the node away: Llama 3's table (hardware, network, host).
  double repair = 24 * 3600;  // Until it is back.
  // The other system.
  double other_restart =
      900;  // Time-outs of collectives, requeue of processes, load: 15 to 30 min are published.
  double other_checkpoint = 3600, other_stall = 20;
};

double Exponential(Prng& prng, double mean) {
  const double u = (static_cast<double>(prng.Next() >> 11) + 0.5) * 0x1p-53;
  return -mean * std::log(u);
}

struct Sum {
  double held = 0, productive = 0;
  int failures = 0, promoted = 0, shrunk = 0, ended = 0;
  double ratio() const { return productive / held; }
};

// One chain of `days`, under Perdure.
Sum Ours(const Machine& m, const Costs& c, double days, uint64_t seed) {
  Prng prng(seed, 31);
  Sum sum;
  const int32_t total = m.nodes + m.spares;
  const LayoutRule rule{.tensor = 4,
                        .pipeline = 4,
                        .data = m.nodes / 2,
                        .data_min = 1,
                        .leaves = m.nodes / 2,
                        .spares = m.spares,
                        .nodes_max = total,
                        .ranks_per_node = 8,
                        .grow_after = absl::Minutes(5),
                        .wait_max = absl::Hours(1)};
  for (double run = 0; run < days * 86400;) {
    // Each job gets whole nodes from the scheduler.
    std::vector<NodeOffer> offers;
    for (NodeId n = 0; n < static_cast<NodeId>(total); ++n)
      offers.push_back(
          {.node = n, .slots = {0, 1, 2, 3, 4, 5, 6, 7}, .domain = n / 32, .drained = false});
    PlacedLayout layout;
    const auto decide = [&](double at) {
      Decision d = DecideLayout(rule, {.offers = offers,
                                       .current = layout,
                                       .now = absl::UnixEpoch() + absl::Seconds(at),
                                       .unchanged_since = absl::UnixEpoch(),
                                       .waiting_since = absl::InfiniteFuture()});
      layout = {.generation = layout.generation + 1, .shape = d.shape, .seats = d.seats};
      return d.action;
    };
    decide(0);
    const auto speed = [&] { return static_cast<double>(layout.shape.data) / (m.nodes / 2); };
    double at = c.job_start;
    while (true) {
      const double mean = 86400 / (m.failures_per_node_day * static_cast<double>(offers.size()));
      const double next = at + Exponential(prng, mean);
      const double until = std::min(next, c.job - c.job_leave);
      if (until > at) sum.productive += (until - at) * speed() * m.nodes;
      if (next >= c.job - c.job_leave) break;
      ++sum.failures;
      const bool hardware = prng.PerMille(static_cast<int64_t>(c.hardware * 1000));
      double lost = c.reform + c.load;
      if (hardware) {
        offers.erase(offers.begin() + static_cast<int64_t>(prng.Below(offers.size())));
        lost += c.detect_node;
      } else {
        lost += c.detect_rank;
      }
      const LayoutAction action = decide(next);
      if (action == LayoutAction::kWait || action == LayoutAction::kEnd) {
        ++sum.ended;
        at = c.job;
        break;
      }
      sum.promoted += action == LayoutAction::kPromoteSpare;
      sum.shrunk += action == LayoutAction::kShrink;
      lost += action == LayoutAction::kShrink ? c.kept_process : c.new_process;
      at = next + lost;
      // The step in flight is redone: half of one on average.
      sum.productive -= std::min(c.step / 2, until) * speed() * m.nodes;
    }
    sum.held += c.job * total;
    run += c.job;
  }
  return sum;
}

// The same with hourly checkpoints; every failure restarts all from the last one. A lost node is
// replaced by a spare; without one the job goes on only when it is back, so it ends.
Sum Theirs(const Machine& m, const Costs& c, double days, uint64_t seed) {
  Prng prng(seed, 31);
  Sum sum;
  const int32_t total = m.nodes + m.spares;
  for (double run = 0; run < days * 86400;) {
    int32_t nodes = total;
    double at = c.job_start, held = c.job;
    while (true) {
      const double mean = 86400 / (m.failures_per_node_day * nodes);
      const double next = at + Exponential(prng, mean);
      const double until = std::min(next, c.job - c.job_leave);
      // Checkpoints stall training; what came after the last one is lost with a failure.
      const double worked = std::max(0.0, until - at);
      const double saves = std::floor(worked / c.other_checkpoint);
      const bool fails = next < c.job - c.job_leave;
      const double kept = fails ? saves * c.other_checkpoint : worked;
      sum.productive += std::max(0.0, kept - saves * c.other_stall) * m.nodes;
      if (!fails) break;
      ++sum.failures;
      if (prng.PerMille(static_cast<int64_t>(c.hardware * 1000)) && --nodes < m.nodes) {
        ++sum.ended;
        held = next;
        break;
      }
      at = next + c.other_restart;
    }
    sum.held += held * total;
    run += held;
  }
  return sum;
}

}  // namespace
}  // namespace perdure::sim

int main(int argc, char** argv) {
  using namespace perdure::sim;
  CLI::App app{"Goodput of chains of jobs under published failure rates"};
  double days = 54;
  int chains = 20;
  Costs costs;
  app.add_option("--days", days, "Of a run");
  app.add_option("--chains", chains, "Runs to average");
  app.add_option("--job-start", costs.job_start, "Seconds until the first step of a job");
  app.add_option("--new-process", costs.new_process, "Seconds for a rank that is made anew");
  app.add_option("--other-restart", costs.other_restart, "Seconds of a full restart");
  CLI11_PARSE(app, argc, argv);
  // GPU-hours between failures: Llama 3 405B (arXiv 2407.21783), Meta RSC (arXiv 2410.21680).
  const double llama = 8 * 24 / 50'700.0, rsc = 8 * 24 / 8'100.0;
  const Machine machines[] = {{"512 GPUs, Llama 3", 64, 0, llama},
                              {"512 GPUs, Llama 3", 64, 1, llama},
                              {"512 GPUs, RSC", 64, 0, rsc},
                              {"512 GPUs, RSC", 64, 1, rsc},
                              {"512 nodes, 6.5/1,000 node-days", 512, 0, 0.0065},
                              {"512 nodes, 6.5/1,000 node-days", 512, 2, 0.0065},
                              {"16,384 GPUs, Llama 3", 2048, 8, llama},
                              {"16,384 GPUs, RSC", 2048, 48, rsc}};
  std::printf(
      "| machine | spare nodes | failures a day | spare promoted | shrunk | Perdure | hourly "
      "checkpoints, full restarts |\n|---|---|---|---|---|---|---|\n");
  for (const Machine& m : machines) {
    Sum ours, theirs;
    for (int chain = 0; chain < chains; ++chain) {
      const auto add = [](Sum& to, const Sum& s) {
        to.held += s.held;
        to.productive += s.productive;
        to.failures += s.failures;
        to.promoted += s.promoted;
        to.shrunk += s.shrunk;
      };
      add(ours, Ours(m, costs, days, static_cast<uint64_t>(chain)));
      add(theirs, Theirs(m, costs, days, static_cast<uint64_t>(chain)));
    }
    const double total_days = days * chains;
    std::printf("| %s | %d | %.2f | %d | %d | %.2f %% | %.2f %% |\n", m.name, m.spares,
                ours.failures / total_days, ours.promoted, ours.shrunk, 100 * ours.ratio(),
                100 * theirs.ratio());
    std::fflush(stdout);
  }
}
