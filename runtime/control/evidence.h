// One thing that was seen of a node: what, when, in which job. Values for people and for
// EvidenceBook, which outlive jobs; therefore a node goes by its name here.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/control/ids.h"

namespace perdure {

// Closed; `number` of an entry means what stands behind the kind.
enum class EvidenceKind : uint8_t {
  kRankCrashed,        // The exit code.
  kRankKilled,         // The signal, not sent by us.
  kOutOfMemory,        //
  kHung,               // A step stalled and this node was chosen.
  kUnkillable,         // The kernel would not let a process die.
  kNodeLost,           //
  kStartFailed,        // The agent did not start, or never spoke.
  kDeviceError,        // The Xid; a double-bit ECC error is 48; 0: not known.
  kHealthCheckFailed,  // A device computed wrongly before the first step.
  kSilentCorruption,   // A replica's digests differ and this node was found out.
  kSlow,               // Its work over that of others, in percent.
  kStorageError,       //
  kNetworkError,       //
  kDrained,            // The scheduler wants the node back,
  kReturned,           // or has given it out again.
  kWorked,             // Seconds of work without trouble, up to the entry's time.
  kCleared,            // A person holds nothing older against the node.
  kBadCheckpoint,      // What was loaded is not what was committed.
  kBadSnapshot,        // What was held in memory is not what was put there.
  kTrainingFailed,     // The loss is not finite, or the data are bad: wherever it runs.
  kDrilled,            // A person broke it on purpose: what is found of it in that generation is
                       // held against nobody.
};
inline constexpr int kEvidenceKinds = 21;

// How sure it is that the node is at fault.
enum class EvidenceClass : uint8_t {
  kSoft,     // Mostly the program: counts together with others only.
  kLikely,   // The node, or what it shares with others.
  kCertain,  // The hardware: it has to be reset or replaced.
  kNone,     // Says nothing against the node.
};

struct EvidenceEntry {
  std::string node;
  absl::Time time;  // Of the wall clock of who saw it.
  EvidenceKind kind = EvidenceKind::kRankCrashed;
  int64_t number = 0;
  Generation generation = 0;  // 0: in none.
  std::string job;            // The scheduler's id; may be empty.
  std::string detail;         // For people.
  friend std::strong_ordering operator<=>(const EvidenceEntry&, const EvidenceEntry&) = default;
  friend bool operator==(const EvidenceEntry&, const EvidenceEntry&) = default;
};

inline constexpr std::size_t kNodeNameBytesMax = 255;
inline constexpr std::size_t kJobTextBytesMax = 64;
inline constexpr std::size_t kDetailBytesMax = 256;

// A name may stand in a scheduler's list of nodes: letters, digits, '.', '-', '_', and no '-'
// first. InvalidArgument names what is wrong.
absl::Status CheckNodeName(std::string_view name);
// A node's name, a time that is one, a kind that exists, kWorked without a negative number.
absl::Status CheckEvidence(const EvidenceEntry& entry);
// Cuts texts to their bounds, between characters of UTF-8, and makes spaces of what could move a
// terminal's cursor.
EvidenceEntry Bounded(EvidenceEntry entry);

// kDeviceError's depends on the Xid, after NVIDIA's catalogue; one that is not known is likely.
EvidenceClass ClassOf(EvidenceKind kind, int64_t number);

// "rank-crashed": stable, for files and JSON.
std::string_view NameOf(EvidenceKind kind);
std::optional<EvidenceKind> KindOf(std::string_view name);
// "rank crashed", "device error (Xid 79)", "slow (3.10 times the others' work)".
std::string WordsOf(EvidenceKind kind, int64_t number);

}  // namespace perdure
