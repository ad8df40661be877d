// A group: some ranks of a transport in a fixed order, and collectives among them with canonical
// order of sums.
//
// Every member calls the same collectives in the same order with the same sizes. A group of one
// does only copies. A group lives as long as its transport. Errors: the transport's, first one
// wins; after an error the group must not be used again.
//
// The order of floating-point sums never depends on arrival, on the transport or on the group's
// size: see each call. Waits are counted (wait_seconds) so that the step can say what communication
// cost it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/transport.h"

namespace perdure {

class Group final : public Collectives {
 public:
  // `members` are transport ranks; the caller's own must be among them. `channel` (below 4096) is
  // distinct for every group that shares two ranks, so that their messages cannot be mixed up.
  Group(Transport* transport, std::vector<int> members, uint32_t channel);

  int size() const override;
  int index() const override;
  Transport* transport() const override;

  absl::Status AllGather(const void* in, size_t bytes, void* out) override;
  absl::Status AllGatherV(void* buffer, std::span<const Extent> extents) override;
  // Sends send_extents[i] of `send` to member i; receives recv_extents[i] of `recv` from member i.
  absl::Status AllToAllV(const void* send, std::span<const Extent> send_extents, void* recv,
                         std::span<const Extent> recv_extents);
  absl::Status Broadcast(void* data, size_t bytes, int root);
  absl::Status Barrier();

  absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override;
  absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override;

  std::vector<RequestPtr> Start(uint32_t operation, std::span<const Transfer> transfers) override;
  // The single messages that Start posts.
  RequestPtr Send(int member, uint32_t operation, const void* data, size_t bytes);
  RequestPtr Recv(int member, uint32_t operation, void* data, size_t bytes);
  absl::Status WaitAll(std::span<const RequestPtr> requests) override;

  absl::Status Watch() override;
  double wait_seconds() const override;

 private:
  class Round;
  float* Scratch(int64_t floats);
  absl::Status ReduceShares(const float* partial, std::span<const int64_t> begins, float* out);

  Transport* transport_;
  std::vector<int> members_;
  uint32_t channel_;
  int index_ = 0;
  uint32_t sequence_ = 0;  // Of collectives: part of their tags.
  double wait_seconds_ = 0;
  std::vector<float> scratch_;  // Receive space of the reductions; grows to the largest call.
};

}  // namespace perdure
