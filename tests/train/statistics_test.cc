#include "runtime/train/statistics.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>

#include "runtime/base/random.h"
#include "tests/train/transport_threads.h"

namespace perdure {
namespace {

// Values of very different sizes: another order of sums gives other bits.
double Wild(uint64_t stream, uint64_t index) {
  const auto bits = RandomBits(1, RandomPurpose::kTest, stream, index);
  return std::ldexp(1.0 + bits[0] * 0x1p-32, static_cast<int>(bits[1] % 40));
}
double LossOf(int64_t leaf) { return Wild(1, static_cast<uint64_t>(leaf)); }
double SquareOf(int64_t atom) { return Wild(2, static_cast<uint64_t>(atom)); }

constexpr int64_t kAtomsPerStage = 23, kReplicated = 2;

// Atoms of stage p at tensor rank t, in an order that is not that of their indices, as buckets have
// them: every other atom of the stage is some tensor rank's, and the last kReplicated are
// everybody's.
std::vector<int64_t> AtomsAt(const Mesh& mesh, int pipeline, int tensor) {
  std::vector<int64_t> atoms;
  const int64_t first = pipeline * kAtomsPerStage;
  for (int64_t a = kAtomsPerStage - 1; a >= 0; --a)
    if (a >= kAtomsPerStage - kReplicated || a % mesh.tensor() == tensor)
      atoms.push_back(first + a);
  return atoms;
}

// owned[d]: uneven shares; the last replica of three owns nothing where there are few atoms.
std::vector<std::vector<int64_t>> OwnedAt(const Mesh& mesh, int pipeline, int tensor) {
  std::vector<std::vector<int64_t>> owned(static_cast<size_t>(mesh.data()));
  const std::vector<int64_t> atoms = AtomsAt(mesh, pipeline, tensor);
  for (size_t i = 0; i < atoms.size(); ++i)
    owned[std::min(i / 9, owned.size() - 1)].push_back(atoms[i]);
  return owned;
}

struct Rank {
  Rank(Transport* transport, const Mesh& mesh)
      : at(mesh.At(transport->rank())),
        tensor(transport, mesh.TensorGroup(at), 1),
        data(transport, mesh.DataGroup(at), 2),
        pipeline(transport, mesh.PipelineGroup(at), 3) {}
  MeshPoint at;
  Group tensor, data, pipeline;
};

struct Expected {
  double loss_sum = 0, square_sum = 0;
};

Expected Ordered(const Mesh& mesh, int64_t leaves) {
  Expected expected;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) expected.loss_sum += LossOf(leaf);
  for (int64_t atom = 0; atom < mesh.pipeline() * kAtomsPerStage; ++atom)
    expected.square_sum += SquareOf(atom);
  return expected;
}

void CheckMesh(const Mesh& mesh) {
  std::atomic<int> finished = 0;
  RunTransportThreads(mesh.ranks(), [&](Transport* transport) {
    Rank rank(transport, mesh);
    const auto owned = OwnedAt(mesh, rank.at.pipeline, rank.at.tensor);
    absl::StatusOr<StatisticsGather> gather =
        StatisticsGather::Create(mesh, rank.at, mesh.pipeline() * kAtomsPerStage, &rank.tensor,
                                 &rank.data, &rank.pipeline, owned);
    ASSERT_TRUE(gather.ok()) << gather.status();
    std::vector<Digest> digests;
    for (int64_t atom : owned[static_cast<size_t>(rank.at.data)])
      digests.push_back(DigestOf(&atom, sizeof atom));
    const absl::StatusOr<std::vector<Digest>> all = gather->GatherDigests(digests);
    ASSERT_TRUE(all.ok()) << all.status();
    ASSERT_EQ(all->size(), static_cast<size_t>(mesh.pipeline() * kAtomsPerStage));
    for (int64_t atom = 0; atom < mesh.pipeline() * kAtomsPerStage; ++atom)
      EXPECT_EQ((*all)[static_cast<size_t>(atom)], DigestOf(&atom, sizeof atom));
    std::vector<double> squares;
    for (int64_t atom : owned[static_cast<size_t>(rank.at.data)]) squares.push_back(SquareOf(atom));
    for (const int64_t leaves : {1, 2, 3, 7}) {
      const int64_t rounds = (leaves + mesh.data() - 1) / mesh.data();
      std::vector<double> losses;
      for (int64_t r = 0; r < rounds; ++r) {
        const int64_t leaf = r * mesh.data() + rank.at.data;
        // Only the last stage knows losses, and only of leaves that exist.
        const bool meant = rank.at.pipeline == mesh.pipeline() - 1 && leaf < leaves;
        losses.push_back(meant ? LossOf(leaf) : -1e300);
      }
      // Others' commands must not count.
      const int command = transport->rank() == 0 ? static_cast<int>(leaves) : 99;
      const absl::StatusOr<StepStatistics> got = gather->Gather(leaves, losses, squares, command);
      ASSERT_TRUE(got.ok()) << got.status();
      const Expected expected = Ordered(mesh, leaves);
      EXPECT_EQ(std::bit_cast<uint64_t>(got->loss_sum), std::bit_cast<uint64_t>(expected.loss_sum));
      EXPECT_EQ(std::bit_cast<uint64_t>(got->square_sum),
                std::bit_cast<uint64_t>(expected.square_sum));
      EXPECT_EQ(got->command, leaves);
    }
    ++finished;
  });
  EXPECT_EQ(finished, mesh.ranks());
}

TEST(StatisticsGather, TotalsAreThoseOfLeavesAndAtomsInOrder) {
  for (const int64_t tensor : {1, 2, 3})
    for (const int64_t pipeline : {1, 2, 3})
      for (const int64_t data : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message() << "T " << tensor << " P " << pipeline << " D " << data);
        CheckMesh(Mesh({.tensor = tensor, .pipeline = pipeline, .data = data}));
      }
}

