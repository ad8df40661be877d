#include "runtime/comm/staged_group.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/sync_watching.h"

namespace perdure {
namespace {

constexpr size_t kAlignment = 64;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t FloatBytes(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

std::byte* Bytes(void* data) { return static_cast<std::byte*>(data); }
float* Floats(std::byte* data) { return reinterpret_cast<float*>(data); }

}  // namespace

// The request of one Start: host messages, and what to do with the bytes when they are there.
class StagedGroup::Exchange final : public Request {
 public:
  struct Upload {
    const std::byte* host = nullptr;
    size_t bytes = 0;
    void* device = nullptr;
  };

  ~Exchange() override { ReturnStaging(); }

  bool done() const override {
    return std::all_of(messages.begin(), messages.end(), [](const auto& m) { return m->done(); }) &&
           std::all_of(to_self.begin(), to_self.end(), [](const auto& met) { return *met; });
  }
  absl::Status status() const override {
    RETURN_IF_ERROR(error);
    for (const RequestPtr& message : messages) RETURN_IF_ERROR(message->status());
    return absl::OkStatus();
  }

  // A transport that has not let go of a message may still write to its memory.
  void ReturnStaging() {
    const bool idle =
        std::all_of(messages.begin(), messages.end(), [](const auto& m) { return m->done(); });
    if (idle)
      staging.Return();
    else
      staging.Abandon();
  }

  absl::Status error;  // Of Start.
  std::vector<RequestPtr> messages;
  std::vector<SelfExchange::Met> to_self;
  std::vector<Upload> uploads;
  StagingPool::Block staging;
};

StagedGroup::StagedGroup(Transport* transport, std::vector<int> members, uint32_t channel, Ops* ops,
                         std::string why)
    : ops_(ops),
      group_(transport, std::move(members), channel),
      why_(std::move(why)),
      staging_(StagingPool::New(ops,
                                [this] {
                                  Collectives* const self[] = {this};
                                  return SyncWatching(ops_, self);
                                })),
      self_(ops) {}

absl::Status StagedGroup::AllGather(const void* in, size_t bytes, void* out) {
  if (bytes == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, in, bytes, out);
    return absl::OkStatus();
  }
  const size_t all = bytes * static_cast<size_t>(size());
  ASSIGN_OR_RETURN(const StagingPool::Block host, staging_->Take(all));
  std::byte* own = host.data() + static_cast<size_t>(index()) * bytes;
  ops_->Download(in, bytes, own);
  RETURN_IF_ERROR(staging_->Sync());
  RETURN_IF_ERROR(group_.AllGather(own, bytes, host.data()));
  ops_->Upload(host.data(), all, out);
  return absl::OkStatus();
}

// Blocks lie one behind the other in staging memory, wherever they are in the buffer.
absl::Status StagedGroup::AllGatherV(void* buffer, std::span<const Extent> extents) {
  PERDURE_CHECK(extents.size() == static_cast<size_t>(size()));
  if (size() == 1) return absl::OkStatus();
  std::vector<Extent> packed;
  size_t bytes = 0;
  for (const Extent& extent : extents) {
    packed.push_back({bytes, extent.bytes});
    bytes += Aligned(extent.bytes);
  }
  if (bytes == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const StagingPool::Block host, staging_->Take(bytes));
  const auto own = static_cast<size_t>(index());
  if (extents[own].bytes > 0)
    ops_->Download(Bytes(buffer) + extents[own].begin, extents[own].bytes,
                   host.data() + packed[own].begin);
  RETURN_IF_ERROR(staging_->Sync());
  RETURN_IF_ERROR(group_.AllGatherV(host.data(), packed));
  for (size_t i = 0; i < extents.size(); ++i)
    if (i != own && extents[i].bytes > 0)
      ops_->Upload(host.data() + packed[i].begin, extents[i].bytes,
                   Bytes(buffer) + extents[i].begin);
  return absl::OkStatus();
}

absl::Status StagedGroup::ReduceScatterTree(const float* partial, int64_t count, float* out) {
  if (count == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, partial, FloatBytes(count), out);
    return absl::OkStatus();
  }
  const size_t all = FloatBytes(count * size());
  ASSIGN_OR_RETURN(const StagingPool::Block host, staging_->Take(all + FloatBytes(count)));
  float* sum = Floats(host.data() + all);
  ops_->Download(partial, all, host.data());
  RETURN_IF_ERROR(staging_->Sync());
  RETURN_IF_ERROR(group_.ReduceScatterTree(Floats(host.data()), count, sum));
  ops_->Upload(sum, FloatBytes(count), out);
  return absl::OkStatus();
}

absl::Status StagedGroup::AllReduceTree(const float* partial, int64_t count, float* out) {
  if (count == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, partial, FloatBytes(count), out);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const StagingPool::Block host, staging_->Take(FloatBytes(count)));
  ops_->Download(partial, FloatBytes(count), host.data());
  RETURN_IF_ERROR(staging_->Sync());
  RETURN_IF_ERROR(group_.AllReduceTree(Floats(host.data()), count, Floats(host.data())));
  ops_->Upload(host.data(), FloatBytes(count), out);
  return absl::OkStatus();
}

std::vector<RequestPtr> StagedGroup::Start(uint32_t operation,
                                           std::span<const Transfer> transfers) {
  auto exchange = std::make_unique<Exchange>();
  exchange->error = Post(operation, transfers, *exchange);
  std::vector<RequestPtr> requests;
  requests.push_back(std::move(exchange));
  return requests;
}

absl::Status StagedGroup::Post(uint32_t operation, std::span<const Transfer> transfers,
                               Exchange& exchange) {
  std::vector<Transfer> staged;
  std::vector<size_t> begins;
  size_t bytes = 0;
  for (const Transfer& transfer : transfers) {
    if (transfer.member == index()) {
      exchange.to_self.push_back(self_.Post(operation, transfer));
      continue;
    }
    staged.push_back(transfer);
    begins.push_back(bytes);
    bytes += Aligned(transfer.bytes);
  }
  if (staged.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(exchange.staging, staging_->Take(bytes));
  bool downloads = false;
  for (size_t i = 0; i < staged.size(); ++i) {
    Transfer& transfer = staged[i];
    void* device = std::exchange(transfer.data, exchange.staging.data() + begins[i]);
    if (transfer.bytes == 0) continue;
    if (transfer.kind == Transfer::Kind::kSend) {
      ops_->Download(device, transfer.bytes, transfer.data);
      downloads = true;
    } else {
      exchange.uploads.push_back({Bytes(transfer.data), transfer.bytes, device});
    }
  }
  if (downloads) RETURN_IF_ERROR(staging_->Sync());
  exchange.messages = group_.Start(operation, staged);
  return absl::OkStatus();
}

absl::Status StagedGroup::WaitAll(std::span<const RequestPtr> requests) {
  absl::Status first;
  for (const RequestPtr& request : requests) {
    if (request == nullptr) continue;
    auto& exchange = static_cast<Exchange&>(*request);
    absl::Status status = exchange.error;
    if (status.ok()) status = group_.WaitAll(exchange.messages);
    for (const SelfExchange::Met& met : exchange.to_self)
      if (status.ok() && !*met)
        status = FailedPrecondition(
            "rank {} waits for a message to itself whose other side was never started",
            transport()->rank());
    if (status.ok())
      for (const Exchange::Upload& upload : exchange.uploads)
        ops_->Upload(upload.host, upload.bytes, upload.device);
    exchange.uploads.clear();
    exchange.ReturnStaging();
    first.Update(status);
  }
  return first;
}

}  // namespace perdure
