// What a snapshot after every step costs: steps of train_bench's model by rank threads, with and
// without, in turns; wall time and processor time of a step, medians.
//
// usage: snapshot_bench [STEPS of each turn, 4] [TURNS, 3]
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/train/recovery_world.h"

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

RunConfig BenchConfig(const char* dtype) {
  RunConfig config = TinyConfig(dtype);
  config.model = {.layers = 8,
                  .hidden = 512,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 64,
                  .ffn = 1536,
                  .vocab = 1024};
  config.phases.resize(1);
  config.phases[0].samples = 100000;
  config.phases[0].context = 512;
  config.phases[0].batch = {.initial = 8, .increment = 0, .ramp_samples = 0, .final = 8};
  config.phases[0].mixture = {{"bench", 1.0}};
  config.numerics = {.dtype = dtype, .tensor_shards = 4, .micro_batch = 2, .leaf = 1};
  config.numerics.backend = "cpu";
  return config;
}

void WriteData(const std::string& directory) {
  auto writer = IndexedDatasetWriter::Create(directory + "/bench", 1024);
  PERDURE_CHECK(writer.ok());
  std::vector<int32_t> tokens(100000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 1021);
  for (int document = 0; document < 20; ++document)
    PERDURE_CHECK((*writer)->AddDocument(tokens).ok());
  PERDURE_CHECK((*writer)->Finish().ok());
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

void Compare(const char* dtype, const LayoutConfig& layout, int64_t steps, int turns) {
  const std::string directory = SharedMemory(fmt::format("snapshot_bench.{}", ::getpid()));
  std::filesystem::create_directories(directory);
  WriteData(directory);
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
  const int64_t steps = argc > 1 ? std::atoll(argv[1]) : 4;
  const int turns = argc > 2 ? std::atoi(argv[2]) : 3;
  perdure::LayoutConfig layout{.transport = "local"};
  layout.data = 1;
  perdure::Compare("fp32", layout, steps, turns);
  layout.data = 2;
  for (const int64_t zero : {0, 1, 3}) {
    layout.zero = zero;
    perdure::Compare("fp32", layout, steps, turns);
  }
  layout.zero = 1;
  perdure::Compare("bf16", layout, steps, turns);
  return 0;
}
