// A rank's parameters, gradients and optimizer state, and how they are shared along the data axis.
//
// Each bucket is cut at atom boundaries into D runs; replica d owns one of them. Gradients: when a
// leaf's gradient of a bucket is ready, every replica sends each owner its run and goes on
// computing; the owner adds the leaves in leaf order, so the sum does not depend on D. What is
// received stands in a window of a few buckets: a bucket's exchange ends when the one that takes
// its place is ready. Then, by ZeRO stage (Rajbhandari et al. 2020):
//   0  sums are gathered, every replica updates everything;
//   1  the owner updates its run, parameters are gathered;
//   2  as 1, and the leaf's gradient is held once instead of twice: a bucket's exchange must end
//   before the next leaf
//      writes there;
//   3  as 2, and parameters stay sharded: a bucket is gathered before use and dropped afterwards.
// Nothing here changes a bit of the result.
//
// One thread. A step enqueues and waits for messages; the host waits for the device once, in
// FinishGradients. State and gradients are device memory: the host fills and reads them through
// FillOwned and ReadOwned. Errors are the data axis' and the device's.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ckpt/checkpoint.h"
#include "kernels/ops.h"
#include "model/access.h"
#include "model/arena.h"
#include "runtime/base/atoms.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/sync_watching.h"
#include "runtime/train/corruption.h"
#include "runtime/train/flip.h"
#include "runtime/train/run_config.h"
#include "runtime/train/state_copy.h"

namespace perdure {

// A replica's run of a bucket.
struct OwnedRun {
  int64_t begin = 0;  // Elements within the bucket.
  int64_t end = 0;
  int64_t first_atom = 0;  // Range within Bucket::atoms.
  int64_t last_atom = 0;
  int64_t size() const { return end - begin; }
};

// The run of each of `replicas` in a bucket: balanced by elements; which replica gets which run
// rotates with `rotation`, so that buckets of few atoms do not all burden the same ones.
std::vector<OwnedRun> CutBucket(const Bucket& bucket, int replicas, int64_t rotation);

class ShardedState final : public ParameterAccess {
 public:
  struct Options {
    DType dtype = DType::kF32;
    int zero = 1;
    OptimizerConfig optimizer;
    bool guard =
        false;      // State and gradients are guarded: state_guard.h, leaf_sums.h, copy_seals.h.
    SyncCall sync;  // Waits for the device; empty: as ops->Sync().
  };
  // `data`: the D ranks that hold the same (p, t). Pointers must outlive this.
  ShardedState(const Options& options, std::vector<Bucket> buckets, const AtomTable* table,
               Ops* ops, Collectives* data);
  ~ShardedState() override;
  ShardedState(const ShardedState&) = delete;
  ShardedState& operator=(const ShardedState&) = delete;

  const std::vector<Bucket>& buckets() const { return buckets_; }

  // --- state: fill, read
  // -------------------------------------------------------------------------------------------
  // Atoms whose state this rank keeps (all for ZeRO 0, else the owned ones), with pointers to it in
  // device memory.
  std::vector<AtomState> KeptAtoms();
  // The owned ones alone: what this rank is responsible for in a checkpoint and in norms.
  std::vector<AtomState> OwnedAtoms();
  // Atoms that replica `d` of this group owns, in bucket order.
  std::vector<int64_t> OwnedAtomIndices(int d) const;
  // Parts of the state that every replica keeps of all atoms, once parameters are gathered.
  static std::array<bool, kStatePartCount> SharedParts(int zero, DType dtype);
  // The atoms of OwnedAtomIndices(d) with pointers to the parts that this rank keeps, too; others
  // are null.
  std::vector<AtomState> SharedAtoms(int d);
  // Lets `fill` write the state of the owned atoms: it is called with all of them, or with one
  // batch behind the other where their memory is not the host's, and writes every part of each. Its
  // error ends it.
  absl::Status FillOwned(const std::function<absl::Status(std::span<AtomState> atoms)>& fill);
  // Lets `read` see the state of the owned atoms, as it stands in device memory; likewise in order
  // and in batches.
  absl::Status ReadOwned(const std::function<absl::Status(std::span<const AtomState> atoms)>& read);
  // After the owned atoms' state was filled: the other kept ones get theirs from their owners, so
  // that nobody reads from disk what another replica reads.
  absl::Status ShareState();
  // After the kept atoms' state was filled: derives and gathers the parameters that compute uses.
  absl::Status PublishParameters();

