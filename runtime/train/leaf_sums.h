// Guards gradients from the moment in which a leaf's is computed until it is used in the update:
// sums (kernels/word_sum.h) of each owner's run of a bucket are made
//   produced   as soon as the bucket's gradient of a leaf is complete; they travel with the run;
//   again      of what was sent, when the exchange has ended: it must not have changed meanwhile;
//   found      of what the owner is about to add: what came from others, and its own;
//   before     of the owner's sum over leaves, before the next leaf is added to it, or it is used;
//   after      of the same, behind the addition.
// All are compared at once, when the host waits for the device anyway.
//
// The trainer's thread; enqueues like the ops.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"
#include "runtime/train/corruption.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/sum_table.h"

namespace perdure {

class LeafSums {
 public:
  // runs: [bucket][replica]. `self`: the replica that this is.
  LeafSums(Ops* ops, std::vector<std::vector<OwnedRun>> runs, int self);

  void BeginStep(int64_t leaves, int64_t rounds);

  // `leaf`: the bucket's gradient, whole.
  void Produced(int bucket, int64_t round, const float* leaf);
  void Again(int bucket, int64_t round, const float* leaf);
  // Of elements [begin, begin + count) of the own run, at `data`.
  void Found(int bucket, int64_t round, int replica, const float* data, int64_t begin,
             int64_t count);
  void Before(int bucket, int64_t round, const float* data, int64_t begin, int64_t count);
  void After(int bucket, int64_t round, const float* data, int64_t begin, int64_t count);
  // Device memory: what is sent with the run of `owner`, and where that of `replica` arrives.
  uint64_t* ToSend(int bucket, int64_t round, int owner) const;
  uint64_t* ToReceive(int bucket, int64_t round, int replica) const;

  void Download();
  // Once the device was waited for.
  Verdict Judge() const;
  // Of the own sum over leaves, by bucket: as the last leaf left it. Likewise.
  std::vector<uint64_t> Totals() const;
  // Of the leaf that this replica made in `round`, by bucket: one number for all of its runs.
  std::vector<uint64_t> OfLeaf(int64_t round) const;
  // Of all its leaves of the step, as produced.
  std::vector<uint64_t> OfStep() const;

 private:
  int64_t At(int bucket, int64_t round, int replica) const {
    return (round * buckets() + bucket) * replicas_ + replica;
  }
  int64_t AtTotal(int bucket, int64_t round) const { return round * buckets() + bucket; }
  int64_t buckets() const { return static_cast<int64_t>(runs_.size()); }
  const OwnedRun& Own(int bucket) const {
    return runs_[static_cast<size_t>(bucket)][static_cast<size_t>(self_)];
  }
  bool HasLeaf(int64_t round, int replica) const { return round * replicas_ + replica < leaves_; }
  Verdict JudgeRound(int bucket, int64_t round) const;

  Ops* ops_;
  const std::vector<std::vector<OwnedRun>> runs_;
  const int self_, replicas_;
  int64_t leaves_ = 0, rounds_ = 0, rounds_most_ = 0;
  // [round][bucket][replica]; in `produced_` and `again_` the replica is the owner, else the
  // producer.
  SumTable produced_, again_, announced_, found_;
  SumTable before_, after_;  // [round][bucket].
};

}  // namespace perdure
