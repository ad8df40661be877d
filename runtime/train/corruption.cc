#include "runtime/train/corruption.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr char kPayload[] = "perdure/corruption";
constexpr char kCertain[] = "certain", kSuspected[] = "suspected";

absl::Status Marked(std::string_view words, const char* mark) {
  absl::Status status = DataLoss("silent corruption: {}", words);
  status.SetPayload(kPayload, absl::Cord(mark));
  return status;
}

bool Is(const absl::Status& status, const char* mark) {
  const auto payload = status.GetPayload(kPayload);
  return payload.has_value() && *payload == mark;
}

}  // namespace

absl::Status Resolve(const Verdict& own, std::span<const int> kinds) {
  const auto worst = std::max_element(kinds.begin(), kinds.end());
  if (worst == kinds.end() || *worst == static_cast<int>(Verdict::Kind::kFine))
    return absl::OkStatus();
  if (static_cast<int>(own.kind) != *worst)
    return absl::UnavailableError(
        fmt::format("rank {} has found silent corruption and ends", worst - kinds.begin()));
  return own.kind == Verdict::Kind::kSuspected ? SuspectedCorruption(own.words)
                                               : Corruption(own.words);
}

absl::Status Corruption(std::string_view words) { return Marked(words, kCertain); }
absl::Status SuspectedCorruption(std::string_view words) { return Marked(words, kSuspected); }
bool IsCorruption(const absl::Status& status) { return Is(status, kCertain); }
bool IsSuspectedCorruption(const absl::Status& status) { return Is(status, kSuspected); }

}  // namespace perdure
