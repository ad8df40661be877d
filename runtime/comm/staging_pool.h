// Pinned host memory that stands between a device and the host transport, used again and again.
//
// A block that is given back may still be the source of an upload that has only been enqueued. So
// it is at rest first, and free when a Sync that began later has ended: uploads that were enqueued
// before that Sync are done. At most kRestingMax blocks of one size rest; who needs one more of
// that size waits for the device instead of asking for more memory. So the pool holds what was
// needed at one time, and that many more of each size. One thread.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/comm/sync_watching.h"

namespace perdure {

class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  // `ops` outlives the pool and every block; `sync` waits for it, and is called by Take and Sync
  // alone.
  static std::shared_ptr<StagingPool> New(Ops* ops, SyncCall sync);
  // Waits for the device (Ops::Sync), then gives the memory back, but for what was abandoned.
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  // Memory out of the pool; given back when it ends. Keeps the pool alive.
  class Block {
   public:
    Block() = default;
    Block(Block&& other) noexcept { *this = std::move(other); }
    Block& operator=(Block&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(data_, other.data_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Block() { Return(); }

    std::byte* data() const { return data_; }
    void Return();
    // Never used again and never freed: for memory that the transport may still write to.
    void Abandon();

   private:
    friend class StagingPool;
    std::shared_ptr<StagingPool> pool_;
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;  // Of its size class.
  };

  // At least `bytes`, aligned to 64. Fails only if it had to wait for the device, with its error.
  absl::StatusOr<Block> Take(size_t bytes);
  // Waits for the device; what rested before is free then.
  absl::Status Sync();

  size_t bytes_allocated() const { return bytes_allocated_; }

 private:
  static constexpr size_t kRestingMax = 2;
  using Blocks = std::map<size_t, std::vector<std::byte*>>;  // By size class.

  StagingPool(Ops* ops, SyncCall sync) : ops_(ops), sync_(std::move(sync)) {}

  Ops* ops_;
  const SyncCall sync_;
  Blocks free_, resting_;
  size_t bytes_allocated_ = 0;
};

}  // namespace perdure
