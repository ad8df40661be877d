// CpuOps as if its memory were a device's: an oracle for whoever uses Ops.
//
// Device memory cannot be touched by the host: it is mapped without any right, but while operations
// run. They run as late as the contract allows, at Sync(), in order. Memory that a Download is to
// fill is spoilt until then. So what takes device memory for the host's, and what forgets to
// synchronise, ends in a signal or in wrong bits. A call from another thread than the first is a
// CHECK.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/kernels/forwarding_ops.h"

namespace perdure {

class DeviceOps final : public ForwardingOps {
 public:
  DeviceOps() : ForwardingOps(NewCpuOps(1)) {}
  ~DeviceOps() override;

  // How often the host has waited, and operations that it has not waited for.
  int syncs() const { return syncs_; }
  size_t queued() const { return queue_.size(); }

  void* Allocate(size_t bytes) override;
  void Free(void* memory) override;
  void* AllocateHost(size_t bytes) override;
  void FreeHost(void* memory) override;
  bool DeviceIsHost() const override { return false; }
  void Upload(const void* host, size_t bytes, void* device) override;
  void Download(const void* device, size_t bytes, void* host) override;
  void DownloadBehind(const void* device, size_t bytes, void* host) override;
  void AwaitDownloads() override;
  absl::Status SyncDownloads() override;
  absl::Status Sync() override;
  // Asked whether it has finished, it works; the answer is of before.
  bool Idle() override;
  // From here on it works on what never ends, a message from somebody who has died: nothing that is
  // enqueued runs, it is never idle. It must not be waited for.
  void Hang() { hangs_ = true; }
  void Recover() { hangs_ = false; }
  std::string Describe() const override { return "device of " + ops_->Describe(); }

 private:
  void Do(const char* operation, std::function<void()> call) override;
  void Run();
  void RunLocked();
  void Protect(bool accessible) const;
  void CheckThread();

  std::map<void*, size_t> memory_;  // Mapped bytes.
  std::mutex mutex_;                // Guards queues: SyncDownloads may come from another thread.
  std::vector<std::function<void()>> queue_;
  std::vector<std::function<void()>> behind_;  // Downloads that nobody has waited for.
  int syncs_ = 0;
  bool hangs_ = false;
  std::thread::id thread_;  // Of the first call.
};

}  // namespace perdure
