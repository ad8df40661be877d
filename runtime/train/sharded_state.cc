#include "runtime/train/sharded_state.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/sharded_state_guards.h"

namespace perdure {
namespace {

// Operation numbers on the data group: exchanges, their sums and parameter gathers of a bucket
// never mix.
constexpr uint32_t kExchange = 0;
constexpr uint32_t kGather = 1U << 18;
constexpr uint32_t kSums = 1U << 19;

// Exchanges that may be under way at once. Enough that a bucket's messages travel behind the
// compute of several others, few enough that receiving takes a fraction of the gradient.
constexpr int kReceivePlaces = 4;

// Host memory through which state is filled and read where the device's is not the host's.
constexpr size_t kStagingBytes = size_t{256} << 20;

// Elements of each place where other replicas' gradients arrive: its widest run times D - 1.
std::vector<int64_t> ReceiveSizes(std::span<const int64_t> own_sizes, int replicas) {
  std::vector<int64_t> sizes(std::min<size_t>(kReceivePlaces, own_sizes.size()), 0);
  for (size_t b = 0; b < own_sizes.size(); ++b) {
    int64_t& size = sizes[b % sizes.size()];
    size = std::max(size, own_sizes[b] * (replicas - 1));
  }
  return sizes;
}

uint32_t Operation(uint32_t kind, int bucket) { return kind + static_cast<uint32_t>(bucket); }

}  // namespace

std::vector<OwnedRun> CutBucket(const Bucket& bucket, int replicas, int64_t rotation) {
  std::vector<OwnedRun> runs(static_cast<size_t>(replicas));
  int64_t total = 0;
  for (const PlacedAtom& atom : bucket.atoms) total += atom.count;
  int64_t before = 0;
  size_t next = 0;
  for (int piece = 0; piece < replicas; ++piece) {
    // An atom belongs to the piece in which its middle lies.
    const auto belongs = [&](const PlacedAtom& atom) {
      return (2 * before + atom.count) * replicas < 2 * total * (piece + 1);
    };
    OwnedRun run;
    run.first_atom = static_cast<int64_t>(next);
    while (next < bucket.atoms.size() && (piece == replicas - 1 || belongs(bucket.atoms[next]))) {
      before += bucket.atoms[next].count;
      ++next;
    }
    run.last_atom = static_cast<int64_t>(next);
    if (run.last_atom > run.first_atom) {
      const PlacedAtom& last = bucket.atoms[next - 1];
      run.begin = bucket.atoms[static_cast<size_t>(run.first_atom)].offset;
      run.end = last.offset + last.count;
    }
    runs[static_cast<size_t>((piece + rotation) % replicas)] = run;
  }
  return runs;
}

ShardedState::ShardedState(const Options& options, std::vector<Bucket> buckets,
                           const AtomTable* table, Ops* ops, Collectives* data)
    : options_(options),
      buckets_(std::move(buckets)),
      states_(buckets_.size()),
      table_(table),
      ops_(ops),
      data_(data),
      sync_(options.sync ? options.sync : [ops] { return ops->Sync(); }) {
  int64_t widest = 0;
  std::vector<int64_t> own_sizes;
  const int replicas = data_->size();
  for (size_t b = 0; b < buckets_.size(); ++b) {
    BucketState& state = states_[b];
    const Bucket& bucket = buckets_[b];
    PERDURE_CHECK(bucket.offset == arena_size_);
    state.runs = CutBucket(bucket, replicas, static_cast<int64_t>(b));
    const OwnedRun& own = state.runs[static_cast<size_t>(data_->index())];
    state.kept = options_.zero == 0
                     ? OwnedRun{0, bucket.size, 0, static_cast<int64_t>(bucket.atoms.size())}
                     : own;
    state.kept_offset = kept_size_;
    state.own_offset = owned_size_;
    arena_size_ += bucket.size;
    kept_size_ += state.kept.size();
    owned_size_ += own.size();
    own_sizes.push_back(own.size());
    widest = std::max(widest, bucket.size);
  }
  const auto allocate = [&](int64_t elements) {
    allocations_.push_back(ops_->Allocate(static_cast<size_t>(elements) * SizeOf(options_.dtype)));
    return allocations_.back();
  };
  if (options_.zero < 3) {
    parameters_ = allocate(arena_size_);
  } else {
    for (GatherSlot& slot : slots_) slot.data = allocate(widest);
    if (options_.dtype != DType::kF32) shard_ = allocate(kept_size_);
  }
  leaf_[0] = AllocateFloats(arena_size_);
  leaf_[1] = doubled() ? AllocateFloats(arena_size_) : leaf_[0];
  sums_ = AllocateFloats(owned_size_);
  int64_t receive_size = 0;
  for (const int64_t size : ReceiveSizes(own_sizes, replicas)) {
    places_.push_back({.offset = receive_size});
    receive_size += size;
  }
  receive_ = AllocateFloats(receive_size);
  if (options_.zero == 3 || options_.dtype != DType::kF32) master_ = AllocateFloats(kept_size_);
  exp_avg_ = AllocateFloats(kept_size_);
  exp_avg_sq_ = AllocateFloats(kept_size_);
  PlanUpdates();
  PlanSquares();
  if (options_.guard) MakeGuards();
}

ShardedState::~ShardedState() {
  // Something is under way only after an error. No peer may write into memory that is given back.
  const bool under_way = std::any_of(states_.begin(), states_.end(), [](const BucketState& state) {
    return !state.exchange.empty() || state.gathering;
  });
  Transport* transport = data_->transport();
  for (int peer = 0; under_way && peer < transport->size(); ++peer)
    if (peer != transport->rank()) transport->FailPeer(peer, "its state was dropped");
  guards_.reset();
  for (void* memory : allocations_) ops_->Free(memory);
  ops_->FreeHost(host_squares_);
}

float* ShardedState::AllocateFloats(int64_t count) {
  allocations_.push_back(ops_->Allocate(static_cast<size_t>(count) * sizeof(float)));
  return static_cast<float*>(allocations_.back());
}

// AdamW goes element by element, so atoms that neighbour each other in every array may go together:
// a few large runs instead of thousands of atoms.
void ShardedState::PlanUpdates() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const OwnedRun& kept = states_[static_cast<size_t>(b)].kept;
    for (int64_t a = kept.first_atom; a < kept.last_atom; ++a) {
      const PlacedAtom& placed = buckets_[static_cast<size_t>(b)].atoms[static_cast<size_t>(a)];
      const Atom& atom = table_->atoms()[static_cast<size_t>(placed.atom)];
      const bool decays = table_->tensors()[static_cast<size_t>(atom.tensor)].decays;
      const bool joins = !updates_.empty() && updates_.back().bucket == b &&
                         updates_.back().decays == decays &&
                         updates_.back().begin + updates_.back().count == placed.offset;
      if (joins)
        updates_.back().count += placed.count;
      else
        updates_.push_back({b, placed.offset, placed.count, decays});
    }
  }
}

