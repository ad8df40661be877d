// Guards the parameters that compute reads, which ZeRO copies from rank to rank. A **seal** is the
// sum (kernels/word_sum.h) of a replica's run of a bucket in the compute dtype, made by who
// computed it, behind the update. Before the next update every replica sums what its compute has
// read in the step. Its own run it compares with its own seal, and says so if that is another;
// copies of others' with the seals that they send along with the step's statistics.
//
// Under ZeRO 0 nobody copies: all compute all, and their seals must agree.
//
// The trainer's thread; enqueues like the ops.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"
#include "runtime/train/corruption.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/sum_table.h"

namespace perdure {

class CopySeals {
 public:
  // runs: [bucket][replica]. `self`: the replica that this is.
  CopySeals(Ops* ops, int zero, DType dtype, std::vector<std::vector<OwnedRun>> runs, int self);

  // ---- by who computed the parameters
  void BeginSeals();
  // Of elements [begin, begin + count) of the run of `replica`, at `data`.
  void Seal(int bucket, int replica, const void* data, int64_t begin, int64_t count);
  void EndSeals();

  // ---- by who reads them
  void BeginStep();
  // A bucket as compute has it, whole: once in a step, or as often as it is gathered.
  void Look(int bucket, const void* parameters);
  // The own run where it was computed. Not where Look sees that place.
  void LookAtOwn(int bucket, const void* own);
  void Download();

  // ---- once the device was waited for
  Verdict JudgeOwn() const;
  // One for each bucket: the own runs', under ZeRO 0 of all.
  std::vector<uint64_t> Words() const;
  // `words`: every replica's, one behind the other.
  Verdict Judge(std::span<const uint64_t> words) const;

 private:
  int64_t At(int bucket, int replica) const { return int64_t{bucket} * replicas_ + replica; }
  bool Computes(int replica) const { return zero_ == 0 || replica == self_; }
  Verdict JudgeAgreement(std::span<const uint64_t> words) const;

  Ops* ops_;
  const int zero_;
  const DType dtype_;
  const std::vector<std::vector<OwnedRun>> runs_;
  const int self_, replicas_;
  SumTable seals_, found_;  // [bucket][replica].
  SumTable own_;            // [bucket]
  std::vector<bool> looked_at_own_;
  std::vector<uint64_t> looks_;  // By bucket: sums in found_ are of so many looks together.
};

}  // namespace perdure