  // --- a step
  // -------------------------------------------------------------------------------------------------------
  // `leaves` of the step; leaf r * D + d is replica d's in round r.
  absl::Status BeginStep(int64_t leaves);
  int64_t rounds() const { return rounds_; }
  absl::StatusOr<const void*> Weights(int bucket) override;
  void Release(int bucket) override;
  absl::StatusOr<float*> Gradients(int bucket) override;
  absl::Status GradientsReady(int bucket) override;
  // Ends the exchanges; then sums of squares of the owned atoms' gradients, in the order of
  // OwnedAtomIndices(own).
  absl::StatusOr<std::vector<double>> FinishGradients();
  // AdamW on the kept atoms, gradients scaled first; then parameters start to be gathered.
  // Corruption: what it was to update, or to update by, is not what it should be.
  absl::Status Update(int64_t optimizer_step, double rate, double gradient_scale);
  // Waits for everything under way: before a checkpoint or the end.
  absl::Status Quiesce();
  // Whether parameters are still on their way from their owners, and waiting for them alone.
  bool gathering() const;
  absl::Status FinishGathers();

  // --- guarded memory
  // ---------------------------------------------------------------------------------------------
  bool guarded() const { return guards_ != nullptr; }
  // Behind FinishGradients: what this replica has to tell the others of its data group, equally
  // many numbers each.
  std::vector<uint64_t> GuardWords() const;
  // How the step's sums look, given those of all replicas.
  Verdict JudgeStep(const std::vector<uint64_t>& words);
  // Of a kept atom, by part; see StateGuard. REQUIRES: guarded.
  const uint64_t* SumsOf(int64_t atom) const;
  // Of kept atoms, by part; waits for the device where it has to. REQUIRES: guarded.
  absl::StatusOr<std::vector<uint64_t>> SumsNow(std::span<const AtomState> atoms) const;
  // Of the step's gradients as this replica computed them, by round, bucket and owner.
  std::vector<uint64_t> LeafSumsOfStep() const;
  // Of one of its leaves, by bucket.
  std::vector<uint64_t> LeafSumsOf(int64_t round) const;
  // From BeginAudit on GradientsReady makes sums and exchanges nothing; the step's sum stays as it
  // is. EndAudit waits for the device and returns the leaf's, as LeafSumsOf has them.
  void BeginAudit();
  absl::StatusOr<std::vector<uint64_t>> EndAudit();
  // Flips a bit in the step that begins next, which the guards should notice.
  void Plant(const Flip& flip) { planted_.push_back(flip); }

  // Device bytes by kind, as allocated. Keys of plan's memory_bytes_per_rank.
  struct Memory {
    int64_t parameters = 0, gradients = 0, optimizer = 0, buffers = 0;
    int64_t owned = 0;  // Elements.
    int64_t total() const { return parameters + gradients + optimizer + buffers; }
  };
  static Memory MemoryOf(const Options& options, std::span<const Bucket> buckets, int replicas,
                         int replica);

 private:
  struct BucketState {
    std::vector<OwnedRun> runs;  // By replica.
    OwnedRun kept;               // What state is kept of: the whole bucket, or the own run.
    int64_t kept_offset = 0;     // Of `kept` in the state arrays.
    int64_t own_offset = 0;      // Of the own run in sums_.
    int64_t round = 0;           // Of the leaf whose gradient is being summed.
    bool exchanging = false;     // Round `round - 1` is under way.
    std::vector<RequestPtr> exchange;
    bool gathering = false;
    std::vector<RequestPtr> gather;  // Of parameters.
  };
  // Room for (D - 1) runs of one bucket; buckets take turns.
  struct ReceivePlace {
    int64_t offset = 0;  // In receive_.
    int bucket = -1;     // Whose exchange it serves now.
  };
  // Neighbouring kept atoms that AdamW treats alike.
  struct UpdateRun {
    int bucket = 0;
    int64_t begin = 0;  // Within the bucket.
    int64_t count = 0;
    bool decays = true;
  };
  struct GatherSlot {  // ZeRO 3: one gathered bucket.
    void* data = nullptr;
    int bucket = -1;
    uint64_t used = 0;
  };

