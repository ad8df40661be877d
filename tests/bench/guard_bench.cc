// What integrity.check costs: steps of train_bench's model by rank threads, guarded, with the time
// in which ops make sums (WordSums) over that of the whole step, both of the ranks' own threads;
// and the same steps unguarded, in turns. The sums' share counts what they fetch into the cache for
// the update and the additions, which these then find there. Beside it what the agreement of the
// replicas alone takes of that (CopySeals), measured by itself on the same buckets.
//
// usage: guard_bench [STEPS of each turn, 3] [TURNS, 2]
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <tuple>

#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/copy_seals.h"
#include "runtime/train/mesh.h"
#include "runtime/train/pipeline.h"
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

// Processor seconds of all replicas together for one step of what CopySeals does: seals of what
// each has computed, piece by piece and out of the cache as in an fp32 update, or behind a bf16
// one; a look at all that compute has read, out of memory; the comparisons.
double AgreementSeconds(const RunConfig& config, const LayoutConfig& layout) {
  constexpr int64_t kPieceElements = 16384;
  const std::unique_ptr<Ops> ops = NewCpuOps(1);
  const DType dtype = DTypeOf(config.numerics);
  const auto width = static_cast<int64_t>(SizeOf(dtype));
  const int64_t shards = config.numerics.tensor_shards;
  const AtomTable table(ModelTensors(ResolveModel(config.model), shards),
                        config.numerics.atom_elements);
  const auto replicas = static_cast<int>(layout.data);
  const auto zero = static_cast<int>(layout.zero);
  const std::vector<Bucket> buckets =
      MakeBuckets(table, config.model, {.shards = shards, .size = 1, .index = 0},
                  LayersOfRank(config.model.layers, layout, 0));
  std::vector<std::vector<OwnedRun>> runs;
  for (size_t b = 0; b < buckets.size(); ++b)
    runs.push_back(CutBucket(buckets[b], replicas, static_cast<int64_t>(b)));
  const int64_t elements = buckets.back().offset + buckets.back().size;
  std::vector<float> parameters(static_cast<size_t>(elements * width / 4 + 1));
  const auto at = [&](size_t bucket, int64_t element) {
    return reinterpret_cast<char*>(parameters.data()) + (buckets[bucket].offset + element) * width;
  };
  double seconds = 0;
  const auto timed = [&](const auto& call) {
    const double before = ThreadSeconds();
    call();
    seconds += ThreadSeconds() - before;
  };
  std::vector<std::unique_ptr<CopySeals>> seals;
  std::vector<uint64_t> words;
  for (int self = 0; self < replicas; ++self) {
    seals.push_back(std::make_unique<CopySeals>(ops.get(), zero, dtype, runs, self));
    CopySeals& own = *seals.back();
    own.BeginSeals();
    for (size_t b = 0; b < buckets.size(); ++b)
      for (int d = 0; d < replicas; ++d) {
        const OwnedRun& run = runs[b][static_cast<size_t>(d)];
        if (zero != 0 && d != self) continue;
        const int64_t piece =
            dtype == DType::kF32 ? kPieceElements : std::max<int64_t>(run.size(), 1);
        for (int64_t from = 0; from < run.size(); from += piece) {
          const int64_t count = std::min(piece, run.size() - from);
          char* data = at(b, run.begin + from);
          // As the update leaves it.
          if (dtype == DType::kF32)
            std::memset(data, 1 + static_cast<int>(b), static_cast<size_t>(count * width));
          timed([&] { own.Seal(static_cast<int>(b), d, data, from, count); });
        }
      }
    timed([&] { own.EndSeals(); });
  }
  for (const auto& own : seals)
    timed([&] {
      own->BeginStep();
      for (size_t b = 0; b < buckets.size(); ++b) own->Look(static_cast<int>(b), at(b, 0));
      own->Download();
      PERDURE_CHECK(own->JudgeOwn().kind == Verdict::Kind::kFine);
      const std::vector<uint64_t> mine = own->Words();
      words.insert(words.end(), mine.begin(), mine.end());
    });
  for (const auto& own : seals)
    timed([&] { PERDURE_CHECK(own->Judge(words).kind == Verdict::Kind::kFine); });
  return seconds;
}

void Compare(const char* dtype, const LayoutConfig& layout, int64_t micro_batches, int64_t steps,
             int turns) {
  const std::string directory = SharedMemory(fmt::format("guard_bench.{}", ::getpid()));
  std::filesystem::create_directories(directory);
  WriteBenchData(directory);
  Cost with{.step = 1e9, .sums = 1e9}, without{.step = 1e9};
  double agreement = 1e9;
  for (int turn = 0; turn < turns; ++turn) {
    RunConfig config = BenchConfig(dtype);
    config.numerics.leaf = micro_batches;
    without.step = std::min(without.step, Turn(directory, config, layout, false, steps).step);
    const Cost cost = Turn(directory, config, layout, true, steps);
    with.step = std::min(with.step, cost.step);
    with.sums = std::min(with.sums, cost.sums);
    agreement = std::min(agreement, AgreementSeconds(config, layout));
  }
  std::printf(
      "%s data %d zero %d, leaves of %d tokens: a step %.3f s of processors, sums %.4f s: %.2f %%; "
      "unguarded %.3f s: %+.2f %%",
      dtype, static_cast<int>(layout.data), static_cast<int>(layout.zero),
      static_cast<int>(2 * 512 * micro_batches), with.step, with.sums, 100 * with.sums / with.step,
      without.step, 100 * (with.step / without.step - 1));
  // ZeRO 3 looks at a bucket whenever it drops it: as often as leaves make it.
  if (layout.data > 1 && layout.zero < 3)
    std::printf("; agreement alone %.4f s: %.3f %%", agreement, 100 * agreement / with.step);
  std::printf("\n");
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
