#include "tests/kernels/device_ops.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {

DeviceOps::~DeviceOps() {
  Run();
  for (const auto& [memory, bytes] : memory_) ::munmap(memory, bytes);
}

void* DeviceOps::Allocate(size_t bytes) {
  CheckThread();
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t mapped = std::max(page, (bytes + page - 1) / page * page);
  void* memory = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PERDURE_CHECK(memory != MAP_FAILED);
  const std::lock_guard lock(mutex_);  // SyncDownloads is anybody's.
  memory_.emplace(memory, mapped);
  return memory;
}

// Waits for what is under way, as a device's allocator does.
void DeviceOps::Free(void* memory) {
  CheckThread();
  if (memory == nullptr) return;
  const std::lock_guard lock(mutex_);
  RunLocked();
  const auto found = memory_.find(memory);
  PERDURE_CHECK(found != memory_.end());
  ::munmap(memory, found->second);
  memory_.erase(found);
}

void* DeviceOps::AllocateHost(size_t bytes) {
  CheckThread();
  return ops_->AllocateHost(bytes);
}

void DeviceOps::FreeHost(void* memory) {
  CheckThread();
  ops_->FreeHost(memory);
}

void DeviceOps::Upload(const void* host, size_t bytes, void* device) {
  Do("Upload", [=, this] { ops_->Upload(host, bytes, device); });
}

void DeviceOps::Download(const void* device, size_t bytes, void* host) {
  if (bytes > 0) std::memset(host, 0xa5, bytes);
  Do("Download", [=, this] { ops_->Download(device, bytes, host); });
}

// As late as may be: where somebody waits for it.
void DeviceOps::DownloadBehind(const void* device, size_t bytes, void* host) {
  CheckThread();
  if (bytes > 0) std::memset(host, 0xa5, bytes);
  const std::lock_guard lock(mutex_);
  behind_.push_back([=, this] { ops_->Download(device, bytes, host); });
}

void DeviceOps::AwaitDownloads() {
  CheckThread();
  const std::lock_guard lock(mutex_);
  for (auto& copy : std::exchange(behind_, {})) queue_.push_back(std::move(copy));
}

absl::Status DeviceOps::SyncDownloads() {
  const std::lock_guard lock(mutex_);
  for (auto& copy : std::exchange(behind_, {})) queue_.push_back(std::move(copy));
  RunLocked();
  return absl::OkStatus();
}

absl::Status DeviceOps::Sync() {
  CheckThread();
  PERDURE_CHECK(!hangs_);
  Run();
  ++syncs_;
  return absl::OkStatus();
}

bool DeviceOps::Idle() {
  CheckThread();
  const std::lock_guard lock(mutex_);
  const bool idle = queue_.empty() && !hangs_;
  RunLocked();
  return idle;
}

void DeviceOps::CheckThread() {
  if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
  PERDURE_CHECK(thread_ == std::this_thread::get_id());
}

void DeviceOps::Protect(bool accessible) const {
  for (const auto& [memory, bytes] : memory_)
    PERDURE_CHECK(::mprotect(memory, bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) == 0);
}

void DeviceOps::Do(const char*, std::function<void()> operation) {
  CheckThread();
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(operation));
}

void DeviceOps::Run() {
  const std::lock_guard lock(mutex_);
  RunLocked();
}

void DeviceOps::RunLocked() {
  if (queue_.empty() || hangs_) return;
  Protect(true);
  for (const auto& operation : std::exchange(queue_, {})) operation();
  Protect(false);
}

}  // namespace perdure