void ShardedState::PlanSquares() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const OwnedRun& own = Own(b);
    const int64_t offset = states_[static_cast<size_t>(b)].own_offset;
    for (int64_t a = own.first_atom; a < own.last_atom; ++a) {
      const PlacedAtom& atom = buckets_[static_cast<size_t>(b)].atoms[static_cast<size_t>(a)];
      squares_runs_.push_back({offset + (atom.offset - own.begin), atom.count});
    }
  }
  const size_t bytes = squares_runs_.size() * sizeof(double);
  allocations_.push_back(ops_->Allocate(bytes));
  squares_ = static_cast<double*>(allocations_.back());
  host_squares_ = static_cast<double*>(ops_->AllocateHost(bytes));
}

ShardedState::Memory ShardedState::MemoryOf(const Options& options, std::span<const Bucket> buckets,
                                            int replicas, int replica) {
  int64_t arena = 0, owned = 0, owned_atoms = 0, widest = 0;
  std::vector<int64_t> own_sizes;
  for (size_t b = 0; b < buckets.size(); ++b) {
    arena += buckets[b].size;
    widest = std::max(widest, buckets[b].size);
    const OwnedRun own =
        CutBucket(buckets[b], replicas, static_cast<int64_t>(b))[static_cast<size_t>(replica)];
    own_sizes.push_back(own.size());
    owned += own.size();
    owned_atoms += own.last_atom - own.first_atom;
  }
  const int64_t kept = options.zero == 0 ? arena : owned;
  const auto width = static_cast<int64_t>(SizeOf(options.dtype));
  const bool bf16 = options.dtype != DType::kF32;
  Memory memory{.owned = owned};
  memory.parameters =
      options.zero < 3 ? arena * width : 2 * widest * width + (bf16 ? kept * width : 0);
  memory.gradients = 4 * (arena * (options.zero <= 1 && replicas > 1 ? 2 : 1) + owned);
  memory.optimizer = 4 * kept * (options.zero == 3 || bf16 ? 3 : 2);
  for (const int64_t size : ReceiveSizes(own_sizes, replicas)) memory.buffers += 4 * size;
  memory.buffers += owned_atoms * static_cast<int64_t>(sizeof(double));
  return memory;
}

