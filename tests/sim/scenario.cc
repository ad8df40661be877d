#include "tests/sim/scenario.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "runtime/base/status.h"
#include "tests/prng.h"

namespace perdure::sim {
namespace {

constexpr std::array<const char*, kFaultKinds> kNames = {
    "agent_crash", "node_crash", "rank_crash",   "slot_lost",    "node_pause", "agent_pause",
    "isolate",     "cut",        "close",        "slow_network", "log_stall",  "log_errors",
    "log_blind",   "drain",      "write_errors", "stubborn",     "unkillable", "stall",
    "end_job",     "kill_job",   "two_jobs",     "slow_node"};

// How often the kinds come where they come at all: the interruptions of Llama 3 405B's 54 days
// (arXiv 2407.21783, table 5), by what they look like to us, and what shared machines add.
constexpr std::array<int, kFaultKinds - 1> kWeights = {20, 60, 120, 60, 20, 20, 20, 20, 30, 10, 15,
                                                       15, 15, 30,  20, 15, 8,  10, 12, 6,  6};

ControlOptions DrawOptions(Prng& prng) {
  ControlOptions o;
  // What a test of seconds needs, and what buggy code would not survive: drawn, not chosen.
  o.heartbeat = absl::Milliseconds(prng.Between(100, 400));
  o.lease_agent = absl::Milliseconds(prng.Between(1000, 2500));
  o.lease_support = absl::Milliseconds(prng.Between(1000, 2500));
  o.poll = absl::Milliseconds(prng.Between(500, 1500));
  o.visibility =
      prng.PerMille(300) ? absl::Milliseconds(prng.Between(100, 1000)) : absl::ZeroDuration();
  o.lease_log = o.visibility + 2 * o.poll + absl::Milliseconds(prng.Between(500, 4000));
  o.seek = absl::Milliseconds(prng.Between(100, 500));
  o.leader_silence = absl::Milliseconds(prng.Between(600, 1500));
  o.stagger = absl::Milliseconds(prng.Between(50, 300));
  o.stagger_max = prng.Between(1, 16);
  o.node_silence = std::max(3 * o.heartbeat, absl::Milliseconds(prng.Between(1000, 2500)));
  o.close_silence =
      std::clamp(absl::Milliseconds(prng.Between(300, 1500)), o.heartbeat, o.node_silence);
  o.stall_min = absl::Milliseconds(prng.Between(3000, 6000));
  o.first_step_max = o.stall_min + absl::Milliseconds(prng.Between(0, 4000));
  o.gather = absl::Milliseconds(prng.Between(1000, 4000));
  o.gather_again = absl::Milliseconds(prng.Between(500, 2000));
  o.stop_max = absl::Milliseconds(prng.Between(500, 3000));
  o.form_max = absl::Milliseconds(prng.Between(2000, 6000));
  o.resend = absl::Milliseconds(prng.Between(100, 500));
  o.append_retry = absl::Milliseconds(prng.Between(100, 500));
  o.save_every = absl::Milliseconds(prng.Between(1000, 4000));
  o.save_max = absl::Milliseconds(prng.Between(3000, 8000));
  o.table_fan_out = prng.Between(1, 4);
  return o;
}

LayoutRule DrawRule(Prng& prng, const Scenario& s) {
  LayoutRule rule;
  const int32_t ranks = s.nodes * s.slots;
  rule.tensor = prng.PerMille(400) && s.slots >= 2 ? 2 : 1;
  rule.pipeline = prng.PerMille(300) && ranks >= 4 * rule.tensor ? 2 : 1;
  rule.leaves = static_cast<int32_t>(prng.Between(1, 2 * ranks));
  rule.data_min = 1;
  rule.spares = prng.PerMille(500) ? static_cast<int32_t>(prng.Between(0, s.nodes / 3)) : 0;
  rule.nodes_max = s.nodes;
  rule.ranks_per_node = s.slots;
  rule.grow_after = absl::Milliseconds(prng.Between(300, 2000));
  rule.wait_max = absl::Hours(1);  // What ends jobs here is the scheduler.
  return rule;
}

void DrawFaults(Prng& prng, Scenario& s) {
  // A subset of the kinds, at a rate of its own (swarm testing: Groce et al., ISSTA'12).
  std::array<int, kWeights.size()> weights{};
  int total = 0;
  const int64_t chance = prng.Between(100, 700);
  for (size_t kind = 0; kind < kWeights.size(); ++kind) {
    if (prng.PerMille(chance)) weights[kind] = kWeights[kind];
    total += weights[kind];
  }
  if (total == 0) total = weights[1] = 1;
  const auto nodes = static_cast<uint64_t>(s.nodes);
  for (int64_t left = prng.Between(1, 12); left > 0; --left) {
    Fault f;
    auto pick = static_cast<int>(prng.Below(static_cast<uint64_t>(total)));
    size_t kind = 0;
    while (pick >= weights[kind]) pick -= weights[kind++];
    f.kind = static_cast<FaultKind>(kind);
    f.at = prng.Between(0, s.heal_at);
    f.node = static_cast<uint32_t>(prng.Below(nodes));
    f.other = static_cast<uint32_t>(prng.Below(nodes));
    f.lasts =
        prng.PerMille(500) ? prng.Between(50 * kMs, kSecond) : prng.Between(kSecond, 8 * kSecond);
    s.faults.push_back(f);
  }
  // Clog nodes one by one, let go in another order.
  if (prng.PerMille(150)) {
    const Nanos begin = prng.Between(2 * kSecond, s.heal_at / 2);
    for (uint32_t node = 0; node < nodes; ++node)
      if (prng.PerMille(500))
        s.faults.push_back(
            {.at = begin + prng.Between(0, 2 * kSecond),
             .kind = prng.PerMille(500) ? FaultKind::kIsolate : FaultKind::kNodePause,
             .node = node,
             .other = 0,
             .lasts = prng.Between(2 * kSecond, 6 * kSecond)});
  }
  std::stable_sort(s.faults.begin(), s.faults.end(),
                   [](const Fault& a, const Fault& b) { return a.at < b.at; });
}

// Worlds that are unlike the others in one thing, each for what it alone shows.
void DrawOdd(Prng& prng, Scenario& s) {
  // Patience: who does not answer is not given up, so what got lost must be said again. Stopping is
  // left out: a step boundary that does not come is waited for until stop_max.
  if (prng.PerMille(150)) {
    s.control.form_max = s.control.stall_min = s.control.first_step_max = s.control.save_max =
        absl::Hours(1);
  }
  // Clocks that are as wrong as they may be, and that may be very wrong: what forgets it is late by
  // more than a step.
  if (prng.PerMille(200)) {
    s.control.drift_percent = prng.Between(2, 10);
    s.drift_ppm = static_cast<int32_t>(s.control.drift_percent * 10'000);
    // What is left of a lease must still be renewed in time.
    s.control.lease_agent = std::max(s.control.lease_agent, 6 * s.control.heartbeat);
    s.control.lease_support = std::max(s.control.lease_support, 6 * s.control.heartbeat);
  }
  // Calm: what happens without a cause shows.
  if (prng.PerMille(30)) {
    const bool ends = prng.PerMille(500);
    s.faults.clear();
    s.bad_checkpoints = s.bad_snapshots = s.crash_step = s.bad_steps = s.note_fails = 0;
    if (ends) s.faults.push_back({.at = s.heal_at / 3, .kind = FaultKind::kEndJob});
    s.control.visibility = absl::ZeroDuration();
    s.log_stale_max = 0;
    s.loss = s.keep_back = 0;
    s.delay_max = 2 * kMs;
    s.log_delay_max = 20 * kMs;
  }
  if (prng.PerMille(150)) s.manifest_fails = static_cast<int32_t>(prng.Between(100, 800));
}

// What the ranks and the store do, beside the faults that befall them.
void DrawShell(Prng& prng, Scenario& s) {
  const auto sometimes = [&](int64_t chance, int64_t low, int64_t high) {
    return static_cast<int32_t>(prng.PerMille(chance) ? prng.Between(low, high) : 0);
  };
  s.freeze_every = sometimes(300, 2, 10);
  s.steps_max = sometimes(100, 10, 80);
  // Any but kExitUnsaved, which says something else.
  const auto done_code = static_cast<int32_t>(prng.Between(0, 3));
  s.control.done_code = done_code == kExitUnsaved ? 4 : done_code;
  s.bad_checkpoints = sometimes(250, 50, 500);
  s.store_silent = sometimes(200, 50, 500);
  s.bad_snapshots = sometimes(100, 50, 500);
  s.notes = sometimes(600, 100, 1000);
  s.note_fails = sometimes(300, 50, 500);
  s.crash_step = sometimes(80, 3, 30);
  constexpr EvidenceKind kinds[] = {EvidenceKind::kRankCrashed, EvidenceKind::kOutOfMemory,
                                    EvidenceKind::kTrainingFailed};
  s.crash_kind = kinds[prng.Below(3)];
}

// Steps for which the run goes back, in some worlds again and again.
void DrawBadSteps(Prng& prng, Scenario& s) {
  s.bad_steps = static_cast<int32_t>(prng.PerMille(300) ? prng.Between(5, 120) : 0);
  s.rollback_steps = static_cast<int32_t>(prng.Between(1, 8));
  s.rollbacks_max = static_cast<int32_t>(prng.Between(1, 4));
}

// Nodes that are slow for long enough to be named, most of them; machines that jitter.
void DrawSlow(Prng& prng, Scenario& s) {
  s.control.slow_window = absl::Milliseconds(prng.Between(400, 4000));
  s.control.slow_retry = absl::Milliseconds(prng.Between(2000, 20000));
  if (prng.PerMille(200)) s.jitter = static_cast<int32_t>(prng.Between(10, 60));
  if (!prng.PerMille(300)) return;
  for (int64_t left = prng.Between(1, 3); left > 0; --left)
    s.faults.push_back({.at = prng.Between(0, s.heal_at),
                        .kind = FaultKind::kSlowNode,
                        .node = static_cast<uint32_t>(prng.Below(static_cast<uint64_t>(s.nodes))),
                        .other = static_cast<uint32_t>(prng.Below(3)),
                        .lasts = prng.PerMille(200) ? prng.Between(50 * kMs, 2 * kSecond)
                                                    : prng.Between(2 * kSecond, 20 * kSecond)});
  std::stable_sort(s.faults.begin(), s.faults.end(),
                   [](const Fault& a, const Fault& b) { return a.at < b.at; });
}

// From START to Ready: what ranks need, and the table's way from node to node.
absl::Duration FormingTakes(const Scenario& s) {
  int64_t hops = 1;
  for (int64_t reached = 1, level = 1; reached < s.nodes; reached += level, ++hops)
    level *= s.control.table_fan_out;
  return absl::Milliseconds(1500) + absl::Nanoseconds(hops * s.delay_max);
}

}  // namespace

const char* Name(FaultKind kind) { return kNames[static_cast<size_t>(kind)]; }

Scenario DrawScenario(uint64_t seed) {
  Scenario s;
  s.seed = seed;
  Prng prng(seed, 1);
  s.nodes = static_cast<int32_t>(prng.PerMille(700) ? prng.Between(2, 6) : prng.Between(4, 12));
  if (prng.PerMille(30)) s.nodes = static_cast<int32_t>(prng.Between(13, 32));
  s.slots = static_cast<int32_t>(prng.PerMille(500) ? 1 : prng.Between(1, 4));
  s.domains = static_cast<int32_t>(prng.Between(1, 4));
  s.rule = DrawRule(prng, s);
  s.control = DrawOptions(prng);
  s.step = prng.Between(100 * kMs, 800 * kMs);
  s.delay_max = prng.PerMille(700) ? 2 * kMs : prng.Between(2 * kMs, 150 * kMs);
  s.loss = static_cast<int32_t>(prng.PerMille(500) ? 0 : prng.Between(1, 100));
  s.doubled = static_cast<int32_t>(prng.PerMille(500) ? 0 : prng.Between(1, 100));
  s.log_delay_max = prng.PerMille(700) ? 20 * kMs : prng.Between(20 * kMs, 600 * kMs);
  s.log_stale_max = absl::ToInt64Nanoseconds(s.control.visibility);
  s.drift_ppm = static_cast<int32_t>(prng.PerMille(500) ? 0 : prng.Between(10, 10'000));
  s.keep_back = prng.PerMille(200) ? static_cast<int32_t>(prng.Between(0, s.nodes - 1)) : 0;
  s.heal_at = prng.Between(8 * kSecond, 25 * kSecond);
  s.control.form_max = std::max(s.control.form_max, FormingTakes(s));
  DrawFaults(prng, s);
  Prng shell(seed, 3);
  DrawShell(shell, s);
  Prng slow(seed, 4);
  DrawSlow(slow, s);
  Prng memory(seed, 5), bad(seed, 6);
  s.no_snapshots = memory.PerMille(150) ? 1 : 0;
  DrawBadSteps(bad, s);
  Prng odd(seed, 2);
  DrawOdd(odd, s);
  return s;
}

namespace {

// Every number of a scenario but its faults, by name: what is printed and parsed.
template <typename Visit>
void EachNumber(Scenario& s, const Visit& visit) {
  const auto number = [&](const char* name, auto& field) {
    auto value = static_cast<int64_t>(field);
    visit(name, value);
    field = static_cast<std::remove_reference_t<decltype(field)>>(value);
  };
  const auto duration = [&](const char* name, absl::Duration& field) {
    int64_t value = absl::ToInt64Nanoseconds(field);
    visit(name, value);
    field = absl::Nanoseconds(value);
  };
  number("seed", s.seed);
  number("nodes", s.nodes);
  number("slots", s.slots);
  number("domains", s.domains);
  number("tensor", s.rule.tensor);
  number("pipeline", s.rule.pipeline);
  number("data", s.rule.data);
  number("data_min", s.rule.data_min);
  number("leaves", s.rule.leaves);
  number("spares", s.rule.spares);
  number("nodes_max", s.rule.nodes_max);
  number("ranks_per_node", s.rule.ranks_per_node);
  duration("grow_after", s.rule.grow_after);
  duration("wait_max", s.rule.wait_max);
  duration("heartbeat", s.control.heartbeat);
  duration("lease_agent", s.control.lease_agent);
  duration("lease_support", s.control.lease_support);
  duration("lease_log", s.control.lease_log);
  duration("visibility", s.control.visibility);
  number("drift_percent", s.control.drift_percent);
  duration("poll", s.control.poll);
  duration("seek", s.control.seek);
  duration("leader_silence", s.control.leader_silence);
  duration("stagger", s.control.stagger);
  number("stagger_max", s.control.stagger_max);
  duration("node_silence", s.control.node_silence);
  duration("close_silence", s.control.close_silence);
  duration("stall_min", s.control.stall_min);
  number("stall_factor", s.control.stall_factor);
  duration("first_step_max", s.control.first_step_max);
  duration("gather", s.control.gather);
  duration("gather_again", s.control.gather_again);
  duration("stop_max", s.control.stop_max);
  duration("form_max", s.control.form_max);
  duration("resend", s.control.resend);
  duration("append_retry", s.control.append_retry);
  duration("save_every", s.control.save_every);
  duration("save_max", s.control.save_max);
  duration("slow_window", s.control.slow_window);
  number("slow_percent", s.control.slow_percent);
  number("slow_clear_percent", s.control.slow_clear_percent);
  duration("slow_retry", s.control.slow_retry);
  number("table_fan_out", s.control.table_fan_out);
  number("done_code", s.control.done_code);
  number("step", s.step);
  number("jitter", s.jitter);
  number("delay_min", s.delay_min);
  number("delay_max", s.delay_max);
  number("loss", s.loss);
  number("doubled", s.doubled);
  number("log_delay_max", s.log_delay_max);
  number("log_stale_max", s.log_stale_max);
  number("drift_ppm", s.drift_ppm);
  number("manifest_fails", s.manifest_fails);
  number("keep_back", s.keep_back);
  number("freeze_every", s.freeze_every);
  number("steps_max", s.steps_max);
  number("no_snapshots", s.no_snapshots);
  number("bad_checkpoints", s.bad_checkpoints);
  number("store_silent", s.store_silent);
  number("bad_snapshots", s.bad_snapshots);
  number("notes", s.notes);
  number("note_fails", s.note_fails);
  number("crash_step", s.crash_step);
  number("crash_kind", s.crash_kind);
  number("bad_steps", s.bad_steps);
  number("rollback_steps", s.rollback_steps);
  number("rollbacks_max", s.rollbacks_max);
  number("heal_at", s.heal_at);
}

std::vector<std::string_view> Split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(by), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

bool ParseNumber(std::string_view text, int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string Print(const Scenario& scenario) {
  std::string text;
  Scenario copy = scenario;
  EachNumber(copy,
             [&](const char* name, int64_t value) { text += fmt::format("{} {}\n", name, value); });
  for (const Fault& f : scenario.faults)
    text += fmt::format("fault {} {} {} {} {}\n", Name(f.kind), f.at, f.node, f.other, f.lasts);
  return text;
}

absl::StatusOr<Scenario> ParseScenario(std::string_view text) {
  Scenario s;
  std::map<std::string_view, int64_t> numbers;
  for (std::string_view line : Split(text, '\n')) {
    if (line.starts_with('#')) continue;
    const std::vector<std::string_view> words = Split(line, ' ');
    if (words.size() == 6 && words[0] == "fault") {
      const auto kind = std::find(kNames.begin(), kNames.end(), words[1]);
      int64_t n[4];
      bool good = kind != kNames.end();
      for (size_t i = 0; i < 4; ++i) good = good && ParseNumber(words[i + 2], n[i]);
      if (!good) return InvalidArgument("schedule: '{}' is no fault", line);
      s.faults.push_back({.at = n[0],
                          .kind = static_cast<FaultKind>(kind - kNames.begin()),
                          .node = static_cast<uint32_t>(n[1]),
                          .other = static_cast<uint32_t>(n[2]),
                          .lasts = n[3]});
      continue;
    }
    int64_t value = 0;
    if (words.size() != 2 || !ParseNumber(words[1], value) ||
        !numbers.emplace(words[0], value).second)
      return InvalidArgument("schedule: cannot read '{}'", line);
  }
  // What a schedule does not say is as it was when there was no such thing.
  EachNumber(s, [&](const char* name, int64_t& value) {
    const auto found = numbers.find(name);
    if (found == numbers.end()) return;
    value = found->second;
    numbers.erase(found);
  });
  if (!numbers.empty())
    return InvalidArgument("schedule: unknown number '{}'", numbers.begin()->first);
  RETURN_IF_ERROR(Validate(s.control));
  return s;
}

}  // namespace perdure::sim
