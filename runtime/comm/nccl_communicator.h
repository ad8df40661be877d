// One communicator of NCCL, non-blocking: no call into it keeps the host longer than somebody can
// be expected to answer. Part of nccl_group.cc; the only header that names NCCL.
//
// A non-blocking communicator hands each call to a thread of its own and says "in progress": until
// that has ended, nothing may be assumed to be on the stream, and nobody else may use it. So every
// call here ends with Finish(), which polls, and gives up when a member is lost.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/comm/group.h"

namespace perdure {

// An error of the CUDA runtime; `what` names the call.
absl::Status CudaStatus(cudaError_t error, const char* what);
// An error of NCCL. What a lost peer or link may have caused is Unavailable.
absl::Status NcclStatus(ncclResult_t result, const char* what);

// Knows which members of a group are lost: from each of them it waits for a message that never
// comes, and the host transport ends that wait when the member is gone.
class LostPeers {
 public:
  // `group` is used for nothing else from now on.
  explicit LostPeers(Group* group);

  // Without waiting. Unavailable names a member that is gone; Cancelled: the transport is.
  absl::Status Check();

 private:
  Group* group_;
  std::vector<RequestPtr> endless_;
};

// Says when a wait is over: some time after a member was lost (what it had sent before it left may
// still arrive), at once when the transport is cancelled, or at a bound. Sleeps between the looks,
// hardly at first.
class Patience {
 public:
  explicit Patience(LostPeers* lost);

  // OK: look again.
  absl::Status Wait(const char* what);

 private:
  LostPeers* lost_;
  int looks_ = 0;
  absl::Duration sleep_;
  absl::Time begin_, check_, give_up_;
  absl::Status fault_;
};

class NcclCommunicator {
 public:
  struct Options {
    int device = 0;
    int size = 1;
    int index = 0;
    int ctas_max = 0;  // Multiprocessors that its kernels may hold; 0: NCCL decides.
  };
  // `lost` outlives it.
  NcclCommunicator(const Options& options, LostPeers* lost) : options_(options), lost_(lost) {}
  // Aborts, unless Retire was called; then waits for that, within bounds.
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  // Meets the other members; each calls it with the same id.
  absl::Status Init(const ncclUniqueId& id);

  // REQUIRES: Init() went well, and not Retire().
  ncclComm_t handle() const { return handle_; }
  // Ends a call that returned `result`: it is on its stream afterwards.
  absl::Status Finish(ncclResult_t result, const char* what);
  // Issues what `calls` (returns an ncclResult_t) does as one group.
  template <typename Calls>
  absl::Status Grouped(const char* what, const Calls& calls) {
    ncclResult_t result = ncclGroupStart();
    if (result == ncclSuccess) {
      const ncclResult_t inside = calls();
      result = ncclGroupEnd();
      if (inside != ncclSuccess && inside != ncclInProgress) result = inside;
    }
    return Finish(result, what);
  }
  // Without waiting: the error that NCCL has noticed, if any.
  absl::Status Check() const;

  // Begins to give the communicator back, in a thread of its own: both ways may wait for other
  // members or for the device. `in_order`: after all that was issued has been done everywhere;
  // otherwise kernels that wait are told to end.
  void Retire(bool in_order);

  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Closing;

  const Options options_;
  LostPeers* lost_;
  ncclComm_t handle_ = nullptr;
  std::shared_ptr<Closing> closing_;
  double wait_seconds_ = 0;
};

}  // namespace perdure
