// Random events against oracles that remember everything and look at everybody; and how much memory
// and time a large machine takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <set>

#include "runtime/control/failure_detector.h"
#include "tests/prng.h"

namespace perdure {
namespace {

using D = FailureDetector;

template <typename T>
std::vector<T> Only(const D::Effects& effects) {
  std::vector<T> only;
  for (const D::Effect& effect : effects)
    if (const T* one = std::get_if<T>(&effect)) only.push_back(*one);
  return only;
}

// ---- Silence ------------------------------------------------------------------------------------

struct SilenceOracle {
  struct Node {
    absl::Time heard;
    std::optional<absl::Time> closed;
  };
  std::map<NodeId, Node> watched;
  absl::Time now = absl::InfinitePast(), waits_since = absl::InfinitePast();

  // Those that are lost at `at`, after the event.
  std::set<NodeId> Step(absl::Time at, const D::Event& event, const D::Options& options) {
    if (!watched.empty() && at - now > options.silence_max / 2) waits_since = at;
    now = at;
    if (const auto* e = std::get_if<D::NodeWatched>(&event)) watched[e->node] = {at, {}};
    if (const auto* e = std::get_if<D::NodeForgotten>(&event)) watched.erase(e->node);
    if (const auto* e = std::get_if<D::Heard>(&event); e && watched.contains(e->node))
      watched[e->node] = {at, {}};
    if (const auto* e = std::get_if<D::ConnectionClosed>(&event); e && watched.contains(e->node))
      if (!watched[e->node].closed) watched[e->node].closed = at;
    std::set<NodeId> lost;
    for (const auto& [id, node] : watched) {
      const bool silent = at - std::max(node.heard, waits_since) >= options.silence_max;
      const bool closed = node.closed && at - std::max(*node.closed, waits_since) >=
                                             options.silence_after_close_max;
      if (silent || closed) lost.insert(id);
    }
    for (const NodeId id : lost) watched.erase(id);
    return lost;
  }
};

D::Event AnyNodeEvent(Prng& dice) {
  const auto node = static_cast<NodeId>(dice.Below(40));
  switch (dice.Below(24)) {
    case 0:
    case 1:
      return D::NodeWatched{node};
    case 2:
      return dice.Below(4) == 0 ? D::Event(D::NodeForgotten{node}) : D::Tick{};
    case 3:
    case 4:
      return D::ConnectionClosed{node};
    case 5:
      return D::Tick{};
    default:
      return D::Heard{node};
  }
}

TEST(FailureDetectorFuzz, SilenceIsAsAnOracleSays) {
  size_t losses = 0, pauses = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Prng dice(seed);
    const D::Options options;
    D detector(options);
    SilenceOracle oracle;
    absl::Time now = absl::UnixEpoch();
    for (int i = 0; i < 5000; ++i) {
      // Coarse, so that limits are met exactly; now and then a pause, or the deadline.
      now += absl::Milliseconds(50) * static_cast<int64_t>(dice.Below(4));
      if (dice.Below(400) == 0) now += absl::Milliseconds(900 + 50 * dice.Below(40));
      if (dice.Below(4) == 0 && detector.NextDeadline() != absl::InfiniteFuture())
        now = std::max(now, detector.NextDeadline());
      const D::Event event = AnyNodeEvent(dice);
      D::Effects effects;
      const absl::Time deadline = detector.NextDeadline();
      detector.Step(now, event, effects);
      std::set<NodeId> lost;
      for (const D::NodeLost& one : Only<D::NodeLost>(effects)) lost.insert(one.node);
      ASSERT_EQ(lost, oracle.Step(now, event, options)) << "seed " << seed << " event " << i;
      // It never wants to be called later than it has something to say.
      if (!lost.empty()) ASSERT_LE(deadline, now);
      losses += lost.size();
      pauses += Only<D::Resumed>(effects).size();
    }
  }
  EXPECT_GT(losses, 1000U);
  EXPECT_GT(pauses, 100U);
}

// ---- Stalls -------------------------------------------------------------------------------------

struct StallOracle {
  std::map<NodeId, StepIndex> finished;
  std::vector<absl::Duration> times;  // All of them.
  StepIndex step = 0;
  absl::Time since, told;
  bool first = true, whole = true;
  absl::Duration first_took = absl::InfiniteDuration();

