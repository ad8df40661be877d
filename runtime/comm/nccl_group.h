// Collectives over device memory by NCCL, GPU to GPU. The only door to NCCL: its header and the
// CUDA runtime's stay behind it, and no_nccl.cc stands in for it where they were not found.
//
// NCCL moves bytes and adds nothing: its own reductions choose their order. Sums are an all-to-all
// of shares and the ops' TreeSum, so the bits are the Group's.
//
// Collectives run on the ops' stream. Exchanges run on streams of their own, so that they overlap
// what is computed: an exchange begins after what the ops' stream held at Start, and what the ops'
// stream is given after WaitAll runs after it. The host waits for neither.
//
// NCCL has no tags: on one communicator the n-th send to a member meets the n-th receive from it,
// and all wait for the ones before. What makes that right depends on how Start is called:
//
// - StartOrder::kSame. One communicator and one stream. Every member starts its exchanges in the
//   same order (leaving out those that it has no part in), so the earliest one that is not finished
//   has been started by all who take part, or will be without waiting for a later one.
// - StartOrder::kNeighbours: a pipeline whose members are its stages in order, in a ring. A message
//   is for the next stage if its operation is even (activations), for the one before if it is odd
//   (gradients). Sends and receives of a stage interleave otherwise than its neighbours', so every
//   stage has four lanes, each a communicator of two members with a stream of its own: even to the
//   next, even from the one before, odd to the one before, odd from the next. No send stands behind
//   a receive, no message behind one of another direction. On a lane messages meet in the order in
//   which they were started, which must be that of the operations' messages on both sides: true for
//   the passes of PipelineSchedule (tests/train/pipeline_schedule_test). It cannot deadlock where
//   tagged messages cannot: a message waits in addition only for those before it on its lane, and
//   the receiver has posted, and needs, those before it.
//
// Connections are made at construction. Later a Start never waits for another member; a collective
// may, once per kind and size class, when NCCL connects what it had not used before.
//
// Kernels that wait for messages hold multiprocessors, so their number is bounded per communicator;
// and they must be able to run at once: a process with more streams than
// CUDA_DEVICE_MAX_CONNECTIONS (8 unless set) may have one stand behind another. It should be 32,
// and CUDA_MODULE_LOADING EAGER: loading a kernel at its first use may wait for all that run.
// launch/local_ranks.cc sets both for the ranks that it starts.
//
// Failure: NCCL notices a dead peer late or never, so the host transport is asked (PeerWatch).
// Calls give up when they have to wait for a lost member; Watch() tells; SyncWatching bounds the
// wait for the device. Abort() ends kernels that wait for ever, as well as NCCL can: the process is
// the unit of recovery, and is killed if it does not end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

bool NcclIsBuilt();
// Of the library that is loaded: "2.28.9". Empty in a build without NCCL.
std::string NcclVersion();

// Which GPU computes for `ops`: equal for two ranks if and only if they share one. Empty in a build
// without NCCL, or if the device does not say.
std::string GpuIdentity(Ops* ops);

// Members and channel as for Group; `ops` is of the CUDA backend and outlives the group. Every
// member calls this at the same point; it waits for the others. FailedPrecondition if the library
// is too old or members share a GPU; Unavailable if a member is lost.
absl::StatusOr<std::unique_ptr<Collectives>> NewNcclGroup(Transport* transport,
                                                          std::vector<int> members,
                                                          uint32_t channel, Ops* ops,
                                                          StartOrder start_order);

}  // namespace perdure
