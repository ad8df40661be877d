// What a snapshot after every step costs: steps of train_bench's model by rank threads, with and
// without, in turns; wall time and processor time of a step, medians. And snapshots alone: without
// steps beside them, everything sent; their processor time over that of a step is the share that
// they cost at most, on a machine that has something else to do, too.
//
// usage: snapshot_bench [STEPS of each turn, 4] [TURNS, 3; 0: snapshots alone]
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <tuple>
#include <vector>

#include "kernels/ops.h"
#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/snapshots.h"
#include "runtime/train/writers.h"
#include "tests/bench/bench_model.h"
#include "tests/train/recovery_world.h"
#include "tests/train/transport_threads.h"

namespace perdure {
namespace {

struct Costs {
  std::vector<double> wall, processor;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double ProcessorSeconds() {
  rusage usage{};
  PERDURE_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

void Turn(RecoveryWorld& world, uint64_t generation, const LayoutConfig& layout, int64_t steps,
          bool snapshots, Costs* costs) {
  TrainingJob job = world.Job(generation, layout, 1);
  if (!snapshots) job.snapshot_directories.clear();
  double wall = 0, processor = 0;
  job.command = [&](int64_t step) {
    const double now = Now(), used = ProcessorSeconds();
    // The first two steps warm up: the second files are made.
    if (step > 2) {
      costs->wall.push_back(now - wall);
      costs->processor.push_back(used - processor);
    }
    wall = now;
    processor = used;
    return step == steps + 1 ? Command::kLeave : Command::kNone;
  };
  const TrainingResult result = RunJob(job);
  if (!result.status.ok()) std::fprintf(stderr, "%s\n", Message(result.status).c_str());
  PERDURE_CHECK(result.status.ok());
  for (int node = 0; node < layout.ranks(); ++node) world.LoseNode(node);
}

// Processor and wall seconds of one snapshot of all ranks.
void Alone(const LayoutConfig& layout) {
  constexpr int kTimes = 9;
  const std::string directory = SharedMemory(fmt::format("snapshot_bench.{}", ::getpid()));
  RunConfig config = BenchConfig("fp32");
  config.layout = layout;
  const AtomTable table(ModelTensors(config.model, config.numerics.tensor_shards),
                        config.numerics.atom_elements);
  const std::vector<std::vector<int64_t>> owned = AtomsByRank(config, table);
  std::vector<float> memory(static_cast<size_t>(kStatePartCount * table.parameters()), 0.5F);
  std::vector<double> wall, processor;
  RunTransportThreads(static_cast<int>(layout.ranks()), [&](Transport* transport) {
    const int rank = transport->rank(), ranks = transport->size();
    std::vector<int> all;
    Snapshots::Options options{.directory = fmt::format("{}/{}", directory, rank)};
    std::filesystem::create_directories(options.directory);
    for (int r = 0; r < ranks; ++r) {
      all.push_back(r);
      if (ranks > 1) options.peers.push_back((r + 1) % ranks);
    }
    Group group(transport, all, 1);
    std::vector<AtomState> own;
    for (const int64_t atom : owned[static_cast<size_t>(rank)]) {
      AtomState state{.atom = atom};
      // Any place of its own will do.
      const size_t place = static_cast<size_t>(atom) * memory.size() / table.atoms().size() / 2;
      for (size_t part = 0; part < kStatePartCount; ++part)
        state.parts[part] = memory.data() + place + part * memory.size() / 8;
      own.push_back(state);
    }
    std::vector<Snapshots::Ward> wards;
    if (ranks > 1) {
      Snapshots::Ward& ward = wards.emplace_back();
      ward.rank = (rank + ranks - 1) % ranks;
      for (const int64_t atom : owned[static_cast<size_t>(ward.rank)])
        ward.atoms.push_back({.atom = atom});
    }
    const std::unique_ptr<Ops> ops = NewCpuOps(1);
    const auto gathered = [](bool) -> absl::StatusOr<bool> { return true; };
    auto snapshots = *Snapshots::Create(options, &table, own, wards, gathered, ops.get(), &group);
    for (int i = 0; i < kTimes + 2; ++i) {
      PERDURE_CHECK(group.Barrier().ok());
      const double now = Now(), used = ProcessorSeconds();
      PERDURE_CHECK(snapshots->Begin(i, {}).ok() && snapshots->Await().ok());
      PERDURE_CHECK(group.Barrier().ok());
      if (rank != 0 || i < 2) continue;
      wall.push_back(Now() - now);
      processor.push_back(ProcessorSeconds() - used);
    }
  });
  std::printf("%d ranks, one snapshot alone: wall %.3f s, processor %.3f s, %.1f GB of state\n",
              static_cast<int>(layout.ranks()), Median(wall), Median(processor),
              12e-9 * static_cast<double>(table.parameters()));
  std::fflush(stdout);
  std::filesystem::remove_all(directory);
}

void Compare(const char* dtype, const LayoutConfig& layout, int64_t steps, int turns) {
  const std::string directory = SharedMemory(fmt::format("snapshot_bench.{}", ::getpid()));
  std::filesystem::create_directories(directory);
  WriteBenchData(directory);
  {
    RecoveryWorld world(directory, BenchConfig(dtype));
    Costs without, with;
    uint64_t generation = 0;
    for (int turn = 0; turn < turns; ++turn) {
      Turn(world, ++generation, layout, steps, false, &without);
      Turn(world, ++generation, layout, steps, true, &with);
    }
    const auto line = [&](const char* what, double a, double b) {
      std::printf(
          "%s tensor %d pipeline %d data %d zero %d, %s: %.3f s without, %.3f s with: %+.1f %%\n",
          dtype, static_cast<int>(layout.tensor), static_cast<int>(layout.pipeline),
          static_cast<int>(layout.data), static_cast<int>(layout.zero), what, a, b,
          100 * (b / a - 1));
    };
    line("wall", Median(without.wall), Median(with.wall));
    line("processor", Median(without.processor), Median(with.processor));
    std::fflush(stdout);
  }
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  const int64_t steps = perdure::NumberArgument(argc, argv, 1, 4, 1);
  const auto turns = static_cast<int>(perdure::NumberArgument(argc, argv, 2, 3, 0));
  perdure::LayoutConfig layout{.transport = "local"};
  for (const int data : {1, 2, 4}) {
    layout.data = data;
    perdure::Alone(layout);
  }
  for (const auto& [dtype, data, zero] :
       {std::tuple{"fp32", 1, 1}, {"fp32", 2, 1}, {"fp32", 2, 0}, {"fp32", 2, 3}, {"bf16", 2, 1}}) {
    layout.data = data;
    layout.zero = zero;
    if (turns > 0) perdure::Compare(dtype, layout, steps, turns);
  }
  return 0;
}
