#include "runtime/comm/nccl_communicator.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Nobody sends with this operation.
constexpr uint32_t kEndless = (1U << 20) - 1;
// Calls of Progress after which every transport has looked for lost peers.
constexpr int kProgressCalls = 64;

// A call takes some ten microseconds; the meeting of members takes seconds, minutes at thousands.
constexpr int kLooksAwake = 256;
constexpr absl::Duration kSleepMin = absl::Microseconds(20);
constexpr absl::Duration kSleepMax = absl::Milliseconds(1);
constexpr absl::Duration kCheckEvery = absl::Milliseconds(10);
constexpr absl::Duration kLostPatience = absl::Seconds(2);
constexpr absl::Duration kPatienceMax = absl::Minutes(10);
constexpr absl::Duration kRetirePatience = absl::Seconds(20);

bool IsError(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }

// Finalize waits until all that was issued has been done by all members: what this rank sent may
// still be on its way when its kernels have ended.
void Close(ncclComm_t handle) {
  const absl::Time deadline = absl::Now() + kRetirePatience;
  ncclResult_t result = ncclCommFinalize(handle);
  while (result == ncclInProgress && absl::Now() < deadline) {
    absl::SleepFor(kSleepMax);
    if (ncclCommGetAsyncError(handle, &result) != ncclSuccess) result = ncclInternalError;
  }
  if (result == ncclSuccess)
    (void)ncclCommDestroy(handle);
  else
    (void)ncclCommAbort(handle);
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  return Unavailable("{}: {} ({}); see nvidia-smi and the kernel's log for the device's state",
                     what, cudaGetErrorString(error), cudaGetErrorName(error));
}

absl::Status NcclStatus(ncclResult_t result, const char* what) {
  if (!IsError(result)) return absl::OkStatus();
  const bool misuse = result == ncclInvalidArgument || result == ncclInvalidUsage;
  return ErrorStatus(misuse ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable,
                     "{}: {} ({}); NCCL_DEBUG=WARN makes NCCL say more", what,
                     ncclGetErrorString(result), ncclGetLastError(nullptr));
}

// The requests are dropped unfinished in the end: they have no memory that could be written to.
LostPeers::LostPeers(Group* group) : group_(group) {
  for (int member = 0; member < group->size(); ++member)
    if (member != group->index()) endless_.push_back(group->Recv(member, kEndless, nullptr, 0));
}

absl::Status LostPeers::Check() {
  RETURN_IF_ERROR(group_->Watch());
  for (int i = 0; i < kProgressCalls; ++i) group_->transport()->Progress();
  for (const RequestPtr& request : endless_)
    if (request->done()) RETURN_IF_ERROR(request->status());
  return absl::OkStatus();
}

Patience::Patience(LostPeers* lost) : lost_(lost), sleep_(kSleepMin) {}

absl::Status Patience::Wait(const char* what) {
  if (++looks_ < kLooksAwake) {
    std::this_thread::yield();
    return absl::OkStatus();
  }
  absl::SleepFor(sleep_);
  sleep_ = std::min(2 * sleep_, kSleepMax);
  const absl::Time now = absl::Now();
  if (looks_ == kLooksAwake) {
    begin_ = check_ = now;
    give_up_ = now + kPatienceMax;
  }
  if (now >= give_up_)
    return fault_.ok() ? Unavailable(
                             "{}: the other members did not answer within {}; one of them "
                             "hangs, or the network drops what it does not know",
                             what, absl::FormatDuration(now - begin_))
                       : fault_;
  if (now < check_ || !fault_.ok()) return absl::OkStatus();
  check_ = now + kCheckEvery;
  fault_ = lost_->Check();
  if (absl::IsCancelled(fault_)) return fault_;
  if (!fault_.ok()) give_up_ = now + kLostPatience;
  return absl::OkStatus();
}

struct NcclCommunicator::Closing {
  const absl::Time deadline = absl::Now() + 2 * kRetirePatience;
  std::atomic<bool> done{false};
};

NcclCommunicator::~NcclCommunicator() {
  Retire(/*in_order=*/false);
  // Past the deadline the thread is left to itself: the process is about to end, or to be killed.
  while (closing_ != nullptr && !closing_->done && absl::Now() < closing_->deadline)
    absl::SleepFor(kSleepMax);
}

absl::Status NcclCommunicator::Init(const ncclUniqueId& id) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options_.device), "cudaSetDevice"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (options_.ctas_max > 0) config.maxCTAs = options_.ctas_max;
  const ncclResult_t result =
      ncclCommInitRankConfig(&handle_, options_.size, id, options_.index, &config);
  if (handle_ == nullptr) {
    RETURN_IF_ERROR(NcclStatus(result, "ncclCommInitRankConfig"));
    return Internal("ncclCommInitRankConfig gave no communicator and no error");
  }
  const absl::Status status = Finish(result, "ncclCommInitRankConfig");
  if (!absl::IsInternal(status)) return status;
  return FailedPrecondition("{}; members that share a GPU need the device transport 'staged'",
                            Message(status));
}

absl::Status NcclCommunicator::Finish(ncclResult_t result, const char* what) {
  RETURN_IF_ERROR(NcclStatus(result, what));
  PERDURE_CHECK(handle_ != nullptr);
  const absl::Time begin = absl::Now();
  Patience patience(lost_);
  while (true) {
    ncclResult_t state = ncclInProgress;
    absl::Status status =
        NcclStatus(ncclCommGetAsyncError(handle_, &state), "ncclCommGetAsyncError");
    if (status.ok()) status = NcclStatus(state, what);
    if (status.ok() && state == ncclInProgress) {
      status = patience.Wait(what);
      if (status.ok()) continue;
    }
    wait_seconds_ += absl::ToDoubleSeconds(absl::Now() - begin);
    return status;
  }
}

absl::Status NcclCommunicator::Check() const {
  if (handle_ == nullptr) return absl::OkStatus();
  ncclResult_t state = ncclSuccess;
  RETURN_IF_ERROR(NcclStatus(ncclCommGetAsyncError(handle_, &state), "ncclCommGetAsyncError"));
  return NcclStatus(state, "an exchange between GPUs");
}

// Abort first tells the kernels to end, then waits for them. They may stand in a stream behind
// those of another communicator that has not been told yet, hence a thread for each.
void NcclCommunicator::Retire(bool in_order) {
  if (handle_ == nullptr) return;
  closing_ = std::make_shared<Closing>();
  std::thread([handle = std::exchange(handle_, nullptr), device = options_.device, in_order,
               closing = closing_] {
    (void)cudaSetDevice(device);
    if (in_order)
      Close(handle);
    else
      (void)ncclCommAbort(handle);
    closing->done = true;
  }).detach();
}

}  // namespace perdure
