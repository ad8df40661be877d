// What is known against nodes, across the jobs of a run, and which of them the next job does
// without. Pure: what counts at a time follows from entries, pins and options alone. The
// coordinator keeps the book of its job and its thread alone calls it; entries and pins are all of
// its state, and the order in which they came is none of it, as long as the bounds hold.
//
// Certain evidence (a device to be reset, silent corruption) is enough by itself and lasts long;
// soft evidence (a rank that crashed) counts only together with other evidence and is soon
// forgotten. What happens to many nodes within a short time is the fault of the program, or of what
// they share, and is held against none of them; so a bug that kills a rank on every node in turn
// excludes nobody.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/evidence.h"

namespace perdure {

class EvidenceBook {
 public:
  struct Weight {
    int points = 0;
    absl::Duration expiry;  // An entry counts until it is so old.
    friend bool operator==(const Weight&, const Weight&) = default;
  };
  struct Options {
    Weight soft = {.points = 25, .expiry = absl::Hours(24)};
    Weight likely = {.points = 50, .expiry = absl::Hours(7 * 24)};
    Weight certain = {.points = 100, .expiry = absl::Hours(30 * 24)};
    int points_min = 100;                           // Of a node that is excluded.
    absl::Duration drain_expiry = absl::Hours(12);  // The scheduler says it again, or it is over.
    // After so much work without trouble soft and likely evidence from before is forgiven.
    absl::Duration good_time = absl::Hours(24);
    // Entries later than that after now have a wrong clock and say nothing yet.
    absl::Duration future_max = absl::Hours(24);

    int nodes = 1;  // Of the allocation.
    // The program is suspected where one kind of soft or likely evidence is found on so many nodes
    // (and at least that share of the allocation; two, or all of a smaller one, are many enough)
    // within the window. A node with more than lone_factor times as many incidents as the median of
    // them is blamed nevertheless.
    int program_nodes_min = 4;
    int program_percent_min = 1;
    absl::Duration program_window = absl::Hours(6);
    int lone_factor = 3;
    // No more are excluded; but one always may be, unless excluded_max is 0.
    int excluded_max = 32;
    int excluded_percent_max = 10;  // Of `nodes`.

    // Where there is more, what would expire first is dropped first.
    int entries_per_node_max = 32;
    int nodes_known_max = 16384;
    int pins_max = 4096;
    friend bool operator==(const Options&, const Options&) = default;
  };
  // InvalidArgument names the option, its value and its range.
  static absl::Status Validate(const Options& options);

  // REQUIRES: Validate(options) is ok.
  explicit EvidenceBook(const Options& options);
  // The book of these entries and pins, in any order. InvalidArgument or ResourceExhausted names
  // what cannot be in it.
  static absl::StatusOr<EvidenceBook> Restore(const Options& options,
                                              const std::vector<EvidenceEntry>& entries,
                                              const std::set<std::string>& pins);

  // The same entry again changes nothing. InvalidArgument: CheckEvidence refuses it.
  // All of one node, job and generation is one incident, which counts by its weightiest entry.
  // kWorked is worth recording of nodes that the book knows; for others it takes room for nothing.
  absl::Status Record(EvidenceEntry entry);
  // Never to be excluded, whatever is known. InvalidArgument: no name; ResourceExhausted.
  absl::Status Pin(const std::string& name);
  void Unpin(const std::string& name) { pins_.erase(name); }
  // Nothing that is known of it now is held against it; the entries stay to be read. NotFound:
  // nothing is known.
  absl::Status Clear(const std::string& name, absl::Time now);

  bool Knows(const std::string& name) const { return nodes_.contains(name); }
  std::vector<EvidenceEntry> Entries() const;  // By node; of each what expires first is first.
  const std::set<std::string>& pins() const { return pins_; }

  struct Verdict {
    std::string node;
    int points = 0;
    bool pinned = false;
    bool drained = false;   // See Drained().
    bool excluded = false;  // See Excluded().
    int entries = 0;        // Also those that do not count.
    std::string reason;  // "n042: 3 x rank crashed, 1 x hung; last 2026-03-01 12:00 UTC in job 7"
    friend bool operator==(const Verdict&, const Verdict&) = default;
  };
  struct SuspectProgram {
    EvidenceKind kind = EvidenceKind::kRankCrashed;
    int64_t number = 0;  // The Xid of a device error.
    int nodes = 0;
    absl::Time from, until;
    std::string reason;
    friend bool operator==(const SuspectProgram&, const SuspectProgram&) = default;
  };
  struct Judgement {
    std::vector<Verdict> nodes;            // Known or pinned ones, by name.
    std::vector<SuspectProgram> programs;  // By kind, number, time; while their entries count.
  };
  // Looks at all entries.
  Judgement Judge(absl::Time now) const;

  // As Judge() has it. Excluded: what the next job does without, sorted by name: nodes with
  // points_min, unless pinned; where they are more than may be, those with the most certain
  // evidence, then the most points, then the latest.
  std::vector<Verdict> List(absl::Time now) const { return Judge(now).nodes; }
  std::vector<Verdict> Excluded(absl::Time now) const;
  // Whether a layout should do without it if it can: points_min, or the scheduler wants it back;
  // never where pinned. No cap: it is a wish. O(log n) for a node without entries; for many that
  // have some, Judge once.
  bool Drained(const std::string& name, absl::Time now) const;

  friend bool operator==(const EvidenceBook&, const EvidenceBook&) = default;

 private:
  using Held = std::vector<EvidenceEntry>;       // Of one node; what is dropped first is first.
  using Key = std::pair<EvidenceKind, int64_t>;  // What is alike on many nodes.
  // A time in which one kind was seen on many nodes.
  struct Span {
    absl::Time from, until;
    std::map<std::string_view, int> incidents;  // By node.
    int incidents_max = 0;                      // A node with more is blamed nevertheless.
  };
  using Spans = std::map<Key, std::vector<Span>>;
  struct Case;

  static Key KeyOf(const EvidenceEntry& entry);
  absl::Duration ExpiryOf(const EvidenceEntry& entry) const;
  absl::Time ExpiresAt(const EvidenceEntry& entry) const;
  int PointsOf(EvidenceClass of) const;
  absl::Time WorthOf(const Held& held) const;
  bool Counts(const EvidenceEntry& entry, const Held& held, absl::Time now) const;

  int NodesThatAreMany() const;
  Spans FindSpans(absl::Time now) const;
  Case Weigh(const std::string& name, const Held& held, const Spans& spans, absl::Time now) const;
  void Exclude(std::vector<Case>& cases) const;
  std::vector<SuspectProgram> ProgramsOf(const Spans& spans, absl::Time now) const;

  Options options_;
  std::map<std::string, Held> nodes_;
  std::set<std::pair<absl::Time, std::string>> worth_;  // Of nodes_; who is dropped first is first.
  std::set<std::string> pins_;
};

}  // namespace perdure
