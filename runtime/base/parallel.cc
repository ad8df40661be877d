#include "runtime/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kAttempts = 4;
constexpr std::chrono::milliseconds kPause(50);  // Half of that before the second attempt.

}  // namespace

absl::Status ForEachInParallel(size_t count, const std::function<absl::Status(size_t)>& work,
                               size_t threads_max) {
  std::vector<absl::Status> results(count);
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  const auto run = [&] {
    for (size_t i = next++; i < count && !failed; i = next++)
      if (results[i] = work(i); !results[i].ok()) failed = true;
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(count, threads_max); ++i) threads.emplace_back(run);
  run();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

absl::Status WithRetries(const std::function<absl::Status()>& work) {
  absl::Status status;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(kPause * (1 << attempt));
    status = work();
    if (!absl::IsUnavailable(status)) break;
  }
  return status;
}

}  // namespace perdure
