// Memory or arithmetic that has gone wrong without a sign, as a status: what a rank ends with when
// it finds that it is at fault itself, or another one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace perdure {

// How a step's sums look to one rank. What is greater is said in its place.
struct Verdict {
  enum class Kind : int {
    kFine = 0,
    kReceived = 1,   // What it has of `peer`'s is not what that one announced: if nobody else is at
                     // fault, this rank is.
    kSuspected = 2,  // Replicas do not agree, and none is known to be right.
    kOwn = 3,        // This rank's own memory or arithmetic is at fault.
  };
  Kind kind = Kind::kFine;
  int peer = -1;      // Replica; of kReceived.
  std::string words;  // What is wrong, for people.

  // Keeps the first of the worst.
  void Include(Verdict other) {
    if (other.kind > kind) *this = std::move(other);
  }
};

// What a rank makes of its own verdict and of the kinds of all ranks' (by rank): OK, Corruption,
// SuspectedCorruption, or Unavailable: others are at fault, and are about to end.
absl::Status Resolve(const Verdict& own, std::span<const int> kinds);

// DataLoss: this rank is at fault. Its process is of no use any more.
absl::Status Corruption(std::string_view words);
// DataLoss: this rank or another one is, and nobody can say which.
absl::Status SuspectedCorruption(std::string_view words);
bool IsCorruption(const absl::Status& status);
bool IsSuspectedCorruption(const absl::Status& status);

}  // namespace perdure
