#include "runtime/comm/staging_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kSmallest = 4096;

// Eight classes between a power of two and the next: at most an eighth of a block is wasted, and a
// step's few dozen sizes fall into few classes.
size_t ClassOf(size_t bytes) {
  bytes = std::max(bytes, kSmallest);
  const size_t grain = std::bit_floor(bytes) / 8;
  return (bytes + grain - 1) / grain * grain;
}

}  // namespace

std::shared_ptr<StagingPool> StagingPool::New(Ops* ops, SyncCall sync) {
  return std::shared_ptr<StagingPool>(new StagingPool(ops, std::move(sync)));
}

StagingPool::~StagingPool() {
  (void)ops_->Sync();  // Its error has been, or will be, reported to whoever computes.
  for (const Blocks* blocks : {&free_, &resting_})
    for (const auto& [bytes, places] : *blocks)
      for (std::byte* place : places) ops_->FreeHost(place);
}

absl::StatusOr<StagingPool::Block> StagingPool::Take(size_t bytes) {
  Block block;
  block.bytes_ = ClassOf(bytes);
  if (free_[block.bytes_].empty() && resting_[block.bytes_].size() >= kRestingMax)
    RETURN_IF_ERROR(Sync());
  std::vector<std::byte*>& free = free_[block.bytes_];
  if (free.empty()) {
    block.data_ = static_cast<std::byte*>(ops_->AllocateHost(block.bytes_));
    bytes_allocated_ += block.bytes_;
  } else {
    block.data_ = free.back();
    free.pop_back();
  }
  block.pool_ = shared_from_this();
  return block;
}

absl::Status StagingPool::Sync() {
  RETURN_IF_ERROR(sync_());
  for (auto& [bytes, places] : resting_) {
    std::vector<std::byte*>& free = free_[bytes];
    free.insert(free.end(), places.begin(), places.end());
    places.clear();
  }
  return absl::OkStatus();
}

void StagingPool::Block::Return() {
  if (data_ != nullptr) pool_->resting_[bytes_].push_back(data_);
  Abandon();
}

void StagingPool::Block::Abandon() {
  data_ = nullptr;
  pool_.reset();
}

}  // namespace perdure
