// What integrity.check costs: steps of train_bench's model by rank threads, guarded, with the time
// in which ops make sums (WordSums) over that of the whole step, both of the ranks' own threads;
// and the same steps unguarded, in turns. The sums' share counts what they fetch into the cache for
// the update and the additions, which these then find there.
//
// usage: guard_bench [STEPS of each turn, 3] [TURNS, 2]
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <tuple>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "tests/bench/bench_model.h"
#include "tests/kernels/forwarding_ops.h"
#include "tests/train/forwarding_host.h"
#include "tests/train/recovery_world.h"

namespace perdure {
namespace {

double ThreadSeconds() {
  timespec time{};
  PERDURE_CHECK(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::atomic<double> sum_seconds = 0;

class TimedOps final : public ForwardingOps {
 public:
  TimedOps() : ForwardingOps(NewCpuOps(1)) {}
  void WordSums(const void* data, std::span<const WordRun> runs, uint64_t* sums) override {
    const double before = ThreadSeconds();
    ops_->WordSums(data, runs, sums);
    sum_seconds += ThreadSeconds() - before;
  }
};

struct Cost {
  double step = 0, sums = 0;  // Thread seconds of all ranks, per step; the least of the turns.
};

Cost Turn(const std::string& directory, RunConfig config, const LayoutConfig& layout, bool guarded,
          int64_t steps) {
  config.layout = layout;
  config.integrity.check = guarded;
  TrainingJob job{.config = config, .data_directory = directory, .run_directory = directory + "/r"};
  job.make_ops = [] { return std::make_unique<TimedOps>(); };
  // Of each rank's thread, from the end of the first step on, which warms up.
  std::atomic<double> seconds = 0;
  double sums_before = 0;
  class Host final : public ForwardingHost {
   public:
    Host(RankHost* host, int64_t last, std::atomic<double>* seconds, double* sums, bool first)
        : ForwardingHost(host), last_(last), seconds_(seconds), sums_(sums), first_(first) {}
    void Progress(int64_t step, const WorkDone&) override {
      if (step == 1) *seconds_ += -ThreadSeconds();
      if (step == 1 && first_) *sums_ = sum_seconds;
      if (step == last_) *seconds_ += ThreadSeconds();
      if (step == last_ && first_) *sums_ = sum_seconds - *sums_;
    }

   private:
    const int64_t last_;
    std::atomic<double>* seconds_;
    double* sums_;
    const bool first_;
  };
  job.wrap_host = [&](int rank, RankHost* host) {
    return std::make_unique<Host>(host, steps + 1, &seconds, &sums_before, rank == 0);
  };
  job.command = [&](int64_t step) { return step == steps ? Command::kLeave : Command::kNone; };
  const TrainingResult result = RunJob(job);
  if (!result.status.ok()) std::fprintf(stderr, "%s\n", Message(result.status).c_str());
  PERDURE_CHECK(result.status.ok());
  const auto count = static_cast<double>(steps);
  return {.step = seconds / count, .sums = sums_before / count};
}

void Compare(const char* dtype, const LayoutConfig& layout, int64_t micro_batches, int64_t steps,
             int turns) {
  const std::string directory = SharedMemory(fmt::format("guard_bench.{}", ::getpid()));
  std::filesystem::create_directories(directory);
  WriteBenchData(directory);
  Cost with{.step = 1e9, .sums = 1e9}, without{.step = 1e9};
  for (int turn = 0; turn < turns; ++turn) {
    RunConfig config = BenchConfig(dtype);
    config.numerics.leaf = micro_batches;
    without.step = std::min(without.step, Turn(directory, config, layout, false, steps).step);
    const Cost cost = Turn(directory, config, layout, true, steps);
    with.step = std::min(with.step, cost.step);
    with.sums = std::min(with.sums, cost.sums);
  }
  std::printf(
      "%s data %d zero %d, leaves of %d tokens: a step %.3f s of processors, sums %.4f s: %.2f %%; "
      "unguarded %.3f s: %+.2f %%\n",
      dtype, static_cast<int>(layout.data), static_cast<int>(layout.zero),
      static_cast<int>(2 * 512 * micro_batches), with.step, with.sums, 100 * with.sums / with.step,
      without.step, 100 * (with.step / without.step - 1));
  std::fflush(stdout);
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  const int64_t steps = perdure::NumberArgument(argc, argv, 1, 3, 1);
  const auto turns = static_cast<int>(perdure::NumberArgument(argc, argv, 2, 2, 1));
  perdure::LayoutConfig layout{.transport = "local"};
  for (const auto& [dtype, data, zero, micro_batches] : {std::tuple{"fp32", 1, 1, 1},
                                                         {"fp32", 1, 1, 4},
                                                         {"fp32", 2, 1, 1},
                                                         {"fp32", 2, 1, 2},
                                                         {"fp32", 2, 0, 2},
                                                         {"fp32", 2, 3, 2},
                                                         {"bf16", 2, 1, 2}}) {
    layout.data = data;
    layout.zero = zero;
    perdure::Compare(dtype, layout, micro_batches, steps, turns);
  }
  return 0;
}
