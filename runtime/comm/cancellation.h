// Whether a transport has been told to stop, and why. Any thread tells it, once and for ever; the
// transport's own thread looks before everything that it does, and polls fd() where it sleeps.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

class Cancellation {
 public:
  // Shared with whoever is in Set: what that brings about may end the transport before Set returns.
  static absl::StatusOr<std::shared_ptr<Cancellation>> New();

  // The first reason stays.
  void Set(const std::string& reason);
  bool set() const { return set_.load(std::memory_order_acquire); }
  // Cancelled, with the reason; OK while nobody has called Set.
  absl::Status status() const { return set() ? status_ : absl::OkStatus(); }
  // Readable from Set on.
  int fd() const { return fd_.get(); }

 private:
  explicit Cancellation(UniqueFd fd) : fd_(std::move(fd)) {}

  const UniqueFd fd_;
  std::mutex setting_;   // Of two at once the second waits until the first is through.
  absl::Status status_;  // Never written again once set_ is true.
  std::atomic<bool> set_{false};
};

}  // namespace perdure
