#include "runtime/train/state_guard.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr const char* kPartNames[kStatePartCount] = {"parameter", "first moment", "second moment"};

}  // namespace

StateGuard::StateGuard(Ops* ops, const AtomTable* table, std::vector<AtomState> kept)
    : ops_(ops),
      table_(table),
      kept_(std::move(kept)),
      recorded_(ops, static_cast<int64_t>(kept_.size()) * kStatePartCount),
      found_(ops, recorded_.size()),
      next_(ops, recorded_.size()),
      behind_(ops, recorded_.size()) {
  for (size_t part = 0; part < kStatePartCount; ++part) {
    for (const AtomState& atom : kept_)
      if (bases_[part] == nullptr || atom.parts[part] < bases_[part])
        bases_[part] = atom.parts[part];
    for (size_t i = 0; i < kept_.size(); ++i)
      runs_[part].push_back(
          {.begin = (kept_[i].parts[part] - bases_[part]) * static_cast<int64_t>(sizeof(float)),
           .bytes = table_->atoms()[static_cast<size_t>(kept_[i].atom)].count *
                    static_cast<int64_t>(sizeof(float)),
           .first = 0,
           .sum = static_cast<int64_t>(i * kStatePartCount + part)});
  }
}

void StateGuard::AddAll(SumTable& sums) {
  sums.Zero();
  for (size_t part = 0; part < kStatePartCount; ++part) sums.Add(bases_[part], runs_[part]);
}

void StateGuard::Record() {
  AddAll(recorded_);
  recorded_.Download();
  if (ops_->DeviceIsHost()) return;
  // Another copy: who waits for the downloads behind does not wait for the others.
  AddAll(behind_);
  behind_.DownloadBehind();
}

void StateGuard::Look() {
  AddAll(found_);
  found_.Download();
}

const uint64_t* StateGuard::SumsOf(size_t position) const {
  const SumTable& sums = ops_->DeviceIsHost() ? recorded_ : behind_;
  return &sums.host()[position * kStatePartCount];
}

const uint64_t* StateGuard::SumsNow(size_t position) const {
  return &recorded_.host()[position * kStatePartCount];
}

void StateGuard::AddAt(SumTable& sums, size_t position, int64_t begin, int64_t count) {
  for (size_t part = 0; part < kStatePartCount; ++part)
    sums.Add(static_cast<int64_t>(position * kStatePartCount + part),
             kept_[position].parts[part] + begin, DType::kF32, begin, count);
}

void StateGuard::BeginPieces() {
  found_.Zero();
  next_.Zero();
}

void StateGuard::LookAt(size_t position, int64_t begin, int64_t count) {
  AddAt(found_, position, begin, count);
}

void StateGuard::RecordAt(size_t position, int64_t begin, int64_t count) {
  AddAt(next_, position, begin, count);
}

Verdict StateGuard::EndPieces() {
  found_.Download();
  next_.Download();
  Verdict verdict = Judge();
  // Where it is: whoever reads SumsOf keeps what it was given.
  ops_->Upload(next_.host().data(), next_.host().size_bytes(), recorded_.device());
  recorded_.Download();
  return verdict;
}

Verdict StateGuard::Judge() const {
  const auto [recorded, found] =
      std::mismatch(recorded_.host().begin(), recorded_.host().end(), found_.host().begin());
  if (recorded == recorded_.host().end()) return {};
  const auto at = static_cast<size_t>(recorded - recorded_.host().begin());
  const Atom& atom = table_->atoms()[static_cast<size_t>(kept_[at / kStatePartCount].atom)];
  return {.kind = Verdict::Kind::kOwn,
          .words = fmt::format(
              "the {} of {} in memory is not what the update before left there (atom {}: sum "
              "{:016x}, was {:016x})",
              kPartNames[at % kStatePartCount],
              table_->tensors()[static_cast<size_t>(atom.tensor)].name,
              kept_[at / kStatePartCount].atom, *found, *recorded)};
}

}  // namespace perdure