  struct Guards;
  // A kept atom, where it is.
  struct KeptPlace {
    int64_t atom = 0;
    int bucket = 0;
    int64_t begin = 0;  // Within the bucket.
    int64_t count = 0;
    bool decays = true;
    int replica = 0;  // That owns it.
  };

  const OwnedRun& Own(int bucket) const;
  bool doubled() const { return options_.zero <= 1 && data_->size() > 1; }
  float* Leaf(int bucket, int64_t round);
  ReceivePlace& PlaceOf(int bucket);
  float* Receive(int bucket, int replica);
  std::vector<Extent> RunExtents(int bucket, size_t width) const;
  float* Kept(float* array, int bucket, int64_t element) const;
  float* MasterOf(int bucket, int64_t element);
  Matrix ParameterOf(int bucket, int64_t element, int64_t count);
  void PlanUpdates();
  void PlanSquares();
  absl::Status ForBatches(const std::function<absl::Status(StateCopy& batch)>& what);
  absl::Status FinishRound(int bucket);
  absl::Status StartGather(int bucket);
  absl::Status FinishGather(int bucket);
  absl::Status GatherSums();
  void MakeGuards();
  void RecordState();
  void SealParameters();
  void AddLeaves(int bucket, int64_t round);
  void LookAtStep();
  void JudgeOwnStep();
  const float* GradientOf(int bucket, int64_t element);
  AdamWStep StepOf(int64_t optimizer_step, double rate, double gradient_scale, bool decays) const;
  absl::Status UpdateGuarded(int64_t optimizer_step, double rate, double gradient_scale);
  bool TakePlanted(FlipPlace place, Flip* flip);
  absl::Status FlipBit(void* data, DType dtype, int64_t elements, const Flip& flip);
  absl::Status FlipState();
  absl::Status FlipGradient(int bucket, float* leaf);
  absl::Status FlipReceived(int bucket, int64_t round);
  absl::Status FlipSum();
  absl::Status FlipCopy(int bucket, void* weights);
  std::vector<AtomState> AtomsOf(const std::function<OwnedRun(int)>& run);
  float* AllocateFloats(int64_t count);

  Options options_;
  std::vector<Bucket> buckets_;
  std::vector<BucketState> states_;
  const AtomTable* table_;
  Ops* ops_;
  Collectives* data_;
  const SyncCall sync_;
  int64_t arena_size_ = 0, kept_size_ = 0, owned_size_ = 0;
  int64_t leaves_ = 0, rounds_ = 0;

  void* parameters_ = nullptr;    // [arena] compute dtype; ZeRO < 3.
  void* shard_ = nullptr;         // [kept] compute dtype; ZeRO 3 with bf16.
  std::array<float*, 2> leaf_{};  // [arena] fp32.
  float* sums_ = nullptr;         // [owned]
  float* receive_ = nullptr;
  std::vector<ReceivePlace> places_;
  float* master_ = nullptr;      // [kept]; null when parameters_ serves (fp32, ZeRO < 3).
  float* exp_avg_ = nullptr;     // [kept]
  float* exp_avg_sq_ = nullptr;  // [kept]
  std::array<GatherSlot, 2> slots_;
  uint64_t clock_ = 0;
  std::vector<UpdateRun> updates_;
  std::vector<ElementRun> squares_runs_;  // Of the owned atoms, in sums_.
  double* squares_ = nullptr;             // Theirs, device,
  double* host_squares_ = nullptr;        // and host.
  std::vector<void*> allocations_;
  std::unique_ptr<Guards> guards_;  // Null: none.
  bool audits_ = false;
  std::vector<Flip> planted_;
};

}  // namespace perdure
