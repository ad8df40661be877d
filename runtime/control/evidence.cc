#include "runtime/control/evidence.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Row {
  EvidenceKind kind;
  EvidenceClass of;
  const char* name;
  const char* words;
};
using K = EvidenceKind;
using C = EvidenceClass;
constexpr Row kRows[] = {
    {K::kRankCrashed, C::kSoft, "rank-crashed", "rank crashed"},
    {K::kRankKilled, C::kSoft, "rank-killed", "rank killed by a signal"},
    {K::kOutOfMemory, C::kSoft, "out-of-memory", "out of memory"},
    {K::kHung, C::kLikely, "hung", "hung"},
    {K::kUnkillable, C::kCertain, "unkillable", "process that could not be killed"},
    {K::kNodeLost, C::kLikely, "node-lost", "node lost"},
    {K::kStartFailed, C::kLikely, "start-failed", "start failed"},
    {K::kDeviceError, C::kLikely, "device-error", "device error"},
    {K::kHealthCheckFailed, C::kCertain, "health-check-failed", "device health check failed"},
    {K::kSilentCorruption, C::kCertain, "silent-corruption", "silent corruption"},
    {K::kSlow, C::kSoft, "slow", "slow"},
    {K::kStorageError, C::kLikely, "storage-error", "storage error"},
    {K::kNetworkError, C::kLikely, "network-error", "network error"},
    {K::kDrained, C::kNone, "drained", "drained by the scheduler"},
    {K::kReturned, C::kNone, "returned", "returned by the scheduler"},
    {K::kWorked, C::kNone, "worked", "worked well"},
    {K::kCleared, C::kNone, "cleared", "cleared by a person"},
    {K::kBadCheckpoint, C::kNone, "bad-checkpoint", "bad checkpoint"},
    {K::kBadSnapshot, C::kSoft, "bad-snapshot", "bad snapshot in memory"},
    {K::kTrainingFailed, C::kNone, "training-failed", "training failed"},
    {K::kDrilled, C::kNone, "drilled", "broken on purpose"},
};
static_assert(std::size(kRows) == kEvidenceKinds);

// What the catalogue tells to reset, drain or replace; and what a program does to a healthy GPU.
constexpr int64_t kCertainXids[] = {48, 64, 79, 95, 119, 120};
constexpr int64_t kSoftXids[] = {13, 31, 43, 45};

template <typename Range>
bool Holds(const Range& range, int64_t value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '-' || c == '_';
}

bool IsKind(EvidenceKind kind) { return static_cast<int>(kind) < kEvidenceKinds; }

const Row& RowOf(EvidenceKind kind) {
  PERDURE_CHECK(IsKind(kind));
  const Row& row = kRows[static_cast<int>(kind)];
  PERDURE_CHECK(row.kind == kind);
  return row;
}

// One line of printable text, cut before a character that does not fit whole.
std::string Line(std::string text, std::size_t bytes_max) {
  if (text.size() > bytes_max) {
    std::size_t end = bytes_max;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text.resize(end);
  }
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  return text;
}

}  // namespace

absl::Status CheckNodeName(std::string_view name) {
  if (name.empty()) return InvalidArgument("a node's name is empty");
  if (name.size() > kNodeNameBytesMax)
    return InvalidArgument("a node's name has {} bytes, more than {}: {}...", name.size(),
                           kNodeNameBytesMax, Line(std::string(name), 32));
  if (name.front() == '-' || !std::all_of(name.begin(), name.end(), IsNameCharacter))
    return InvalidArgument(
        "\"{}\" is no node's name: letters, digits, '.', '-' and '_' are, and no '-' comes first",
        Line(std::string(name), kNodeNameBytesMax));
  return absl::OkStatus();
}

absl::Status CheckEvidence(const EvidenceEntry& entry) {
  RETURN_IF_ERROR(CheckNodeName(entry.node));
  if (!IsKind(entry.kind))
    return InvalidArgument("evidence of node {} has kind {}; there are {}", entry.node,
                           static_cast<int>(entry.kind), kEvidenceKinds);
  if (entry.time == absl::InfiniteFuture() || entry.time == absl::InfinitePast())
    return InvalidArgument("evidence of node {} ({}) has no time", entry.node, NameOf(entry.kind));
  if (entry.kind == EvidenceKind::kWorked && entry.number < 0)
    return InvalidArgument("node {} cannot have worked for {} seconds", entry.node, entry.number);
  return absl::OkStatus();
}

EvidenceEntry Bounded(EvidenceEntry entry) {
  entry.job = Line(std::move(entry.job), kJobTextBytesMax);
  entry.detail = Line(std::move(entry.detail), kDetailBytesMax);
  return entry;
}

EvidenceClass ClassOf(EvidenceKind kind, int64_t number) {
  if (kind == EvidenceKind::kDeviceError && Holds(kCertainXids, number))
    return EvidenceClass::kCertain;
  if (kind == EvidenceKind::kDeviceError && Holds(kSoftXids, number)) return EvidenceClass::kSoft;
  return RowOf(kind).of;
}

std::string_view NameOf(EvidenceKind kind) { return RowOf(kind).name; }

std::optional<EvidenceKind> KindOf(std::string_view name) {
  for (const Row& row : kRows)
    if (name == row.name) return row.kind;
  return std::nullopt;
}

std::string WordsOf(EvidenceKind kind, int64_t number) {
  if (kind == EvidenceKind::kDeviceError && number != 0)
    return fmt::format("device error (Xid {})", number);
  if (kind == EvidenceKind::kSlow && number != 0)
    return fmt::format("slow ({}.{:02} times the others' work)", number / 100,
                       number < 0 ? 0 : number % 100);
  return RowOf(kind).words;
}

}  // namespace perdure
