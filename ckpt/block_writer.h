// Writes the blocks of one file from several threads, past the page cache where the file system
// allows it, and digests each as it is written. Private to ckpt/.
//
// A fixed number of buffers goes round: whoever fills them waits when the disk is behind, so memory
// is bounded. Neighbouring blocks that wait together go in one transfer. One thread fills.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/file_io.h"
#include "runtime/base/digest.h"

namespace perdure {

struct WriteOptions {
  int threads = 4;
  int buffers = 64;               // Of kBlockBytes each; at least 8.
  uint64_t bytes_per_second = 0;  // 0: as fast as the disk goes.
};

class BlockWriter {
 public:
  // `file` outlives this and has its final length, `bytes`.
  BlockWriter(File& file, uint64_t bytes, const WriteOptions& options);
  ~BlockWriter();
  BlockWriter(const BlockWriter&) = delete;
  BlockWriter& operator=(const BlockWriter&) = delete;

  // Room for a block, not initialised; null after a write has failed.
  char* Take();
  // The block's whole content is in a buffer that Take gave.
  void Put(uint64_t block, char* buffer);
  // The block is zero and stays unwritten.
  void PutHole(uint64_t block);
  // Waits for everything; then the digests by block. The first error of any write.
  absl::StatusOr<std::map<uint64_t, Digest>> Finish();

 private:
  using Batch = std::vector<std::pair<uint64_t, char*>>;

  void Work();
  Batch LongestRow() const;
  Batch NextBatch(std::unique_lock<std::mutex>& lock);
  absl::Status Write(const Batch& batch);
  void WaitForBudget(std::unique_lock<std::mutex>& lock, uint64_t bytes);
  uint64_t BytesOf(uint64_t block) const;

  File& file_;
  File direct_;
  const uint64_t bytes_;
  const WriteOptions options_;
  AlignedBuffer memory_;
  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  std::vector<char*> free_;
  std::map<uint64_t, char*> waiting_;
  std::map<uint64_t, Digest> digests_;
  absl::Status status_;
  bool no_more_ = false;
  std::chrono::steady_clock::time_point next_write_;
  std::vector<std::thread> threads_;
};

}  // namespace perdure
