#include "runtime/train/checkpoint_saver.h"

#include <chrono>
#include <cstring>
#include <filesystem>

#include "ckpt/verify.h"
#include "kernels/word_sum.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

WriteOptions WriteOptionsOf(const CheckpointConfig& config) {
  return {.bytes_per_second = static_cast<uint64_t>(config.write_mib_per_second) << 20};
}

CheckpointSaver::CheckpointSaver(const Options& options, const AtomTable* table,
                                 const Writers* writers, int rank, std::vector<AtomState> live,
                                 Ops* ops, RankHost* host)
    : options_(options),
      table_(table),
      writers_(writers),
      place_(writers->ranks[static_cast<size_t>(rank)]),
      live_(std::move(live)),
      ops_(ops),
      sync_(options.sync ? options.sync : [ops] { return ops->Sync(); }),
      host_(host),
      freezes_(options.asynchronous || !ops->DeviceIsHost()) {
  if (freezes_) {
    memory_ = ops_->AllocateHost(StateCopy::BytesOf(live_, *table_));
    frozen_.emplace(live_, *table_, memory_);
  }
  if (!options_.asynchronous) return;
  busy_ = true;  // Until the memory is there.
  thread_ = std::thread([this, touch = ops_->DeviceIsHost()] {
    // Once here, so that freezing costs a copy and no page faults. Pinned memory has its pages.
    if (touch) std::memset(memory_, 0, StateCopy::BytesOf(live_, *table_));
    Work();
  });
}

CheckpointSaver::~CheckpointSaver() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }
  if (memory_ != nullptr) ops_->FreeHost(memory_);
}

int64_t CheckpointSaver::MemoryOf(const WriteOptions& options, bool freezes, int64_t elements) {
  const int64_t bytes = elements * kStatePartCount * static_cast<int64_t>(sizeof(float));
  const auto buffers = static_cast<int64_t>(options.buffers) * static_cast<int64_t>(kBlockBytes);
  return std::min(buffers, bytes + 2 * static_cast<int64_t>(kBlockBytes)) + (freezes ? bytes : 0);
}

absl::Status CheckpointSaver::Save(int64_t step, std::optional<Trail> trail) {
  const Clock::time_point began = Clock::now();
  SavedRun saved{.step = step, .nonce = options_.nonce, .trail = std::move(trail)};
  if (!options_.asynchronous) {
    if (frozen_.has_value()) frozen_->Download(ops_);
    RETURN_IF_ERROR(sync_());
    if (options_.sums) {
      ASSIGN_OR_RETURN(sums_, options_.sums());
    }
    saved.freeze_seconds = Since(began);
    saved.copy_seconds = saved.freeze_seconds;
    const absl::Status status = SaveFrozen(std::move(saved));
    stall_seconds_ += Since(began);
    return status;
  }
  bool busy = false;
  {
    const std::lock_guard lock(mutex_);
    busy = busy_;
  }
  if (busy) host_->Waiting(step);
  RETURN_IF_ERROR(Wait());
  saved.wait_seconds = Since(began);
  // The next step computes beside the copies; its update waits for them.
  frozen_->DownloadBehind(ops_);
  if (options_.sums) {
    ASSIGN_OR_RETURN(sums_, options_.sums());
  }
  saved.freeze_seconds = Since(began) - saved.wait_seconds;
  stall_seconds_ += Since(began);
  const std::lock_guard lock(mutex_);
  next_ = std::move(saved);
  busy_ = true;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status CheckpointSaver::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !busy_; });
  return status_;
}

void CheckpointSaver::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    busy_ = false;
    changed_.notify_all();
    changed_.wait(lock, [this] { return busy_ || stop_; });
    if (!busy_) return;
    SavedRun saved = std::move(next_);
    lock.unlock();
    const Clock::time_point began = Clock::now();
    absl::Status status = ops_->SyncDownloads();
    saved.copy_seconds = saved.freeze_seconds + Since(began);
    if (status.ok()) status = SaveFrozen(std::move(saved));
    lock.lock();
    status_.Update(status);
  }
}

absl::Status CheckpointSaver::SaveFrozen(SavedRun saved) {
  const std::string file =
      place_.file >= 0 ? writers_->files[static_cast<size_t>(place_.file)].file : "";
  ASSIGN_OR_RETURN(SaveOrder order, host_->Frozen(saved.step, file, saved.nonce));
  while (order.kind != SaveOrder::Kind::kSettled) {
    if (order.kind == SaveOrder::Kind::kVerify) {
      RETURN_IF_ERROR(host_->Verified(saved.step, order.part.file, Verify(saved.step, order)));
    } else {
      const Clock::time_point began = Clock::now();
      saved.nonce = order.nonce;
      saved.run.reset();
      if (place_.file >= 0) saved.status = Write(saved, &saved.run.emplace());
      if (!saved.status.ok()) saved.run.reset();
      saved.write_seconds = Since(began);
      RETURN_IF_ERROR(host_->Saved(saved));
    }
    ASSIGN_OR_RETURN(order, host_->NextOrder(saved.step));
  }
  return absl::OkStatus();
}

absl::Status CheckpointSaver::Write(const SavedRun& saved, RunReport* report) const {
  const std::string directory = (std::filesystem::path(options_.run_directory) / "ckpt" /
                                 CheckpointName(saved.step, options_.stamp.generation, saved.nonce))
                                    .string();
  RETURN_IF_ERROR(MakeDirectories(directory));
  PartStamp stamp = options_.stamp;
  stamp.step = saved.step;
  ASSIGN_OR_RETURN(
      const auto writer,
      RunWriter::Create(directory, *table_, writers_->files[static_cast<size_t>(place_.file)],
                        static_cast<size_t>(place_.run), stamp, options_.write));
  const std::span<const AtomState> states =
      frozen_.has_value() ? frozen_->host() : std::span<const AtomState>(live_);
  for (const AtomState& state : states) RETURN_IF_ERROR(writer->Append(state));
  ASSIGN_OR_RETURN(*report, writer->Finish());
  return CompareSums(states);
}

// Behind the digests: whatever they were made of must be what the update left.
absl::Status CheckpointSaver::CompareSums(std::span<const AtomState> written) const {
  for (size_t i = 0; i < written.size() && !sums_.empty(); ++i)
    for (size_t part = 0; part < kStatePartCount; ++part) {
      const int64_t count = table_->atoms()[static_cast<size_t>(written[i].atom)].count;
      const uint64_t sum =
          WordSum(written[i].parts[part], static_cast<size_t>(count) * sizeof(float));
      if (sum != sums_[i * kStatePartCount + part])
        return DataLoss("atom {} changed in memory before it was written; the file is not used",
                        written[i].atom);
    }
  return absl::OkStatus();
}

absl::Status CheckpointSaver::Verify(int64_t step, const SaveOrder& order) const {
  const std::string directory = (std::filesystem::path(options_.run_directory) / "ckpt" /
                                 CheckpointName(step, options_.stamp.generation, order.nonce))
                                    .string();
  PartStamp stamp = options_.stamp;
  stamp.step = step;
  return VerifyPart(directory, order.part, *table_, stamp, nullptr);
}

}  // namespace perdure
