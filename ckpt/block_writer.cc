#include "ckpt/block_writer.h"

#include <fcntl.h>

#include <algorithm>
#include <array>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kBatchBlocks = 8;

uint64_t BuffersOf(uint64_t bytes, const WriteOptions& options) {
  const uint64_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes;
  return std::min<uint64_t>(static_cast<uint64_t>(options.buffers), blocks);
}

}  // namespace

BlockWriter::BlockWriter(File& file, uint64_t bytes, const WriteOptions& options)
    : file_(file),
      direct_(OpenDirect(file, O_WRONLY)),
      bytes_(bytes),
      options_(options),
      memory_(BuffersOf(bytes, options) * kBlockBytes),
      next_write_(std::chrono::steady_clock::now()) {
  PERDURE_CHECK(options.buffers >= 8 && options.threads >= 1);
  for (uint64_t i = BuffersOf(bytes, options); i > 0; --i)
    free_.push_back(memory_.data() + (i - 1) * kBlockBytes);
  for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { Work(); });
}

BlockWriter::~BlockWriter() { (void)Finish(); }

uint64_t BlockWriter::BytesOf(uint64_t block) const {
  return std::min(kBlockBytes, bytes_ - block * kBlockBytes);
}

char* BlockWriter::Take() {
  std::unique_lock lock(mutex_);
  if (free_.empty()) changed_.notify_all();  // Whoever waits for a whole batch takes what there is.
  changed_.wait(lock, [this] { return !free_.empty() || !status_.ok(); });
  if (!status_.ok()) return nullptr;
  char* buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void BlockWriter::Put(uint64_t block, char* buffer) {
  const std::lock_guard lock(mutex_);
  waiting_.emplace(block, buffer);
  changed_.notify_all();
}

void BlockWriter::PutHole(uint64_t block) {
  static constexpr std::array<char, kDirectBytes> kZeros{};
  DigestStream stream;
  for (uint64_t left = BytesOf(block); left > 0;) {
    const uint64_t bytes = std::min<uint64_t>(left, kZeros.size());
    stream.Update(kZeros.data(), bytes);
    left -= bytes;
  }
  const std::lock_guard lock(mutex_);
  digests_[block] = stream.Finish();
}

absl::StatusOr<std::map<uint64_t, Digest>> BlockWriter::Finish() {
  {
    const std::lock_guard lock(mutex_);
    no_more_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  RETURN_IF_ERROR(status_);
  return std::move(digests_);
}

void BlockWriter::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    const Batch batch = NextBatch(lock);
    if (batch.empty()) return;
    std::vector<Digest> digests;
    absl::Status status = status_;
    lock.unlock();
    if (status.ok()) {
      for (const auto& [block, buffer] : batch) digests.push_back(DigestOf(buffer, BytesOf(block)));
      status = Write(batch);
    }
    lock.lock();
    status_.Update(status);
    for (size_t i = 0; i < batch.size(); ++i) {
      if (status.ok()) digests_[batch[i].first] = digests[i];
      free_.push_back(batch[i].second);
    }
    changed_.notify_all();
  }
}

// Of the blocks that wait, the first longest row of neighbours; no longer than a batch.
BlockWriter::Batch BlockWriter::LongestRow() const {
  Batch longest, row;
  for (const auto& block : waiting_) {
    if (!row.empty() && block.first != row.back().first + 1) row.clear();
    row.push_back(block);
    if (row.size() > longest.size()) longest = row;
    if (longest.size() == kBatchBlocks) break;
  }
  return longest;
}

// Waits for a whole batch: whoever fills may do so in several places of the file by turns, and few
// large transfers are faster than many small ones. Takes less when no more can come before buffers
// are free again. Empty: there is none any more.
BlockWriter::Batch BlockWriter::NextBatch(std::unique_lock<std::mutex>& lock) {
  Batch batch = LongestRow();
  while (batch.size() < kBatchBlocks && !no_more_ && (batch.empty() || !free_.empty())) {
    changed_.wait(lock);
    batch = LongestRow();
  }
  uint64_t bytes = 0;
  for (const auto& [block, buffer] : batch) {
    bytes += BytesOf(block);
    waiting_.erase(block);
  }
  if (!batch.empty() && options_.bytes_per_second > 0) WaitForBudget(lock, bytes);
  return batch;
}

void BlockWriter::WaitForBudget(std::unique_lock<std::mutex>& lock, uint64_t bytes) {
  const std::chrono::duration<double> cost(static_cast<double>(bytes) /
                                           static_cast<double>(options_.bytes_per_second));
  const auto start = std::max(next_write_, std::chrono::steady_clock::now());
  next_write_ = start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(cost);
  lock.unlock();
  std::this_thread::sleep_until(start);
  lock.lock();
}

absl::Status BlockWriter::Write(const Batch& batch) {
  const uint64_t offset = batch.front().first * kBlockBytes;
  std::vector<iovec> pieces;
  uint64_t bytes = 0;
  for (const auto& [block, buffer] : batch) {
    pieces.push_back({buffer, BytesOf(block)});
    bytes += pieces.back().iov_len;
  }
  if (direct_.is_open() && bytes % kDirectBytes == 0) {
    std::vector<iovec> direct_pieces = pieces;  // Consumed, also by a transfer that fails.
    const absl::Status status = direct_.WriteAt(offset, direct_pieces);
    // Also what a transfer that stopped short in the middle of a sector gives.
    if (!absl::IsInvalidArgument(status)) return status;
  }
  return file_.WriteAt(offset, pieces);
}

}  // namespace perdure
