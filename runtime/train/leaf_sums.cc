#include "runtime/train/leaf_sums.h"

#include <utility>

#include "runtime/base/status.h"

namespace perdure {

LeafSums::LeafSums(Ops* ops, std::vector<std::vector<OwnedRun>> runs, int self)
    : ops_(ops),
      runs_(std::move(runs)),
      self_(self),
      replicas_(static_cast<int>(runs_.front().size())),
      produced_(ops, 0),
      again_(ops, 0),
      announced_(ops, 0),
      found_(ops, 0),
      before_(ops, 0),
      after_(ops, 0) {}

void LeafSums::BeginStep(int64_t leaves, int64_t rounds) {
  leaves_ = leaves;
  rounds_ = rounds;
  if (rounds > rounds_most_) {
    rounds_most_ = rounds;
    for (SumTable* table : {&produced_, &again_, &announced_, &found_})
      *table = SumTable(ops_, rounds * buckets() * replicas_);
    for (SumTable* table : {&before_, &after_}) *table = SumTable(ops_, rounds * buckets());
  }
  for (SumTable* table : {&produced_, &again_, &announced_, &found_, &before_, &after_})
    table->Zero();
}

void LeafSums::Produced(int bucket, int64_t round, const float* leaf) {
  const std::vector<OwnedRun>& runs = runs_[static_cast<size_t>(bucket)];
  for (int d = 0; d < replicas_; ++d) {
    const OwnedRun& run = runs[static_cast<size_t>(d)];
    produced_.Add(At(bucket, round, d), leaf + run.begin, DType::kF32, 0, run.size());
  }
}

// The own run is looked at when it is added.
void LeafSums::Again(int bucket, int64_t round, const float* leaf) {
  const std::vector<OwnedRun>& runs = runs_[static_cast<size_t>(bucket)];
  for (int d = 0; d < replicas_; ++d) {
    const OwnedRun& run = runs[static_cast<size_t>(d)];
    if (d != self_) again_.Add(At(bucket, round, d), leaf + run.begin, DType::kF32, 0, run.size());
  }
}

void LeafSums::Found(int bucket, int64_t round, int replica, const float* data, int64_t begin,
                     int64_t count) {
  found_.Add(At(bucket, round, replica), data, DType::kF32, begin, count);
}

void LeafSums::Before(int bucket, int64_t round, const float* data, int64_t begin, int64_t count) {
  before_.Add(AtTotal(bucket, round), data, DType::kF32, begin, count);
}

void LeafSums::After(int bucket, int64_t round, const float* data, int64_t begin, int64_t count) {
  after_.Add(AtTotal(bucket, round), data, DType::kF32, begin, count);
}

uint64_t* LeafSums::ToSend(int bucket, int64_t round, int owner) const {
  return produced_.device(At(bucket, round, owner));
}

uint64_t* LeafSums::ToReceive(int bucket, int64_t round, int replica) const {
  return announced_.device(At(bucket, round, replica));
}

void LeafSums::Download() {
  for (SumTable* table : {&produced_, &again_, &announced_, &found_, &before_, &after_})
    table->Download();
}

Verdict LeafSums::JudgeRound(int bucket, int64_t round) const {
  const auto own = [](std::string words) {
    return Verdict{.kind = Verdict::Kind::kOwn, .words = std::move(words)};
  };
  const auto at = [&](const SumTable& table, int replica) {
    return table.host()[static_cast<size_t>(At(bucket, round, replica))];
  };
  Verdict verdict;
  for (int d = 0; d < replicas_; ++d) {
    if (HasLeaf(round, self_) && d != self_ && at(again_, d) != at(produced_, d))
      verdict.Include(own(fmt::format(
          "the gradient of bucket {}, round {}, changed in memory while it was sent to replica {}",
          bucket, round, d)));
    if (!HasLeaf(round, d) || Own(bucket).size() == 0) continue;
    if (d == self_ && at(found_, d) != at(produced_, d))
      verdict.Include(own(
          fmt::format("the gradient of bucket {}, round {}, changed in memory before it was added",
                      bucket, round)));
    if (d != self_ && at(found_, d) != at(announced_, d))
      verdict.Include(
          {.kind = Verdict::Kind::kReceived,
           .peer = d,
           .words = fmt::format("the gradient of bucket {}, round {}, came from replica {} as "
                                "another one than it says that it sent",
                                bucket, round, d)});
  }
  const auto total = [&](const SumTable& table, int64_t of) {
    return table.host()[static_cast<size_t>(AtTotal(bucket, of))];
  };
  if (total(before_, round) != (round == 0 ? 0 : total(after_, round - 1)))
    verdict.Include(own(fmt::format(
        "the sum of gradients of bucket {} changed in memory before round {}", bucket, round)));
  return verdict;
}

Verdict LeafSums::Judge() const {
  Verdict verdict;
  for (int64_t round = 0; round < rounds_; ++round)
    for (int b = 0; b < static_cast<int>(buckets()); ++b) verdict.Include(JudgeRound(b, round));
  return verdict;
}

std::vector<uint64_t> LeafSums::Totals() const {
  std::vector<uint64_t> totals;
  for (int b = 0; b < static_cast<int>(buckets()); ++b)
    totals.push_back(after_.host()[static_cast<size_t>(AtTotal(b, rounds_ - 1))]);
  return totals;
}

std::vector<uint64_t> LeafSums::OfLeaf(int64_t round) const {
  std::vector<uint64_t> sums;
  for (int b = 0; b < static_cast<int>(buckets()); ++b) {
    uint64_t& sum = sums.emplace_back(0);
    for (int d = 0; d < replicas_; ++d)
      sum +=
          produced_.host()[static_cast<size_t>(At(b, round, d))] * static_cast<uint64_t>(2 * d + 1);
  }
  return sums;
}

std::vector<uint64_t> LeafSums::OfStep() const {
  const auto size = static_cast<int64_t>(rounds_ * buckets() * replicas_);
  return {produced_.host().begin(), produced_.host().begin() + size};
}

}  // namespace perdure