// ---- where things are

const OwnedRun& ShardedState::Own(int bucket) const {
  return states_[static_cast<size_t>(bucket)].runs[static_cast<size_t>(data_->index())];
}

float* ShardedState::Leaf(int bucket, int64_t round) {
  return leaf_[static_cast<size_t>(round % 2)] + buckets_[static_cast<size_t>(bucket)].offset;
}

ShardedState::ReceivePlace& ShardedState::PlaceOf(int bucket) {
  return places_[static_cast<size_t>(bucket) % places_.size()];
}

// Where replica `replica`'s leaf of the own run arrives. REQUIRES: replica is not this one.
float* ShardedState::Receive(int bucket, int replica) {
  const int64_t place = replica < data_->index() ? replica : replica - 1;
  return receive_ + PlaceOf(bucket).offset + place * Own(bucket).size();
}

// Of each replica's run in the bucket, with elements of so many bytes.
std::vector<Extent> ShardedState::RunExtents(int bucket, size_t width) const {
  std::vector<Extent> extents;
  for (const OwnedRun& run : states_[static_cast<size_t>(bucket)].runs)
    extents.push_back(
        {static_cast<size_t>(run.begin) * width, static_cast<size_t>(run.size()) * width});
  return extents;
}

float* ShardedState::Kept(float* array, int bucket, int64_t element) const {
  const BucketState& state = states_[static_cast<size_t>(bucket)];
  return array + state.kept_offset + (element - state.kept.begin);
}

float* ShardedState::MasterOf(int bucket, int64_t element) {
  if (master_ != nullptr) return Kept(master_, bucket, element);
  return static_cast<float*>(parameters_) + buckets_[static_cast<size_t>(bucket)].offset + element;
}

// What the optimizer writes for compute to read: the arena, or the shard to be gathered from.
Matrix ShardedState::ParameterOf(int bucket, int64_t element, int64_t count) {
  const auto width = static_cast<int64_t>(SizeOf(options_.dtype));
  if (parameters_ != nullptr) {
    const int64_t at = buckets_[static_cast<size_t>(bucket)].offset + element;
    return Matrix(static_cast<char*>(parameters_) + at * width, options_.dtype, 1, count);
  }
  if (shard_ == nullptr) return Matrix(MasterOf(bucket, element), DType::kF32, 1, count);
  const BucketState& state = states_[static_cast<size_t>(bucket)];
  const int64_t at = state.kept_offset + (element - state.kept.begin);
  return Matrix(static_cast<char*>(shard_) + at * width, options_.dtype, 1, count);
}

std::vector<AtomState> ShardedState::AtomsOf(const std::function<OwnedRun(int)>& run_of) {
  std::vector<AtomState> atoms;
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const OwnedRun run = run_of(b);
    for (int64_t a = run.first_atom; a < run.last_atom; ++a) {
      const PlacedAtom& atom = buckets_[static_cast<size_t>(b)].atoms[static_cast<size_t>(a)];
      atoms.push_back({atom.atom,
                       {MasterOf(b, atom.offset), Kept(exp_avg_, b, atom.offset),
                        Kept(exp_avg_sq_, b, atom.offset)}});
    }
  }
  return atoms;
}

