// How a ShardedState guards its memory; the state itself is in sharded_state.cc.
#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/sharded_state_guards.h"

namespace perdure {
namespace {

// Of an update in host memory: a piece and all that belongs to it stay in a core's cache.
constexpr int64_t kPieceElements = 16384;

}  // namespace

void ShardedState::MakeGuards() {
  std::vector<std::vector<OwnedRun>> runs;
  for (const BucketState& state : states_) runs.push_back(state.runs);
  const auto buckets = static_cast<int64_t>(states_.size());
  const int self = data_->index();
  guards_ = std::make_unique<Guards>(
      Guards{.state = StateGuard(ops_, table_, KeptAtoms()),
             .leaves = LeafSums(ops_, runs, self),
             .copies = CopySeals(ops_, options_.zero, options_.dtype, runs, self),
             .audit = LeafSums(ops_, runs, self),
             .sums = SumTable(ops_, buckets),
             .gradient = SumTable(ops_, buckets * data_->size()),
             .places = {},
             .positions = {},
             .verdict = {},
             .totals = {}});
  for (int b = 0; b < static_cast<int>(states_.size()); ++b) {
    const BucketState& state = states_[static_cast<size_t>(b)];
    for (int64_t a = state.kept.first_atom; a < state.kept.last_atom; ++a) {
      const PlacedAtom& placed = buckets_[static_cast<size_t>(b)].atoms[static_cast<size_t>(a)];
      const Atom& atom = table_->atoms()[static_cast<size_t>(placed.atom)];
      const auto owner = std::find_if(
          state.runs.begin(), state.runs.end(),
          [a](const OwnedRun& run) { return run.first_atom <= a && a < run.last_atom; });
      PERDURE_CHECK(owner != state.runs.end());
      guards_->positions[placed.atom] = guards_->places.size();
      guards_->places.push_back(
          {.atom = placed.atom,
           .bucket = b,
           .begin = placed.offset,
           .count = placed.count,
           .decays = table_->tensors()[static_cast<size_t>(atom.tensor)].decays,
           .replica = static_cast<int>(owner - state.runs.begin())});
    }
  }
}

void ShardedState::RecordState() {
  if (guards_ != nullptr) guards_->state.Record();
}

void ShardedState::SealParameters() {
  if (guards_ == nullptr) return;
  guards_->copies.BeginSeals();
  for (int b = 0; b < static_cast<int>(states_.size()); ++b)
    for (int d = 0; d < data_->size(); ++d) {
      const OwnedRun& run = states_[static_cast<size_t>(b)].runs[static_cast<size_t>(d)];
      if ((options_.zero == 0 || d == data_->index()) && run.size() > 0)
        guards_->copies.Seal(b, d, ParameterOf(b, run.begin, run.size()).data, 0, run.size());
    }
  guards_->copies.EndSeals();
}

// ---- gradients

// Leaves are added in leaf order. In host memory piece by piece: what is summed is in the cache
// when it is added.
void ShardedState::AddLeaves(int bucket, int64_t round) {
  const BucketState& state = states_[static_cast<size_t>(bucket)];
  const OwnedRun& own = Own(bucket);
  const bool guarded = guards_ != nullptr;
  const int64_t piece = guarded && ops_->DeviceIsHost() ? kPieceElements : own.size();
  for (int64_t from = 0; from < own.size(); from += piece) {
    const int64_t count = std::min(piece, own.size() - from);
    float* at = sums_ + state.own_offset + from;
    Matrix sum(at, DType::kF32, 1, count);
    if (guarded) guards_->leaves.Before(bucket, round, at, from, count);
    for (int d = 0; d < data_->size(); ++d) {
      if (round * data_->size() + d >= leaves_) break;
      const float* leaf =
          (d == data_->index() ? Leaf(bucket, round) + own.begin : Receive(bucket, d)) + from;
      if (guarded) guards_->leaves.Found(bucket, round, d, leaf, from, count);
      ops_->Add(ConstMatrix(leaf, DType::kF32, 1, count), sum);
    }
    if (guarded) guards_->leaves.After(bucket, round, at, from, count);
  }
}

// Behind the last exchange, before squares are taken of the sums.
void ShardedState::LookAtStep() {
  if (guards_ == nullptr) return;
  Guards& g = *guards_;
  g.sums.Zero();
  for (int b = 0; b < static_cast<int>(states_.size()); ++b) {
    const OwnedRun& own = Own(b);
    g.sums.Add(b, sums_ + states_[static_cast<size_t>(b)].own_offset, DType::kF32, 0, own.size());
    if (options_.zero < 3)
      g.copies.Look(b, ParameterOf(b, 0, buckets_[static_cast<size_t>(b)].size).data);
    else if (own.size() > 0)
      g.copies.LookAtOwn(b, ParameterOf(b, own.begin, own.size()).data);
  }
  if (options_.zero == 3)
    for (const GatherSlot& slot : slots_)
      if (slot.bucket >= 0) g.copies.Look(slot.bucket, slot.data);
  if (!ops_->DeviceIsHost()) g.state.Look();
  g.sums.Download();
  g.leaves.Download();
  g.copies.Download();
}

// Of what LookAtStep has made, once the device was waited for.
void ShardedState::JudgeOwnStep() {
  if (guards_ == nullptr) return;
  Guards& g = *guards_;
  g.verdict = g.leaves.Judge();
  const std::vector<uint64_t> totals = g.leaves.Totals();
  for (size_t b = 0; b < totals.size(); ++b)
    if (g.sums.host()[b] != totals[b])
      g.verdict.Include(
          {.kind = Verdict::Kind::kOwn,
           .words = fmt::format("the sum of gradients of bucket {} changed in memory behind the "
                                "last leaf",
                                b)});
  g.verdict.Include(g.copies.JudgeOwn());
  if (!ops_->DeviceIsHost()) g.verdict.Include(g.state.Judge());
}

std::vector<uint64_t> ShardedState::GuardWords() const {
  PERDURE_CHECK(guards_ != nullptr);
  std::vector<uint64_t> words = guards_->copies.Words();
  const std::vector<uint64_t> totals = guards_->leaves.Totals();
  words.insert(words.end(), totals.begin(), totals.end());
  return words;
}

Verdict ShardedState::JudgeStep(const std::vector<uint64_t>& words) {
  PERDURE_CHECK(guards_ != nullptr);
  const size_t buckets = states_.size(), replicas = static_cast<size_t>(data_->size());
  PERDURE_CHECK(words.size() == 2 * buckets * replicas);
  std::vector<uint64_t> seals;
  guards_->totals.clear();
  for (size_t d = 0; d < replicas; ++d) {
    const auto begin = words.begin() + static_cast<int64_t>(2 * buckets * d);
    const auto middle = begin + static_cast<int64_t>(buckets);
    seals.insert(seals.end(), begin, middle);
    guards_->totals.insert(guards_->totals.end(), middle, middle + static_cast<int64_t>(buckets));
  }
  guards_->verdict.Include(guards_->copies.Judge(seals));
  return guards_->verdict;
}

const uint64_t* ShardedState::SumsOf(int64_t atom) const {
  PERDURE_CHECK(guards_ != nullptr);
  return guards_->state.SumsOf(guards_->positions.at(atom));
}

absl::StatusOr<std::vector<uint64_t>> ShardedState::SumsNow(
    std::span<const AtomState> atoms) const {
  PERDURE_CHECK(guards_ != nullptr);
  if (!ops_->DeviceIsHost()) RETURN_IF_ERROR(sync_());
  std::vector<uint64_t> sums;
  for (const AtomState& atom : atoms) {
    const uint64_t* of_atom = guards_->state.SumsNow(guards_->positions.at(atom.atom));
    sums.insert(sums.end(), of_atom, of_atom + kStatePartCount);
  }
  return sums;
}

std::vector<uint64_t> ShardedState::LeafSumsOfStep() const { return guards_->leaves.OfStep(); }

std::vector<uint64_t> ShardedState::LeafSumsOf(int64_t round) const {
  return guards_->leaves.OfLeaf(round);
}

void ShardedState::BeginAudit() {
  PERDURE_CHECK(guards_ != nullptr && !audits_);
  audits_ = true;
  guards_->audit.BeginStep(data_->size(), 1);
}

absl::StatusOr<std::vector<uint64_t>> ShardedState::EndAudit() {
  audits_ = false;
  guards_->audit.Download();
  RETURN_IF_ERROR(sync_());
  return guards_->audit.OfLeaf(0);
}

// ---- update

// In host memory, piece by piece: looked at, updated, recorded while it is in the cache.
absl::Status ShardedState::UpdateGuarded(int64_t optimizer_step, double rate,
                                         double gradient_scale) {
  Guards& g = *guards_;
  const bool alike = options_.dtype == DType::kF32;
  g.gradient.Zero();
  g.state.BeginPieces();
  if (alike) g.copies.BeginSeals();
  for (size_t i = 0; i < g.places.size(); ++i) {
    const KeptPlace& place = g.places[i];
    const BucketState& state = states_[static_cast<size_t>(place.bucket)];
    const int64_t run_begin = state.runs[static_cast<size_t>(place.replica)].begin;
    const int64_t at = int64_t{place.bucket} * data_->size() + place.replica;
    const AdamWStep step = StepOf(optimizer_step, rate, gradient_scale, place.decays);
    for (int64_t from = 0; from < place.count; from += kPieceElements) {
      const int64_t count = std::min(kPieceElements, place.count - from);
      const int64_t begin = place.begin + from;
      const float* gradient = GradientOf(place.bucket, begin);
      const Matrix parameter = ParameterOf(place.bucket, begin, count);
      g.state.LookAt(i, from, count);
      g.gradient.Add(at, gradient, DType::kF32, begin - run_begin, count);
      ops_->AdamW(step, gradient, MasterOf(place.bucket, begin),
                  Kept(exp_avg_, place.bucket, begin), Kept(exp_avg_sq_, place.bucket, begin),
                  parameter);
      g.state.RecordAt(i, from, count);
      if (alike)
        g.copies.Seal(place.bucket, place.replica, parameter.data, begin - run_begin, count);
    }
  }
  if (alike)
    g.copies.EndSeals();
  else
    SealParameters();
  g.gradient.Download();
  Verdict verdict = g.state.EndPieces();
  for (size_t b = 0; b < states_.size(); ++b)
    for (size_t d = 0; d < states_[b].runs.size(); ++d) {
      const bool read = options_.zero == 0 || static_cast<int>(d) == data_->index();
      if (read &&
          g.gradient.host()[b * states_[b].runs.size() + d] != g.totals[d * states_.size() + b])
        verdict.Include({.kind = Verdict::Kind::kOwn,
                         .words = fmt::format(
                             "the gradient of bucket {}, of replica {}'s run, changed in memory "
                             "before the update",
                             b, d)});
    }
  return verdict.kind == Verdict::Kind::kFine ? absl::OkStatus() : Corruption(verdict.words);
}

// ---- flips on purpose

bool ShardedState::TakePlanted(FlipPlace place, Flip* flip) {
  const auto at = std::find_if(planted_.begin(), planted_.end(),
                               [place](const Flip& planted) { return planted.place == place; });
  if (at == planted_.end()) return false;
  *flip = *at;
  planted_.erase(at);
  return true;
}

absl::Status ShardedState::FlipBit(void* data, DType dtype, int64_t elements, const Flip& flip) {
  const auto width = static_cast<int64_t>(SizeOf(dtype));
  char* at = static_cast<char*>(data) + flip.element % elements * width;
  uint32_t bits = 0;
  ops_->Download(at, static_cast<size_t>(width), &bits);
  RETURN_IF_ERROR(sync_());
  bits ^= uint32_t{1} << (flip.bit % (8 * width));
  ops_->Upload(&bits, static_cast<size_t>(width), at);
  return sync_();
}

absl::Status ShardedState::FlipState() {
  constexpr FlipPlace kPlaces[kStatePartCount] = {FlipPlace::kParameter, FlipPlace::kExpAvg,
                                                  FlipPlace::kExpAvgSq};
  Flip flip;
  for (size_t part = 0; part < kStatePartCount; ++part)
    while (TakePlanted(kPlaces[part], &flip)) {
      int64_t element = flip.element % std::max<int64_t>(kept_size_, 1);
      // The atom that has it; padding is nobody's.
      for (const AtomState& state : KeptAtoms()) {
        const int64_t count = table_->atoms()[static_cast<size_t>(state.atom)].count;
        if (element < count) {
          const Flip within{.place = flip.place, .element = element, .bit = flip.bit};
          RETURN_IF_ERROR(FlipBit(state.parts[part], DType::kF32, count, within));
          break;
        }
        element -= count;
      }
    }
  return absl::OkStatus();
}

absl::Status ShardedState::FlipGradient(int bucket, float* leaf) {
  Flip flip;
  if (!TakePlanted(FlipPlace::kGradient, &flip)) return absl::OkStatus();
  return FlipBit(leaf, DType::kF32, buckets_[static_cast<size_t>(bucket)].size, flip);
}

absl::Status ShardedState::FlipReceived(int bucket, int64_t round) {
  Flip flip;
  for (int d = 0; d < data_->size(); ++d)
    if (d != data_->index() && round * data_->size() + d < leaves_ &&
        TakePlanted(FlipPlace::kReceived, &flip))
      return FlipBit(Receive(bucket, d), DType::kF32, Own(bucket).size(), flip);
  return absl::OkStatus();
}

absl::Status ShardedState::FlipSum() {
  Flip flip;
  while (owned_size_ > 0 &&
         (TakePlanted(FlipPlace::kSum, &flip) || TakePlanted(FlipPlace::kReceived, &flip)))
    RETURN_IF_ERROR(FlipBit(sums_, DType::kF32, owned_size_, flip));
  return absl::OkStatus();
}

// Of another replica's run, where it is a copy at all.
absl::Status ShardedState::FlipCopy(int bucket, void* weights) {
  Flip flip;
  const std::vector<OwnedRun>& runs = states_[static_cast<size_t>(bucket)].runs;
  for (int d = 0; d < data_->size(); ++d) {
    const OwnedRun& run = runs[static_cast<size_t>(d)];
    const bool copied = data_->size() == 1 || options_.zero == 0 || d != data_->index();
    if (!copied || run.size() == 0 || !TakePlanted(FlipPlace::kCopy, &flip)) continue;
    const auto width = static_cast<int64_t>(SizeOf(options_.dtype));
    return FlipBit(static_cast<char*>(weights) + run.begin * width, options_.dtype, run.size(),
                   flip);
  }
  return absl::OkStatus();
}

}  // namespace perdure