  absl::Duration Limit(const D::Options& options) const {
    if (first) return options.first_step_max;
    if (times.empty())
      return std::min(options.first_step_max,
                      std::max(options.stall_min, first_took * options.stall_factor));
    const auto window = static_cast<size_t>(options.step_times_max);
    std::vector<absl::Duration> last(
        times.end() - static_cast<ptrdiff_t>(std::min(times.size(), window)), times.end());
    std::sort(last.begin(), last.end());
    size_t rank = 1;  // The first that covers 99 of 100.
    while (100 * rank < 99 * last.size()) ++rank;
    return std::max(options.stall_min, options.stall_factor * last[rank - 1]);
  }
  void Progress(absl::Time now, NodeId node, StepIndex to, const D::Options& options) {
    finished[node] = std::max(finished[node], to);
    StepIndex all = to;
    for (const auto& [_, of] : finished) all = std::min(all, of);
    if (all <= step) return;
    const absl::Duration took = now - since;
    if (first)
      first_took = whole ? took : absl::InfiniteDuration();
    else if (whole)
      times.push_back(std::min(took / (all - step), Limit(options)));
    first = false;
    whole = true;
    step = all;
    since = told = now;
  }
};

TEST(FailureDetectorFuzz, StallsAreAsAnOracleSays) {
  size_t stalls = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Prng dice(seed);
    D::Options options;
    options.step_times_max = static_cast<int>(1 + dice.Below(130));
    options.stall_min = absl::Seconds(2);
    options.first_step_max = absl::Seconds(20);
    D detector(options);
    StallOracle oracle;
    absl::Time now = absl::UnixEpoch();
    const auto nodes = static_cast<NodeId>(1 + dice.Below(5));
    std::vector<NodeId> all;
    for (NodeId node = 0; node < nodes; ++node) all.push_back(node);
    D::Effects effects;
    detector.Step(now, D::GenerationFormed{1, all, 0}, effects);
    for (const NodeId node : all) oracle.finished[node] = 0;
    oracle.since = oracle.told = now;
    for (int i = 0; i < 20000; ++i) {
      now += absl::Milliseconds(10) * static_cast<int64_t>(dice.Below(50));
      effects.clear();
      D::Event event = D::Tick{};
      if (dice.Below(500) == 0) {
        now += absl::Seconds(5);
        oracle.told = now;
        oracle.whole = false;
      }
      // Now and then nothing happens for long.
      if (i % 1000 > 200 && dice.Below(2) == 0) {
        const auto node = static_cast<NodeId>(dice.Below(nodes));
        const auto to = static_cast<StepIndex>(dice.Below(4)) + oracle.step;
        event = D::StepProgress{1, node, to, to};
        oracle.Progress(now, node, to, options);
      }
      detector.Step(now, event, effects);
      const absl::Duration limit = oracle.Limit(options);
      const std::vector<D::Stalled> told = Only<D::Stalled>(effects);
      const bool due = now - oracle.told >= limit;
      ASSERT_EQ(told.size(), due ? 1U : 0U) << "seed " << seed << " event " << i;
      ASSERT_EQ(detector.limit(), limit) << "seed " << seed << " event " << i;
      if (!due) continue;
      EXPECT_EQ(told[0].step, oracle.step);
      EXPECT_EQ(told[0].since, oracle.since);
      oracle.told = now;
      ++stalls;
    }
  }
  EXPECT_GT(stalls, 500U);
}

// ---- Bounds -------------------------------------------------------------------------------------