std::vector<AtomState> ShardedState::KeptAtoms() {
  return AtomsOf([this](int b) { return states_[static_cast<size_t>(b)].kept; });
}

std::vector<AtomState> ShardedState::OwnedAtoms() {
  return AtomsOf([this](int b) { return Own(b); });
}

std::vector<int64_t> ShardedState::OwnedAtomIndices(int d) const {
  std::vector<int64_t> indices;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const OwnedRun& run = states_[b].runs[static_cast<size_t>(d)];
    for (int64_t a = run.first_atom; a < run.last_atom; ++a)
      indices.push_back(buckets_[b].atoms[static_cast<size_t>(a)].atom);
  }
  return indices;
}

std::array<bool, kStatePartCount> ShardedState::SharedParts(int zero, DType dtype) {
  if (zero == 0) return {true, true, true};
  return {zero < 3 && dtype == DType::kF32, false, false};
}

std::vector<AtomState> ShardedState::SharedAtoms(int d) {
  const std::array<bool, kStatePartCount> shared = SharedParts(options_.zero, options_.dtype);
  std::vector<AtomState> atoms;
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const OwnedRun& run = states_[static_cast<size_t>(b)].runs[static_cast<size_t>(d)];
    for (int64_t a = run.first_atom; a < run.last_atom; ++a) {
      const PlacedAtom& atom = buckets_[static_cast<size_t>(b)].atoms[static_cast<size_t>(a)];
      AtomState state{.atom = atom.atom};
      if (shared[0]) state.parts[0] = MasterOf(b, atom.offset);
      if (shared[1]) state.parts[1] = Kept(exp_avg_, b, atom.offset);
      if (shared[2]) state.parts[2] = Kept(exp_avg_sq_, b, atom.offset);
      atoms.push_back(state);
    }
  }
  return atoms;
}

absl::Status ShardedState::FillOwned(
    const std::function<absl::Status(std::span<AtomState> atoms)>& fill) {
  if (ops_->DeviceIsHost()) {
    RETURN_IF_ERROR(sync_());
    std::vector<AtomState> owned = OwnedAtoms();
    return fill(owned);
  }
  return ForBatches([&](StateCopy& batch) -> absl::Status {
    RETURN_IF_ERROR(fill(batch.host()));
    batch.Upload(ops_);
    return sync_();
  });
}

absl::Status ShardedState::ReadOwned(
    const std::function<absl::Status(std::span<const AtomState> atoms)>& read) {
  if (ops_->DeviceIsHost()) {
    RETURN_IF_ERROR(sync_());
    return read(OwnedAtoms());
  }
  return ForBatches([&](StateCopy& batch) -> absl::Status {
    batch.Download(ops_);
    RETURN_IF_ERROR(sync_());
    return read(batch.host());
  });
}

// The owned atoms in batches that share one piece of host memory.
absl::Status ShardedState::ForBatches(const std::function<absl::Status(StateCopy& batch)>& what) {
  const std::vector<AtomState> owned = OwnedAtoms();
  std::vector<std::span<const AtomState>> batches;
  size_t largest = 0;
  for (size_t first = 0, last = 0; first < owned.size(); first = last) {
    size_t bytes = 0;
    while (last < owned.size()) {
      const size_t more = StateCopy::BytesOf({&owned[last], 1}, *table_);
      if (last > first && bytes + more > kStagingBytes) break;
      bytes += more;
      ++last;
    }
    batches.emplace_back(&owned[first], last - first);
    largest = std::max(largest, bytes);
  }
  void* staging = ops_->AllocateHost(largest);
  absl::Status status;
  for (size_t i = 0; i < batches.size() && status.ok(); ++i) {
    StateCopy batch(batches[i], *table_, staging);
    status = what(batch);
  }
  ops_->FreeHost(staging);
  return status;
}

