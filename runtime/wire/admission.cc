#include "runtime/wire/admission.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "runtime/base/check.h"

namespace perdure {

SourceKey SourceOf(const WireAddress& from) {
  constexpr std::array<uint8_t, 12> kMappedV4 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  SourceKey source = from.ip;
  if (!std::equal(kMappedV4.begin(), kMappedV4.end(), source.begin()))
    std::fill(source.begin() + 8, source.end(), uint8_t{0});
  return source;
}

Admission::Admission(const AdmissionLimits& limits) : limits_(limits) {
  PERDURE_CHECK(limits.places > 0 && limits.sources > 0 && limits.tokens > 0);
}

size_t Admission::BytesMost(const AdmissionLimits& limits) {
  // A vector that grows has up to twice the memory that it needs.
  return 2 * (limits.places * sizeof(Slot) + limits.sources * sizeof(Source) +
              limits.hellos * sizeof(uint64_t));
}

Admission::Source& Admission::SourceFor(const SourceKey& key) {
  for (Source& source : sources_)
    if (source.key == key) return source;
  if (sources_.size() < limits_.sources) return sources_.emplace_back(Source{.key = key});
  // The one about which least is forgotten.
  Source& oldest = *std::min_element(
      sources_.begin(), sources_.end(),
      [](const Source& a, const Source& b) { return a.spent_until < b.spent_until; });
  oldest = {.key = key};
  return oldest;
}

uint32_t Admission::OldestOfHeaviest(const SourceKey& newcomer) const {
  std::map<SourceKey, uint32_t> held = {{newcomer, 1}};
  for (const Slot& slot : slots_) ++held[slot.source];
  const auto heavier = [&](const Slot& a, const Slot& b) {
    const uint32_t of_a = held.at(a.source), of_b = held.at(b.source);
    return of_a != of_b ? of_a > of_b : a.number < b.number;
  };
  return static_cast<uint32_t>(std::min_element(slots_.begin(), slots_.end(), heavier) -
                               slots_.begin());
}

Admission::Place Admission::Take(const SourceKey& source, absl::Time now) {
  Source& known = SourceFor(source);
  const absl::Time spent_until = std::max(known.spent_until, now) + limits_.token_every;
  if (spent_until - now > limits_.tokens * limits_.token_every) return {};
  known.spent_until = spent_until;
  const bool full = held_ == limits_.places;
  uint32_t place = 0;
  if (full) {
    place = OldestOfHeaviest(source);
  } else {
    if (held_ == slots_.size()) slots_.emplace_back();
    while (slots_[place].taken) ++place;
    ++held_;
  }
  slots_[place] = {.taken = true, .source = source, .since = now, .number = ++number_};
  return {.place = place, .pushed_out = full};
}

void Admission::Leave(uint32_t place, bool proved) {
  PERDURE_CHECK(slots_[place].taken);
  slots_[place].taken = false;
  --held_;
  if (proved) SourceFor(slots_[place].source).spent_until -= limits_.token_every;
}

std::optional<uint32_t> Admission::Overdue(absl::Time now) const {
  for (uint32_t place = 0; place < slots_.size(); ++place)
    if (slots_[place].taken && now - slots_[place].since >= limits_.place_time) return place;
  return std::nullopt;
}

ReplayFilter::ReplayFilter(uint32_t size) : size_(size) { PERDURE_CHECK(size > 0); }

bool ReplayFilter::Repeats(std::span<const uint8_t, 16> tag) {
  uint64_t key = 0;
  std::memcpy(&key, tag.data(), sizeof key);
  if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) return true;
  if (seen_.size() < size_) {
    seen_.push_back(key);
  } else {
    seen_[next_] = key;
    next_ = (next_ + 1) % size_;
  }
  return false;
}

}  // namespace perdure
