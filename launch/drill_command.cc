#include "launch/drill_command.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "launch/drill.h"
#include "launch/drill_compare.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kRecovered = 0, kNotRecovered = 1, kRefused = 2;

struct DrillArguments {
  std::string run_directory, against;
  std::string kind = "rank";
  std::optional<uint64_t> seed;
  int64_t count = 1;
  double wait_seconds = 60;
  bool hold_against = false, json = false;
};

volatile sig_atomic_t interrupted = 0;

// A rank that stands must not be left so.
void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
}

int Refuse(const absl::Status& status) {
  std::fprintf(stderr, "perdure drill: %s\n", Message(status).c_str());
  return kRefused;
}

std::string WhatWasHit(const Injury& injury) {
  if (injury.rank >= 0) return fmt::format("rank {} on node {}", injury.rank, injury.node);
  return fmt::format("node {}", injury.node);
}

void PrintHead() {
  std::printf("%-12s %-20s %10s %10s %10s %10s %10s %7s %6s\n", "kind", "hit", "detect", "re-form",
              "restore", "first step", "total", "redone", "result");
}

void Print(const Injury& injury) {
  const std::optional<InjuryTimes> times = TimesOf(injury);
  const auto cell = [&](double InjuryTimes::*part) {
    return times.has_value() ? fmt::format("{:.3f} s", *times.*part) : std::string("-");
  };
  const std::string redone =
      injury.recovery.has_value() ? std::to_string(injury.recovery->redone) : "-";
  std::string line = fmt::format("{:<12} {:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {}: {}",
                                 injury.kind->name, WhatWasHit(injury), cell(&InjuryTimes::detect),
                                 cell(&InjuryTimes::re_form), cell(&InjuryTimes::restore),
                                 cell(&InjuryTimes::first_step), cell(&InjuryTimes::total), redone,
                                 !injury.recovered  ? "NOT RECOVERED"
                                 : injury.tolerated ? "tolerated"
                                                    : "recovered",
                                 injury.words);
  if (injury.pace.has_value())
    line +=
        fmt::format("; steps a second before, while it was slow, and after: {:.2f}, {:.2f}, {:.2f}",
                    injury.pace->before, injury.pace->during, injury.pace->after);
  if (injury.told_twice > 0 && injury.disagreements.empty())
    line += fmt::format("; {} told twice, the same bits", injury.told_twice);
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

std::vector<const DrillKind*> KindsOf(const std::string& name) {
  std::vector<const DrillKind*> kinds;
  for (const DrillKind& kind : DrillKinds())
    if (name == "all" || name == kind.name) kinds.push_back(&kind);
  return kinds;
}

// What was done; less than was asked for where `why_less` is not OK. An error: nothing was. Kinds
// of `all` that the job is too small for are not asked for.
absl::StatusOr<std::vector<Injury>> Injure(const DrillArguments& arguments, uint64_t seed,
                                           absl::Status& why_less) {
  const std::vector<const DrillKind*> kinds = KindsOf(arguments.kind);
  ASSIGN_OR_RETURN(const std::unique_ptr<Drill> drill,
                   Drill::Open({.run_directory = arguments.run_directory,
                                .seed = seed,
                                .wait = absl::Seconds(arguments.wait_seconds),
                                .hold_against = arguments.hold_against,
                                .interrupted = [] { return interrupted != 0; }}));
  std::vector<Injury> injuries;
  for (int64_t round = 0; round < arguments.count; ++round)
    for (const DrillKind* kind : kinds) {
      absl::StatusOr<Injury> injury = drill->Injure(*kind);
      if (!injury.ok()) {
        const bool small = kinds.size() > 1 && absl::IsFailedPrecondition(injury.status()) &&
                           drill->TooSmallFor(*kind);
        if (!small && injuries.empty()) return injury.status();
        std::fprintf(stderr, "perdure drill: %s is left out: %s\n", std::string(kind->name).c_str(),
                     Message(injury.status()).c_str());
        if (small) continue;
        why_less = injury.status();
        return injuries;
      }
      if (!arguments.json) {
        if (injuries.empty()) PrintHead();
        Print(*injury);
      }
      injuries.push_back(*std::move(injury));
    }
  return injuries;
}

// Adds what it found to `report`.
absl::StatusOr<bool> Compare(const DrillArguments& arguments, Json& report) {
  if (arguments.against.empty()) return true;
  ASSIGN_OR_RETURN(const RunComparison comparison,
                   CompareRuns(arguments.run_directory, arguments.against));
  report["against"] = {{"run", arguments.against},
                       {"losses", comparison.losses},
                       {"certificates", comparison.certificates},
                       {"different", comparison.different},
                       {"words", comparison.words}};
  if (arguments.json) return comparison.different == 0;
  std::printf(
      "against %s: %lld losses and %lld certificates in common, %s\n", arguments.against.c_str(),
      static_cast<long long>(comparison.losses), static_cast<long long>(comparison.certificates),
      comparison.different == 0 ? "the same bits"
                                : fmt::format("{} DIFFERENT", comparison.different).c_str());
  for (const std::string& words : comparison.words) std::printf("  %s\n", words.c_str());
  return comparison.different == 0;
}

int RunDrill(const DrillArguments& arguments) {
  if (arguments.count == 0 && arguments.against.empty())
    return Refuse(InvalidArgument("--count 0 breaks nothing: give --against RUN_DIR to compare"));
  CatchInterrupts();
  const uint64_t seed = arguments.seed.value_or(std::random_device()());
  if (!arguments.seed.has_value() && !arguments.json && arguments.count > 0)
    std::fprintf(stderr, "perdure drill: --seed %llu\n", static_cast<unsigned long long>(seed));
  std::vector<Injury> injuries;
  absl::Status why_less;
  if (arguments.count > 0) {
    absl::StatusOr<std::vector<Injury>> done = Injure(arguments, seed, why_less);
    if (!done.ok()) return Refuse(done.status());
    injuries = *std::move(done);
  }
  bool good = why_less.ok() && (arguments.count == 0 || !injuries.empty());
  Json report = {{"run", arguments.run_directory}, {"seed", seed}, {"injuries", Json::array()}};
  for (const Injury& injury : injuries) {
    good = good && injury.recovered;
    report["injuries"].push_back(ToJson(injury));
  }
  const absl::StatusOr<bool> same = Compare(arguments, report);
  if (!same.ok() && injuries.empty()) return Refuse(same.status());
  if (!same.ok()) (void)Refuse(same.status());
  good = good && same.ok() && *same;
  report["good"] = good;
  if (arguments.json) std::printf("%s\n", report.dump(2).c_str());
  return good ? kRecovered : kNotRecovered;
}

}  // namespace

void AddDrillCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<DrillArguments>();
  CLI::App* drill = app.add_subcommand(
      "drill", "Break a running job of this machine on purpose, and certify that it recovers");
  std::vector<std::string> names = {"all"};
  std::string words = "What is broken:";
  for (const DrillKind& kind : DrillKinds()) {
    names.emplace_back(kind.name);
    words += fmt::format(" {}: {};", kind.name, kind.words);
  }
  drill->add_option("run_dir", arguments->run_directory, "The run's directory")->required();
  drill->add_option("--kind", arguments->kind, words + " all: one after the other")
      ->check(CLI::IsMember(names));
  drill->add_option("--seed", arguments->seed, "Which ranks and nodes are hit (default: random)");
  drill->add_option("--count", arguments->count, "How often; of all: rounds (default: 1)")
      ->check(CLI::Range(int64_t{0}, int64_t{10000}));
  drill
      ->add_option("--wait", arguments->wait_seconds,
                   "Seconds for the job to be whole before, and to recover after (default: 60)")
      ->check(CLI::Range(0.1, 86400.0));
  drill->add_option("--against", arguments->against,
                    "A run that was not disturbed: losses and certificates must be the same");
  drill->add_flag("--hold-against", arguments->hold_against,
                  "In a job of Slurm's, what is found of a node counts as its own fault");
  drill->add_flag("--json", arguments->json, "As JSON");
  drill->callback([arguments, exit_code] {
    arguments->run_directory =
        std::filesystem::absolute(arguments->run_directory).lexically_normal();
    *exit_code = RunDrill(*arguments);
  });
}

}  // namespace perdure