absl::Status ShardedState::ShareState() {
  for (int b = 0; options_.zero == 0 && b < static_cast<int>(buckets_.size()); ++b) {
    const std::vector<Extent> extents = RunExtents(b, sizeof(float));
    for (float* whole : {MasterOf(b, 0), Kept(exp_avg_, b, 0), Kept(exp_avg_sq_, b, 0)})
      RETURN_IF_ERROR(data_->AllGatherV(whole, extents));
  }
  RecordState();
  return absl::OkStatus();
}

absl::Status ShardedState::PublishParameters() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const OwnedRun& kept = states_[static_cast<size_t>(b)].kept;
    if (master_ != nullptr && kept.size() > 0) {
      const Matrix parameter = ParameterOf(b, kept.begin, kept.size());
      const ConstMatrix master(MasterOf(b, kept.begin), DType::kF32, 1, kept.size());
      if (parameter.data != master.data) ops_->Copy(master, parameter);
    }
  }
  SealParameters();
  for (GatherSlot& slot : slots_) slot.bucket = -1;
  if (options_.zero == 1 || options_.zero == 2)
    for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) RETURN_IF_ERROR(StartGather(b));
  return absl::OkStatus();
}

// ---- parameters for compute

// Sends the own run to everybody and receives the others' into the arena; compute waits where it
// first needs them.
absl::Status ShardedState::StartGather(int bucket) {
  BucketState& state = states_[static_cast<size_t>(bucket)];
  PERDURE_CHECK(!state.gathering);
  std::vector<Transfer> transfers;
  const auto add = [&](Transfer::Kind kind, int d, const OwnedRun& run) {
    if (run.size() == 0) return;
    const Matrix at = ParameterOf(bucket, run.begin, run.size());
    transfers.push_back({kind, d, at.data, at.bytes()});
  };
  for (int d = 0; d < data_->size(); ++d)
    if (d != data_->index()) add(Transfer::Kind::kRecv, d, state.runs[static_cast<size_t>(d)]);
  for (int step = 1; step < data_->size(); ++step)
    add(Transfer::Kind::kSend, (data_->index() + step) % data_->size(), Own(bucket));
  if (transfers.empty()) return absl::OkStatus();
  state.gathering = true;
  state.gather = data_->Start(Operation(kGather, bucket), transfers);
  return absl::OkStatus();
}

absl::Status ShardedState::FinishGather(int bucket) {
  BucketState& state = states_[static_cast<size_t>(bucket)];
  if (!state.gathering) return absl::OkStatus();
  const absl::Status status = data_->WaitAll(state.gather);
  state.gathering = false;
  state.gather.clear();
  return status;
}

absl::StatusOr<const void*> ShardedState::Weights(int bucket) {
  data_->transport()->Progress();
  const auto width = static_cast<int64_t>(SizeOf(options_.dtype));
  if (options_.zero < 3) {
    RETURN_IF_ERROR(FinishGather(bucket));
    char* const weights =
        static_cast<char*>(parameters_) + buckets_[static_cast<size_t>(bucket)].offset * width;
    RETURN_IF_ERROR(FlipCopy(bucket, weights));
    return static_cast<const void*>(weights);
  }
  GatherSlot* slot = &slots_[slots_[0].used <= slots_[1].used ? 0 : 1];
  for (GatherSlot& candidate : slots_)
    if (candidate.bucket == bucket) slot = &candidate;
  slot->used = ++clock_;
  if (slot->bucket == bucket) return static_cast<const void*>(slot->data);
  // What compute has read of it is looked at before it goes.
  if (guards_ != nullptr && slot->bucket >= 0) guards_->copies.Look(slot->bucket, slot->data);
  slot->bucket = bucket;
  const OwnedRun& own = Own(bucket);
  if (own.size() > 0) {
    Matrix place(static_cast<char*>(slot->data) + own.begin * width, options_.dtype, 1, own.size());
    ops_->Copy(ParameterOf(bucket, own.begin, own.size()), place);
  }
  RETURN_IF_ERROR(data_->AllGatherV(slot->data, RunExtents(bucket, static_cast<size_t>(width))));
  RETURN_IF_ERROR(FlipCopy(bucket, slot->data));
  return static_cast<const void*>(slot->data);
}

