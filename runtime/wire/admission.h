// Who may wait for what, before the wire knows who they are. Pure: the time is an argument.
//
// A connection whose hello is already there when it is accepted needs no place: it is proved or
// refused at once, for 5 us. So who holds the key gets in however many others crowd at the door,
// also from the same address. Only who has not yet said all of it takes one of few fixed places:
//
// - A place is for 2 s. When all are taken, the oldest of the source that holds most gives way.
// - Each source has tokens, one per place, which come back with time; a hello that proves right
//   gives its token back at once. Without a token a connection gets no place, and is closed.
//
// All tables have a largest size, whoever comes; an agent that nobody troubles has them empty.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "runtime/wire/wire_address.h"

namespace perdure {

struct AdmissionLimits {
  uint32_t places = 32;  // Half-open connections.
  // For a whole hello, and as long again for the confirmation of what it was answered.
  absl::Duration place_time = absl::Seconds(2);
  int64_t tokens = 64;                                   // Of a source that was quiet.
  absl::Duration token_every = absl::Milliseconds(100);  // How fast they come back.
  uint32_t sources = 256;                                // Remembered.
  uint32_t hellos = 4096;                                // Remembered, against replay.
};

// An IPv4 address; of an IPv6 address the first half, because a machine has all of the second.
using SourceKey = std::array<uint8_t, 16>;
SourceKey SourceOf(const WireAddress& from);

class Admission {
 public:
  explicit Admission(const AdmissionLimits& limits);

  struct Place {
    std::optional<uint32_t> place;  // Absent: the source has no tokens.
    bool pushed_out = false;        // Somebody else had it until now.
  };
  Place Take(const SourceKey& source, absl::Time now);
  // `proved`: it has the key, so its token comes back.
  void Leave(uint32_t place, bool proved);
  // One that has waited too long; the caller closes it and calls Leave.
  std::optional<uint32_t> Overdue(absl::Time now) const;
  uint32_t held() const { return held_; }
  // Of all tables at their largest.
  static size_t BytesMost(const AdmissionLimits& limits);

 private:
  struct Slot {
    bool taken = false;
    SourceKey source{};
    absl::Time since;
    uint64_t number = 0;  // In the order in which they came.
  };
  // Tokens as the time until which they are spent: `now` or before means all are there.
  struct Source {
    SourceKey key{};
    absl::Time spent_until = absl::InfinitePast();
  };

  Source& SourceFor(const SourceKey& key);
  uint32_t OldestOfHeaviest(const SourceKey& newcomer) const;

  const AdmissionLimits limits_;
  std::vector<Slot> slots_;  // [place], as many as were ever held at once.
  std::vector<Source> sources_;
  uint32_t held_ = 0;
  uint64_t number_ = 0;
};

// Which authentic hellos have been here. An attacker can repeat what he has seen but make none, so
// he cannot push anything out of it; one that was pushed out by agents fails at its confirmation.
class ReplayFilter {
 public:
  explicit ReplayFilter(uint32_t size);
  // True: it has been here before. Remembers it. `tag`: the end of the hello, different for each.
  bool Repeats(std::span<const uint8_t, 16> tag);

 private:
  const size_t size_;
  std::vector<uint64_t> seen_;  // Grows to `size_`, then it is a ring.
  size_t next_ = 0;
};

}  // namespace perdure