// Were the order free, the test above could not fail.
TEST(StatisticsGather, TheValuesTellOrdersApart) {
  double forward = 0, backward = 0;
  for (int64_t i = 0; i < kAtomsPerStage; ++i) forward += SquareOf(i);
  for (int64_t i = kAtomsPerStage; i-- > 0;) backward += SquareOf(i);
  EXPECT_NE(forward, backward);
}

// What ranks of a tensor group hold alike they must hold alike.
TEST(StatisticsGather, RanksThatDoNotAgreeAreAnError) {
  const Mesh mesh({.tensor = 2, .pipeline = 1, .data = 1});
  RunTransportThreads(2, [&](Transport* transport) {
    Rank rank(transport, mesh);
    const std::vector<int64_t> owned = {transport->rank(), 2};
    absl::StatusOr<StatisticsGather> gather = StatisticsGather::Create(
        mesh, rank.at, 3, &rank.tensor, &rank.data, &rank.pipeline, {owned});
    ASSERT_TRUE(gather.ok()) << gather.status();
    const std::vector<Digest> digests = {DigestOf("mine"),
                                         DigestOf(transport->rank() == 0 ? "a" : "b")};
    const absl::Status status = gather->GatherDigests(digests).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(status.message(),
              "atom 2 is not the same on ranks 0 and 1: one of them has wrong memory");
  });
}

TEST(StatisticsGather, AnAtomOfNobodyIsAnError) {
  const Mesh mesh({.tensor = 1, .pipeline = 1, .data = 1});
  RunTransportThreads(1, [&](Transport* transport) {
    Rank rank(transport, mesh);
    absl::StatusOr<StatisticsGather> gather =
        StatisticsGather::Create(mesh, rank.at, 2, &rank.tensor, &rank.data, &rank.pipeline, {{1}});
    ASSERT_TRUE(gather.ok()) << gather.status();
    const std::vector<Digest> digests = {DigestOf("mine")};
    EXPECT_EQ(gather->GatherDigests(digests).status().code(), absl::StatusCode::kInternal);
  });
}

TEST(StatisticsGather, ALostPeerIsAnError) {
  const Mesh mesh({.tensor = 1, .pipeline = 1, .data = 2});
  RunTransportThreads(2, [&](Transport* transport) {
    Rank rank(transport, mesh);
    absl::StatusOr<StatisticsGather> gather = StatisticsGather::Create(
        mesh, rank.at, 2, &rank.tensor, &rank.data, &rank.pipeline, {{0}, {1}});
    ASSERT_TRUE(gather.ok()) << gather.status();
    if (transport->rank() == 1) return;  // And so it is gone.
    const std::vector<double> one = {1.0};
    EXPECT_EQ(gather->Gather(2, one, one, 0).status().code(), absl::StatusCode::kUnavailable);
  });
}

}  // namespace
}  // namespace perdure
