#include "runtime/train/copy_seals.h"

#include <algorithm>
#include <map>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

CopySeals::CopySeals(Ops* ops, int zero, DType dtype, std::vector<std::vector<OwnedRun>> runs,
                     int self)
    : ops_(ops),
      zero_(zero),
      dtype_(dtype),
      runs_(std::move(runs)),
      self_(self),
      replicas_(static_cast<int>(runs_.front().size())),
      seals_(ops, static_cast<int64_t>(runs_.size()) * replicas_),
      found_(ops, seals_.size()),
      own_(ops, static_cast<int64_t>(runs_.size())),
      looked_at_own_(runs_.size()),
      looks_(runs_.size()) {}

void CopySeals::BeginSeals() { seals_.Zero(); }

void CopySeals::Seal(int bucket, int replica, const void* data, int64_t begin, int64_t count) {
  seals_.Add(At(bucket, replica), data, dtype_, begin, count);
}

void CopySeals::EndSeals() { seals_.Download(); }

void CopySeals::BeginStep() {
  found_.Zero();
  own_.Zero();
  std::fill(looks_.begin(), looks_.end(), 0);
  std::fill(looked_at_own_.begin(), looked_at_own_.end(), false);
}

void CopySeals::Look(int bucket, const void* parameters) {
  std::vector<WordRun> runs;
  const auto width = static_cast<int64_t>(SizeOf(dtype_));
  for (int d = 0; d < replicas_; ++d) {
    const OwnedRun& run = runs_[static_cast<size_t>(bucket)][static_cast<size_t>(d)];
    runs.push_back({.begin = run.begin * width,
                    .bytes = run.size() * width,
                    .first = 0,
                    .sum = At(bucket, d)});
  }
  found_.Add(parameters, runs);
  ++looks_[static_cast<size_t>(bucket)];
}

void CopySeals::LookAtOwn(int bucket, const void* own) {
  const OwnedRun& run = runs_[static_cast<size_t>(bucket)][static_cast<size_t>(self_)];
  own_.Add(bucket, own, dtype_, 0, run.size());
  looked_at_own_[static_cast<size_t>(bucket)] = true;
}

void CopySeals::Download() {
  found_.Download();
  own_.Download();
}

Verdict CopySeals::JudgeOwn() const {
  for (size_t b = 0; b < runs_.size(); ++b) {
    const auto bucket = static_cast<int>(b);
    const auto wrong = [&](const char* what) {
      return Verdict{
          .kind = Verdict::Kind::kOwn,
          .words = fmt::format(
              "{} of bucket {} in memory are not what the update before left there", what, b)};
    };
    const auto own = static_cast<size_t>(At(bucket, self_));
    if (looked_at_own_[b] && own_.host()[b] != seals_.host()[own]) return wrong("parameters");
    for (int d = 0; d < replicas_; ++d) {
      const auto at = static_cast<size_t>(At(bucket, d));
      if (Computes(d) && found_.host()[at] != looks_[b] * seals_.host()[at])
        return wrong("parameters that compute reads");
    }
  }
  return {};
}

std::vector<uint64_t> CopySeals::Words() const {
  std::vector<uint64_t> words;
  for (size_t b = 0; b < runs_.size(); ++b) {
    uint64_t& word = words.emplace_back(0);
    for (int d = 0; d < replicas_; ++d)
      if (Computes(d))
        word += seals_.host()[static_cast<size_t>(At(static_cast<int>(b), d))] *
                (zero_ == 0 ? static_cast<uint64_t>(2 * d + 1) : 1);
  }
  return words;
}

Verdict CopySeals::Judge(std::span<const uint64_t> words) const {
  const size_t buckets = runs_.size();
  PERDURE_CHECK(words.size() == buckets * static_cast<size_t>(replicas_));
  if (zero_ == 0) return JudgeAgreement(words);
  for (size_t b = 0; b < buckets; ++b)
    for (int d = 0; d < replicas_; ++d) {
      const uint64_t found = found_.host()[static_cast<size_t>(At(static_cast<int>(b), d))];
      if (d != self_ && found != looks_[b] * words[static_cast<size_t>(d) * buckets + b])
        return {.kind = Verdict::Kind::kReceived,
                .peer = d,
                .words = fmt::format("the copy of bucket {}'s parameters that compute has read is "
                                     "not what replica {} has computed",
                                     b, d)};
    }
  return {};
}

// Most are right. Where as many say one thing as another nobody knows.
Verdict CopySeals::JudgeAgreement(std::span<const uint64_t> words) const {
  const size_t buckets = runs_.size();
  std::map<std::vector<uint64_t>, std::vector<int>> sides;
  for (int d = 0; d < replicas_; ++d) {
    const auto begin = words.begin() + static_cast<int64_t>(static_cast<size_t>(d) * buckets);
    sides[{begin, begin + static_cast<int64_t>(buckets)}].push_back(d);
  }
  if (sides.size() == 1) return {};
  size_t most = 0, mine = 0;
  for (const auto& [_, side] : sides) {
    most = std::max(most, side.size());
    if (std::find(side.begin(), side.end(), self_) != side.end()) mine = side.size();
  }
  const auto largest = std::count_if(sides.begin(), sides.end(),
                                     [&](const auto& side) { return side.second.size() == most; });
  if (mine < most)
    return {.kind = Verdict::Kind::kOwn,
            .words = fmt::format(
                "replica {} has computed another state than {} others, which agree", self_, most)};
  if (largest == 1) return {};
  return {.kind = Verdict::Kind::kSuspected,
          .words = fmt::format("replica {} and as many others have computed another state than the "
                               "rest: one side is wrong",
                               self_)};
}

}  // namespace perdure