D::Event AnyEvent(Prng& dice, Generation& generation, uint64_t nodes) {
  const auto node = static_cast<NodeId>(dice.Below(nodes));
  const auto rank = static_cast<int32_t>(dice.Below(2 * nodes));
  const Generation about = generation - std::min(generation, dice.Below<uint64_t>(2));
  switch (dice.Below(12)) {
    case 0:
      return D::NodeWatched{node};
    case 1:
      return D::ConnectionClosed{node};
    case 2:
      return D::RankExited{about, {node, 0}, rank, D::ExitKind::kSignal, 9};
    case 3:
    case 4:
      return D::EndpointError{about, static_cast<int32_t>(dice.Below(2 * nodes)), rank};
    case 5:
    case 6:
    case 7: {
      const auto step = static_cast<StepIndex>(dice.Below(100000));
      return D::StepProgress{about, node, step, step + 1};
    }
    case 8:
      if (dice.Below(300) == 0) {
        std::vector<NodeId> ranks;
        for (uint64_t i = 0; i < nodes; ++i) ranks.insert(ranks.end(), 2, static_cast<NodeId>(i));
        return D::GenerationFormed{++generation, ranks, 0};
      }
      if (dice.Below(300) == 0) return D::GenerationEnded{about};
      if (dice.Below(100) == 0) return D::StoodStill{about};
      return D::PaceChanges{about, static_cast<StepIndex>(dice.Below(100000))};
    case 9:
      return D::NodeForgotten{node};
    default:
      return D::Heard{node};
  }
}

TEST(FailureDetectorFuzz, MemoryDoesNotFollowTheNumberOfEvents) {
  Prng dice(1);
  constexpr uint64_t kNodes = 50;
  D::Options options;
  options.accused_max = 20;
  D detector(options);
  Generation generation = 0;
  absl::Time now = absl::UnixEpoch();
  size_t most = 0;
  for (int i = 0; i < 1000000; ++i) {
    now += absl::Milliseconds(static_cast<int64_t>(dice.Below(20)));
    D::Effects effects;
    detector.Step(now, AnyEvent(dice, generation, kNodes), effects);
    ASSERT_LE(effects.size(), kNodes + 2);
    most = std::max(most, detector.held());
  }
  EXPECT_GT(generation, 100U);
  // Four tables and a histogram by node, two by rank, the accused, and the times of steps.
  EXPECT_LE(most, 6 * kNodes + 2 * 2 * kNodes + 20 + 128);
}

TEST(FailureDetectorFuzz, TheSameEventsGiveTheSameState) {
  const auto run = [](int events) {
    Prng dice(7);
    D detector{D::Options()};
    Generation generation = 0;
    absl::Time now = absl::UnixEpoch();
    D::Effects effects;
    for (int i = 0; i < events; ++i) {
      now += absl::Milliseconds(static_cast<int64_t>(dice.Below(20)));
      detector.Step(now, AnyEvent(dice, generation, 30), effects);
    }
    return std::pair(detector, effects);
  };
  EXPECT_EQ(run(20000), run(20000));
  EXPECT_FALSE(run(20000).first == run(19999).first);
}

// Printed, not asserted: it depends on the machine.
TEST(FailureDetectorFuzz, SpeedWithManyNodes) {
  constexpr NodeId kNodes = 12500;
  D detector{D::Options()};
  D::Effects effects;
  absl::Time now = absl::UnixEpoch();
  std::vector<NodeId> ranks;
  for (NodeId node = 0; node < kNodes; ++node) {
    detector.Step(now, D::NodeWatched{node}, effects);
    ranks.insert(ranks.end(), 8, node);
  }
  detector.Step(now, D::GenerationFormed{1, ranks, 0}, effects);
  const auto begin = std::chrono::steady_clock::now();
  int64_t events = 0;
  // Each node speaks each quarter of a second, in another order each time.
  for (int beat = 1; beat <= 40; ++beat)
    for (NodeId i = 0; i < kNodes; ++i) {
      const NodeId node = (i * 7919 + static_cast<NodeId>(beat) * 31) % kNodes;
      now += absl::Nanoseconds(20000);
      detector.Step(now, D::Heard{node}, effects);
      detector.Step(now, D::StepProgress{1, i, beat / 4, beat / 4 + 1}, effects);
      events += 2;
      if (detector.NextDeadline() <= now) detector.Step(now, D::Tick{}, effects);
    }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%u nodes: %.1f million events a second, %.0f ns each\n", kNodes,
              static_cast<double>(events) / seconds / 1e6,
              seconds / static_cast<double>(events) * 1e9);
  EXPECT_TRUE(effects.empty()) << InWords(effects.front());
}

}  // namespace
}  // namespace perdure
