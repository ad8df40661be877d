// Collectives over device memory where no library reaches it: through pinned host memory and a
// Group. It needs no GPU library and any number of ranks may share a GPU, but the host waits for
// the device in every call, and all bytes cross the host.
//
// What is sent is downloaded, the device is waited for once, the Group moves and sums on the host
// (the same trees, hence the same bits), what was received is uploaded. A group of one only copies
// on the device and waits for nothing. A device that is still busy when the transport is cancelled
// is left to itself: nobody but the device touches the memory of such a call any more.
//
// Requests own their staging memory: it goes back to the pool when WaitAll has enqueued the upload,
// and is used again when a later Sync has shown that the upload is done (StagingPool). A request is
// done() when its messages are, but only WaitAll brings what was received to the device.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/group.h"
#include "runtime/comm/self_exchange.h"
#include "runtime/comm/staging_pool.h"

namespace perdure {

class StagedGroup final : public Collectives {
 public:
  // Members and channel as for Group. `ops` outlives the group and its requests. `why` tells people
  // why it is not NCCL.
  StagedGroup(Transport* transport, std::vector<int> members, uint32_t channel, Ops* ops,
              std::string why = "");

  int size() const override { return group_.size(); }
  int index() const override { return group_.index(); }
  Transport* transport() const override { return group_.transport(); }
  std::string Describe() const override {
    return why_.empty() ? "staged" : "staged, because " + why_;
  }

  absl::Status AllGather(const void* in, size_t bytes, void* out) override;
  absl::Status AllGatherV(void* buffer, std::span<const Extent> extents) override;
  absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override;
  absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override;
  // One request for all transfers.
  std::vector<RequestPtr> Start(uint32_t operation, std::span<const Transfer> transfers) override;
  absl::Status WaitAll(std::span<const RequestPtr> requests) override;

  absl::Status Watch() override { return group_.Watch(); }
  double wait_seconds() const override { return group_.wait_seconds(); }

  size_t staging_bytes() const { return staging_->bytes_allocated(); }

 private:
  class Exchange;

  absl::Status Post(uint32_t operation, std::span<const Transfer> transfers, Exchange& exchange);

  Ops* ops_;
  Group group_;
  const std::string why_;
  std::shared_ptr<StagingPool> staging_;  // Shared with the requests.
  SelfExchange self_;
};

}  // namespace perdure
