#include "runtime/train/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace perdure {
namespace {

struct Case {
  int stages, chunks;
  int64_t micro_batches;
};

std::vector<PipelineSchedule> AllStages(const Case& c) {
  std::vector<PipelineSchedule> schedules;
  for (int p = 0; p < c.stages; ++p)
    schedules.push_back(MakePipelineSchedule(c.stages, c.chunks, c.micro_batches, p));
  return schedules;
}

// Executes all ranks' lists as real ranks would, each blocking on its next pass, with two gradient
// buffers per chunk.
bool CanExecute(const Case& c, const std::vector<PipelineSchedule>& schedules) {
  std::set<std::tuple<bool, int, int64_t>> finished;  // (backward, virtual stage, micro-batch)
  std::vector<size_t> next(schedules.size(), 0);
  const int last = c.stages * c.chunks - 1;
  bool ran = true;
  while (ran) {
    ran = false;
    for (int p = 0; p < c.stages; ++p) {
      const auto& passes = schedules[static_cast<size_t>(p)].passes;
      size_t& at = next[static_cast<size_t>(p)];
      if (at == passes.size()) continue;
      const Pass& pass = passes[at];
      const int k = pass.chunk * c.stages + p;
      const int64_t m = pass.micro_batch;
      bool ready;
      if (!pass.backward) {
        ready = k == 0 || finished.contains({false, k - 1, m});
      } else {
        ready =
            finished.contains({false, k, m}) && (k == last || finished.contains({true, k + 1, m}));
        if (k > 0 && m >= 2) ready = ready && finished.contains({true, k - 1, m - 2});
      }
      if (!ready) continue;
      finished.insert({pass.backward, k, m});
      ++at;
      ran = true;
    }
  }
  for (size_t p = 0; p < schedules.size(); ++p)
    if (next[p] != schedules[p].passes.size()) return false;
  return true;
}

TEST(PipelineScheduleTest, EveryShapeRunsEveryPassOnceInOrderWithoutDeadlock) {
  for (int stages : {1, 2, 3, 4, 8})
    for (int chunks : {1, 2, 3}) {
      if (stages == 1 && chunks > 1) continue;
      for (int64_t micro_batches : {0, 1, 2, 3, 5, 8, 13, 24}) {
        SCOPED_TRACE(testing::Message()
                     << stages << " stages, " << chunks << " chunks, " << micro_batches);
        const Case c{stages, chunks, micro_batches};
        const auto schedules = AllStages(c);
        for (const PipelineSchedule& schedule : schedules) {
          EXPECT_EQ(schedule.passes.size(), static_cast<size_t>(2 * chunks * micro_batches));
          std::map<std::pair<bool, int>, int64_t> next;
          for (const Pass& pass : schedule.passes)
            EXPECT_EQ(pass.micro_batch, (next[{pass.backward, pass.chunk}]++));
        }
        EXPECT_TRUE(CanExecute(c, schedules));
      }
    }
}

// What neighbours send each other has no tags everywhere (runtime/comm/nccl_group.h): one side
// sends in the order in which the other takes.
TEST(PipelineScheduleTest, NeighboursAgreeOnTheOrderOfMessages) {
  for (int stages = 2; stages <= 8; ++stages)
    for (int chunks = 1; chunks <= 4; ++chunks)
      for (int64_t micro_batches = 1; micro_batches <= 24; ++micro_batches) {
        const auto schedules = AllStages({stages, chunks, micro_batches});
        // (Receiving virtual stage, micro-batch), in the order of the passes of stage p.
        const auto messages = [&](int p, bool backward, bool sends) {
          std::vector<std::pair<int, int64_t>> order;
          const int last = stages * chunks - 1;
          for (const Pass& pass : schedules[static_cast<size_t>(p)].passes) {
            const int k = pass.chunk * stages + p, step = backward ? -1 : 1;
            const int end = sends == backward ? 0 : last;
            if (pass.backward == backward && k != end)
              order.emplace_back(sends ? k + step : k, pass.micro_batch);
          }
          return order;
        };
        for (int p = 0; p < stages; ++p) {
          const int next = (p + 1) % stages;
          EXPECT_EQ(messages(p, false, true), messages(next, false, false));
          EXPECT_EQ(messages(next, true, true), messages(p, true, false));
        }
      }
}

TEST(PipelineScheduleTest, OneForwardOneBackward) {
  const PipelineSchedule first = MakePipelineSchedule(4, 1, 8, 0);
  // Warm-up of P forwards, then alternating (Narayanan et al. 2021, figure 4).
  for (size_t i = 0; i < 4; ++i) EXPECT_FALSE(first.passes[i].backward);
  for (size_t i = 4; i < 12; i += 2) {
    EXPECT_TRUE(first.passes[i].backward);
    EXPECT_FALSE(first.passes[i + 1].backward);
  }
  EXPECT_EQ(first.in_flight_max, std::vector<int>{4});
  const PipelineSchedule last = MakePipelineSchedule(4, 1, 8, 3);
  EXPECT_EQ(last.in_flight_max, std::vector<int>{1});
  EXPECT_EQ(first.ticks, 2 * (8 + 3));  // Bubble (P - 1) / (m + P - 1).
}

TEST(PipelineScheduleTest, InterleavingShrinksTheBubble) {
  const double plain = static_cast<double>(MakePipelineSchedule(4, 1, 8, 0).ticks) / (2 * 8);
  const double interleaved =
      static_cast<double>(MakePipelineSchedule(4, 2, 8, 0).ticks) / (2 * 8 * 2);
  EXPECT_LT(interleaved, plain);
}

}  // namespace
}  // namespace perdure
