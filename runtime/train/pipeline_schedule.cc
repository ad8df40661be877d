#include "runtime/train/pipeline_schedule.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace perdure {
namespace {

// Forward order on a rank: groups of P micro-batches go through chunk 0, then chunk 1, ...;
// backward mirrored.
std::vector<Pass> PassOrder(int stages, int chunks, int64_t micro_batches, bool backward) {
  std::vector<Pass> order;
  for (int64_t group = 0; group < micro_batches; group += stages)
    for (int c = 0; c < chunks; ++c)
      for (int64_t m = group; m < std::min<int64_t>(group + stages, micro_batches); ++m)
        order.push_back({backward, backward ? chunks - 1 - c : c, m});
  return order;
}

class Simulation {
 public:
  Simulation(int stages, int chunks, int64_t micro_batches)
      : stages_(stages),
        chunks_(chunks),
        micro_batches_(micro_batches),
        forward_(PassOrder(stages, chunks, micro_batches, false)),
        backward_(PassOrder(stages, chunks, micro_batches, true)),
        ranks_(static_cast<size_t>(stages)),
        finished_(static_cast<size_t>(2 * stages * chunks * micro_batches), kNever) {
    for (int p = 0; p < stages; ++p) {
      // In-flight limits of 1F1B: P - p, and of its interleaved form as in Megatron-LM.
      Rank& rank = ranks_[static_cast<size_t>(p)];
      rank.limit = chunks == 1 ? stages - p : 2 * (stages - p - 1) + (chunks - 1) * stages + 1;
    }
  }

  int64_t Run() {
    int64_t tick = 0;
    const size_t total = forward_.size() + backward_.size();
    while (std::any_of(ranks_.begin(), ranks_.end(),
                       [&](const Rank& rank) { return rank.passes.size() < total; })) {
      bool ran = false;
      for (int p = 0; p < stages_; ++p) ran |= RunOne(p, tick);
      if (!ran)  // Too few micro-batches in flight for the next dependency: let one more in.
        for (Rank& rank : ranks_) ++rank.limit;
      ++tick;
      PERDURE_CHECK(tick < 16 * static_cast<int64_t>(total) * stages_ + 1024);
    }
    return tick;
  }

  std::vector<Pass> TakePasses(int stage) {
    return std::move(ranks_[static_cast<size_t>(stage)].passes);
  }

 private:
  static constexpr int64_t kNever = INT64_MAX;
  struct Rank {
    std::vector<Pass> passes;
    size_t next_forward = 0, next_backward = 0;
    int64_t limit = 0;
  };

  int64_t& Finished(bool backward, int virtual_stage, int64_t micro_batch) {
    const int64_t at = (int64_t{backward} * stages_ * chunks_ + virtual_stage) * micro_batches_;
    return finished_[static_cast<size_t>(at + micro_batch)];
  }

  bool Ready(const Pass& pass, int stage, int64_t tick) {
    const int k = pass.chunk * stages_ + stage;
    if (pass.backward) {
      if (Finished(false, k, pass.micro_batch) >= tick) return false;
      // Gradients to the stage before lie in two buffers: the last but one must have been taken.
      if (k > 0 && pass.micro_batch >= 2 && Finished(true, k - 1, pass.micro_batch - 2) >= tick)
        return false;
      return k == stages_ * chunks_ - 1 || Finished(true, k + 1, pass.micro_batch) < tick;
    }
    return k == 0 || Finished(false, k - 1, pass.micro_batch) < tick;
  }

  bool RunOne(int stage, int64_t tick) {
    Rank& rank = ranks_[static_cast<size_t>(stage)];
    const Pass* pass = nullptr;
    if (rank.next_backward < backward_.size() &&
        Ready(backward_[rank.next_backward], stage, tick)) {
      pass = &backward_[rank.next_backward++];
    } else if (rank.next_forward < forward_.size() &&
               static_cast<int64_t>(rank.next_forward - rank.next_backward) < rank.limit &&
               Ready(forward_[rank.next_forward], stage, tick)) {
      pass = &forward_[rank.next_forward++];
    }
    if (pass == nullptr) return false;
    Finished(pass->backward, pass->chunk * stages_ + stage, pass->micro_batch) = tick;
    rank.passes.push_back(*pass);
    return true;
  }

  int stages_, chunks_;
  int64_t micro_batches_;
  std::vector<Pass> forward_, backward_;
  std::vector<Rank> ranks_;
  std::vector<int64_t> finished_;  // [backward][virtual stage][micro-batch] -> tick.
};

}  // namespace

PipelineSchedule MakePipelineSchedule(int stages, int chunks, int64_t micro_batches, int stage) {
  PERDURE_CHECK(stages > 0 && chunks > 0 && micro_batches >= 0 && stage >= 0 && stage < stages);
  Simulation simulation(stages, chunks, micro_batches);
  PipelineSchedule schedule;
  schedule.ticks = simulation.Run();
  schedule.passes = simulation.TakePasses(stage);
  std::vector<int> in_flight(static_cast<size_t>(chunks), 0);
  schedule.in_flight_max.assign(static_cast<size_t>(chunks), 0);
  for (const Pass& pass : schedule.passes) {
    int& now = in_flight[static_cast<size_t>(pass.chunk)];
    now += pass.backward ? -1 : 1;
    int& most = schedule.in_flight_max[static_cast<size_t>(pass.chunk)];
    most = std::max(most, now);
  }
  return schedule;
}

}  // namespace perdure
