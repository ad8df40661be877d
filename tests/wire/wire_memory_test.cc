// What an idle wire and an idle connection take of the heap: one process may host thousands.
#include <gtest/gtest.h>
#include <malloc.h>

#include "tests/wire/wire_fixture.h"

namespace perdure {
namespace {

size_t HeapBytes() {
  const auto heap = ::mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

class WireMemoryTest : public WireTest {
 protected:
  // Keeps nothing but numbers, and answers every frame that is not an answer.
  std::unique_ptr<Wire> NewWire(uint32_t node) {
    const auto at = std::make_shared<Wire*>(nullptr);
    auto wire = Wire::New(loop_.get(), key_.Share(),
                          {.run_id = std::string(kTestRun),
                           .job = 4711,
                           .self = {.node = node, .incarnation = 1},
                           .interface = "127.0.0.1",
                           .admission = {.place_time = absl::Minutes(1)},
                           .attempt_time = absl::Minutes(1)},
                          {.on_open =
                               [this, at](ConnectionId id, const WirePeer&, bool incoming) {
                                 ++opened_;
                                 if (!incoming)
                                   EXPECT_TRUE((*at)->Send(id, Patterned(10000, 1)).ok());
                               },
                           .on_frame =
                               [this, at](ConnectionId id, std::string_view bytes) {
                                 ++frames_;
                                 if (bytes.size() > 1) EXPECT_TRUE((*at)->Send(id, "x").ok());
                               },
                           .on_close = [this](ConnectionId, const absl::Status&) { ++closed_; }});
    EXPECT_TRUE(wire.ok()) << wire.status();
    *at = wire->get();
    return *std::move(wire);
  }
  // Whether `count` more connections have opened and spoken.
  bool Talked(size_t count) {
    return Until([&] { return closed_ > 0 || (opened_ == 2 * count && frames_ == 2 * count); });
  }

  const JobKey key_ = TestKey();
  size_t opened_ = 0, frames_ = 0, closed_ = 0;
};

TEST_F(WireMemoryTest, FourThousandWiresLiveInOneLoop) {
  constexpr uint32_t kWires = 4000;
  if (DescriptorsMax() < 3 * kWires + 100) GTEST_SKIP() << "needs 12,100 descriptors: ulimit -n";
  std::vector<std::unique_ptr<Wire>> wires(kWires);
  const size_t before = HeapBytes();
  for (uint32_t i = 0; i < kWires; ++i) wires[i] = NewWire(i);
  const double each = static_cast<double>(HeapBytes() - before) / kWires;
  if (!kSanitized) {
    std::printf("an idle wire that listens: %.0f B\n", each);
    EXPECT_LE(each, 4096);
  }
  // Each is reached, by its neighbour.
  for (uint32_t i = 0; i < kWires; ++i)
    wires[i]->Connect(wires[(i + 1) % kWires]->address(), (i + 1) % kWires, 1,
                      MonotonicNow() + absl::Minutes(1));
  EXPECT_TRUE(Talked(kWires));
  EXPECT_EQ(closed_, 0U);
}

TEST_F(WireMemoryTest, AnIdleConnectionTakesFewBytes) {
  constexpr size_t kConnections = 1000;
  if (DescriptorsMax() < 2 * kConnections + 100) GTEST_SKIP() << "needs 2,100 descriptors";
  const auto a = NewWire(1), b = NewWire(2);
  const auto open = [&](size_t count) {
    for (size_t i = 0; i < count; ++i)
      a->Connect(b->address(), 2, 1, MonotonicNow() + absl::Minutes(1));
  };
  open(10);
  ASSERT_TRUE(Talked(10));  // What is made once is there.
  const size_t before = HeapBytes();
  open(kConnections);
  ASSERT_TRUE(Talked(10 + kConnections));
  ASSERT_EQ(closed_, 0U);
  const double each = static_cast<double>(HeapBytes() - before) / (2 * kConnections);
  if (kSanitized) return;
  std::printf("an idle connection that has talked: %.0f B at each end\n", each);
  EXPECT_LE(each, 768);
}

}  // namespace
}  // namespace perdure
