#include "tests/security/security_test.h"

#include <cstdio>

namespace perdure {

void SecurityTest::SetUp() {
  static const bool able = CanBecomeOthers();
  if (!able) GTEST_SKIP() << "needs root: attackers and agents are processes of other users";
  if (job_ == nullptr) {
    job_ = std::make_unique<Job>(parts_);
    ASSERT_TRUE(job_->Start()) << job_->Log(0);
  }
  // Descriptors have been counted since the last agent came.
  std::vector<uint64_t> beats;
  for (uint32_t node = 0; node < kLateNode; ++node) beats.push_back(job().at(node).beats);
  for (uint32_t node = 0; node < kLateNode; ++node)
    ASSERT_TRUE(Job::Until([&] { return job().at(node).beats > beats[node] + 12; }));
  before_.clear();
  for (uint32_t node = 0; node < kLateNode; ++node) {
    NodeBoard& board = job().at(node);
    board.pause_most = 0;
    board.resident_most = 0;
    before_.push_back({.term = board.term,
                       .generation = board.generation,
                       .resident = board.resident,
                       .lapses = board.lapses,
                       .connections = board.connections,
                       .descriptors = board.descriptors});
  }
}

void SecurityTest::TearDown() {
  if (job_ == nullptr) return;
  if (job().pids().contains(kLateNode)) job().KillNode(kLateNode);
  EXPECT_TRUE(job().Steps(5)) << "the job stands still";
  for (uint32_t node = 0; node < kLateNode && before_.size() == kLateNode; ++node)
    ExpectUndisturbed(node, before_[node]);
  if (!HasFailure()) return;
  for (uint32_t node = 0; node < kJobNodes; ++node)
    std::printf("node %u said:\n%s", node, job().Log(node).c_str());
  job_.reset();  // The next case shall not suffer for this one.
}

void SecurityTest::ExpectUndisturbed(uint32_t node, const Vitals& before) {
  SCOPED_TRACE(fmt::format("node {}", node));
  NodeBoard& board = job().at(node);
  EXPECT_FALSE(job().Ended(node).has_value()) << "it has ended";
  EXPECT_EQ(board.term, before.term);
  EXPECT_EQ(board.generation, before.generation);
  EXPECT_EQ(board.lapses, before.lapses);
  EXPECT_LT(absl::Nanoseconds(board.pause_most.load()), kLease);
  EXPECT_LE(board.resident_most, before.resident + board.bytes_bound);
  EXPECT_TRUE(Job::Until([&] {
    return board.connections == before.connections && board.descriptors == before.descriptors &&
           board.half_open == 0 && board.unconfirmed == 0;
  })) << board.connections
      << " connections, " << board.descriptors << " descriptors; there were " << before.connections
      << " and " << before.descriptors << "; " << board.half_open << " half open, "
      << board.unconfirmed << " unconfirmed";
}

void SecurityTest::ExpectCounted(uint32_t node, Refusal refusal, uint64_t count) {
  const NodeBoard& board = job().at(node);
  EXPECT_TRUE(Job::Until([&] { return board[refusal] >= count; }, absl::Seconds(10)));
  EXPECT_EQ(board[refusal], count) << RefusalName(refusal) << " of node " << node;
}

HandshakeTerms SecurityTest::LeadTerms() {
  return {.run_id = job().RunId(),
          .job = kJobStart,
          .responder = job().Lead(),
          .address = LeadAddress()};
}

bool SecurityTest::LateNodeJoins() {
  job().StartNode(kLateNode);
  // Two frames are two answers of the coordinator.
  return Job::Until([] { return job().at(kLateNode).frames_received >= 2; });
}

}  // namespace perdure