void ShardedState::Release(int) {}  // The slot is reused when two later buckets have been gathered.

// ---- gradients

absl::Status ShardedState::BeginStep(int64_t leaves) {
  leaves_ = leaves;
  rounds_ = (leaves + data_->size() - 1) / data_->size();
  for (BucketState& state : states_) {
    PERDURE_CHECK(!state.exchanging);
    state.round = 0;
  }
  ops_->Zero(Matrix(sums_, DType::kF32, 1, owned_size_));
  if (guards_ != nullptr) {
    guards_->leaves.BeginStep(leaves, rounds_);
    guards_->copies.BeginStep();
  }
  return FlipState();
}

absl::StatusOr<float*> ShardedState::Gradients(int bucket) {
  // With one buffer, the leaf before must have left it.
  if (!doubled()) RETURN_IF_ERROR(FinishRound(bucket));
  return Leaf(bucket, states_[static_cast<size_t>(bucket)].round);
}

absl::Status ShardedState::GradientsReady(int bucket) {
  if (audits_) {
    guards_->audit.Produced(bucket, 0, Leaf(bucket, states_[static_cast<size_t>(bucket)].round));
    return absl::OkStatus();
  }
  // Everywhere buckets become ready in the same order, so nobody waits for one that waits for it.
  RETURN_IF_ERROR(FinishRound(bucket));
  if (data_->size() > 1) {
    ReceivePlace& place = PlaceOf(bucket);
    if (place.bucket >= 0) RETURN_IF_ERROR(FinishRound(place.bucket));
    place.bucket = bucket;
  }
  BucketState& state = states_[static_cast<size_t>(bucket)];
  const int64_t first_leaf = state.round * data_->size();
  const auto has_leaf = [&](int d) { return first_leaf + d < leaves_; };
  float* leaf = Leaf(bucket, state.round);
  const int self = data_->index();
  if (guards_ != nullptr && has_leaf(self)) guards_->leaves.Produced(bucket, state.round, leaf);
  if (has_leaf(self)) RETURN_IF_ERROR(FlipGradient(bucket, leaf));
  // Runs, and the sums of what was computed.
  std::vector<Transfer> transfers, sums;
  const auto add = [&](Transfer::Kind kind, int d, const OwnedRun& run, float* at) {
    if (run.size() == 0) return;
    transfers.push_back({kind, d, at, static_cast<size_t>(run.size()) * sizeof(float)});
    if (guards_ == nullptr) return;
    const bool sends = kind == Transfer::Kind::kSend;
    sums.push_back({kind, d,
                    sends ? guards_->leaves.ToSend(bucket, state.round, d)
                          : guards_->leaves.ToReceive(bucket, state.round, d),
                    sizeof(uint64_t)});
  };
  for (int d = 0; d < data_->size(); ++d)
    if (d != self && has_leaf(d)) add(Transfer::Kind::kRecv, d, Own(bucket), Receive(bucket, d));
  for (int step = 1; step < data_->size() && has_leaf(self); ++step) {
    const int d = (self + step) % data_->size();
    const OwnedRun& run = state.runs[static_cast<size_t>(d)];
    add(Transfer::Kind::kSend, d, run, leaf + run.begin);
  }
  if (!transfers.empty()) state.exchange = data_->Start(Operation(kExchange, bucket), transfers);
  if (!sums.empty()) {
    std::vector<RequestPtr> started = data_->Start(Operation(kSums, bucket), sums);
    std::move(started.begin(), started.end(), std::back_inserter(state.exchange));
  }
  state.exchanging = true;
  ++state.round;
  data_->transport()->Progress();
  return absl::OkStatus();
}

