// What the step asks of the ranks it shares work with: collectives among a fixed list of ranks over
// the memory that the ops compute in. Three implementations: Group (host memory, over a Transport),
// StagedGroup (device memory through pinned host memory and a Group), NcclGroup (device memory).
//
// Every call takes its place in the order of the ops' stream: it reads what was enqueued there
// before it, and what is enqueued after the call (after WaitAll, for Start) reads its results. So
// callers never synchronise. Sums are balanced binary trees over member index in fp32, in every
// implementation: the bits are the same.
//
// Every member calls the same collectives in the same order with the same sizes. Errors: the first
// one wins; after an error the object must not be used again. Transport::Cancel is such an error
// for every call and Watch(): whatever it waits for, another member or the device, it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/comm/transport.h"

namespace perdure {

// A piece of a buffer, in bytes.
struct Extent {
  size_t begin = 0;
  size_t bytes = 0;
};

// How the members' calls of Start relate to each other: what an implementation without tags (NCCL)
// matches messages by.
enum class StartOrder : uint8_t {
  kSame,        // Every member starts its exchanges in the same order.
  kNeighbours,  // A pipeline: see NewNcclGroup.
};

// One message of an exchange.
struct Transfer {
  enum class Kind : uint8_t { kSend, kRecv };
  Kind kind = Kind::kSend;
  int member = 0;
  void* data = nullptr;  // Only read by sends.
  size_t bytes = 0;
};

class Collectives {
 public:
  virtual ~Collectives() = default;

  virtual int size() const = 0;
  virtual int index() const = 0;  // The caller's place among the members.
  // The host transport of these ranks: lost peers are told there.
  virtual Transport* transport() const = 0;
  // How device memory travels, for people; empty where all memory is the host's.
  virtual std::string Describe() const { return ""; }

  // out holds size() blocks of `bytes`, block i from member i. in may be out + index() * bytes.
  virtual absl::Status AllGather(const void* in, size_t bytes, void* out) = 0;
  // Block i is extents[i] of `buffer`; the caller's own is already in place.
  virtual absl::Status AllGatherV(void* buffer, std::span<const Extent> extents) = 0;
  // fp32. Each member gives `partial`, size() blocks of `count` floats; out (count floats) is block
  // index() of the sum over members. REQUIRES: size() is a power of two.
  virtual absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) = 0;
  // fp32. out (count floats) = the sum over members, on every member. out may be partial.
  virtual absl::Status AllReduceTree(const float* partial, int64_t count, float* out) = 0;

  // Starts messages that belong together and returns at once. `operation` (below 2^20) is equal on
  // both sides of a message and unique between two members while under way; messages of one
  // operation and direction match in order. They never mix with the collectives above.
  virtual std::vector<RequestPtr> Start(uint32_t operation,
                                        std::span<const Transfer> transfers) = 0;
  virtual absl::Status WaitAll(std::span<const RequestPtr> requests) = 0;

  // What is known to be wrong, without waiting: Cancelled if the transport is, Unavailable if a
  // member is lost or a library has failed (OK where every call tells that itself).
  virtual absl::Status Watch() = 0;
  // Ends what is under way on the device, as far as that can be done from here: a process that
  // cannot go on is to be killed all the same. Afterwards the object can only be destroyed.
  virtual void Abort() {}

  // Seconds that the host spent waiting for other members inside this object since it was made.
  virtual double wait_seconds() const = 0;
};

}  // namespace perdure