// Ends the exchange of the latest round of a bucket: leaves are added in leaf order, whatever came
// first.
absl::Status ShardedState::FinishRound(int bucket) {
  BucketState& state = states_[static_cast<size_t>(bucket)];
  if (!state.exchanging) return absl::OkStatus();
  state.exchanging = false;
  const absl::Status status = data_->WaitAll(state.exchange);
  state.exchange.clear();
  RETURN_IF_ERROR(status);
  const int64_t round = state.round - 1;
  if (Own(bucket).size() > 0) {
    RETURN_IF_ERROR(FlipReceived(bucket, round));
    AddLeaves(bucket, round);
  }
  if (guards_ != nullptr && round * data_->size() + data_->index() < leaves_)
    guards_->leaves.Again(bucket, round, Leaf(bucket, round));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> ShardedState::FinishGradients() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) RETURN_IF_ERROR(FinishRound(b));
  RETURN_IF_ERROR(FlipSum());
  LookAtStep();
  ops_->SumsOfSquares(sums_, squares_runs_, squares_);
  ops_->Download(squares_, squares_runs_.size() * sizeof(double), host_squares_);
  RETURN_IF_ERROR(sync_());
  JudgeOwnStep();
  return std::vector<double>(host_squares_, host_squares_ + squares_runs_.size());
}

// ---- update

// ZeRO 0: everybody needs every sum. The leaf buffer is free between steps.
absl::Status ShardedState::GatherSums() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    const BucketState& state = states_[static_cast<size_t>(b)];
    const OwnedRun& own = Own(b);
    float* all = Leaf(b, 0);
    if (own.size() > 0)
      ops_->Copy(ConstMatrix(sums_ + state.own_offset, DType::kF32, 1, own.size()),
                 Matrix(all + own.begin, DType::kF32, 1, own.size()));
    RETURN_IF_ERROR(data_->AllGatherV(all, RunExtents(b, sizeof(float))));
  }
  return absl::OkStatus();
}

const float* ShardedState::GradientOf(int bucket, int64_t element) {
  if (options_.zero == 0) return Leaf(bucket, 0) + element;
  return sums_ + states_[static_cast<size_t>(bucket)].own_offset + (element - Own(bucket).begin);
}

AdamWStep ShardedState::StepOf(int64_t optimizer_step, double rate, double gradient_scale,
                               bool decays) const {
  const OptimizerConfig& o = options_.optimizer;
  return {.step = optimizer_step,
          .rate = rate,
          .beta1 = o.beta1,
          .beta2 = o.beta2,
          .eps = o.eps,
          .weight_decay = decays ? o.weight_decay : 0,
          .gradient_scale = gradient_scale};
}

absl::Status ShardedState::Update(int64_t optimizer_step, double rate, double gradient_scale) {
  RETURN_IF_ERROR(Quiesce());
  ops_->AwaitDownloads();  // A copy of the state as it was may be under way.
  if (options_.zero == 0) RETURN_IF_ERROR(GatherSums());
  if (guards_ != nullptr && ops_->DeviceIsHost()) {
    RETURN_IF_ERROR(UpdateGuarded(optimizer_step, rate, gradient_scale));
  } else {
    for (const UpdateRun& run : updates_)
      ops_->AdamW(StepOf(optimizer_step, rate, gradient_scale, run.decays),
                  GradientOf(run.bucket, run.begin), MasterOf(run.bucket, run.begin),
                  Kept(exp_avg_, run.bucket, run.begin), Kept(exp_avg_sq_, run.bucket, run.begin),
                  ParameterOf(run.bucket, run.begin, run.count));
    RecordState();
    SealParameters();
  }
  for (GatherSlot& slot : slots_) slot.bucket = -1;
  if (options_.zero == 1 || options_.zero == 2)
    for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) RETURN_IF_ERROR(StartGather(b));
  return absl::OkStatus();
}

bool ShardedState::gathering() const {
  return std::any_of(states_.begin(), states_.end(),
                     [](const BucketState& state) { return state.gathering; });
}

absl::Status ShardedState::FinishGathers() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) RETURN_IF_ERROR(FinishGather(b));
  return absl::OkStatus();
}

absl::Status ShardedState::Quiesce() {
  for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
    RETURN_IF_ERROR(FinishRound(b));
    RETURN_IF_ERROR(FinishGather(b));
  }
  return absl::OkStatus();
}

}  // namespace perdure
