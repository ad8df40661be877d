#include "runtime/control/evidence_book.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Kind = EvidenceKind;

// What came of one failure: all ranks of a node that die together say one thing of it.
using Incident = std::tuple<std::string_view, Generation, absl::Time>;
Incident IncidentOf(const EvidenceEntry& entry) {
  return {entry.job, entry.generation, entry.generation == 0 ? entry.time : absl::UnixEpoch()};
}

bool IsAgainst(const EvidenceEntry& entry) {
  return ClassOf(entry.kind, entry.number) != EvidenceClass::kNone || entry.kind == Kind::kDrained;
}
// Whether a drill did it: nothing else of that incident can be told from what it did.
bool OnPurpose(const EvidenceEntry& entry, const std::vector<EvidenceEntry>& held) {
  return std::any_of(held.begin(), held.end(), [&](const EvidenceEntry& other) {
    return other.kind == Kind::kDrilled && IncidentOf(other) == IncidentOf(entry);
  });
}
bool MayBeTheProgram(const EvidenceEntry& entry) {
  const EvidenceClass of = ClassOf(entry.kind, entry.number);
  return of == EvidenceClass::kSoft || of == EvidenceClass::kLikely;
}

// Incidents of each kind (and Xid) of one node.
using Tally = std::map<std::pair<Kind, int64_t>, std::set<Incident>>;

// "3 x rank crashed, 1 x hung": the surest first, then the most frequent.
std::string TallyInWords(const Tally& tally) {
  std::vector<std::tuple<int, std::ptrdiff_t, std::string>> parts;
  for (const auto& [key, incidents] : tally)
    parts.emplace_back(-static_cast<int>(ClassOf(key.first, key.second)), -std::ssize(incidents),
                       WordsOf(key.first, key.second));
  std::sort(parts.begin(), parts.end());
  std::string words;
  for (const auto& [sureness, count, what] : parts)
    words += fmt::format("{}{} x {}", words.empty() ? "" : ", ", -count, what);
  return words;
}

std::string Minute(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M UTC", time, absl::UTCTimeZone());
}

std::string ReasonOf(const std::string& name, const Tally& blamed, const Tally& acquitted,
                     const EvidenceEntry* latest, bool wanted_back) {
  std::string reason = fmt::format(
      "{}: {}", name, blamed.empty() ? "nothing counts against it" : TallyInWords(blamed));
  if (latest != nullptr) reason += "; last " + Minute(latest->time);
  if (latest != nullptr && !latest->job.empty()) reason += " in job " + latest->job;
  if (wanted_back) reason += "; drained by the scheduler";
  if (!acquitted.empty())
    reason += fmt::format("; not held against it, seen on many nodes: {}", TallyInWords(acquitted));
  return reason;
}

absl::Status InRange(std::string_view option, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("evidence: {} is {}; it must be {} to {}", option, value, least, most);
}
absl::Status InRange(std::string_view option, absl::Duration value, absl::Duration least) {
  const absl::Duration most = absl::Hours(24 * 3650);
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("evidence: {} is {}; it must be {} to {}", option,
                         absl::FormatDuration(value), absl::FormatDuration(least),
                         absl::FormatDuration(most));
}

}  // namespace

absl::Status EvidenceBook::Validate(const Options& o) {
  RETURN_IF_ERROR(InRange("points_min", o.points_min, 1, 1000000));
  // It is never enough by itself.
  RETURN_IF_ERROR(InRange("soft.points", o.soft.points, 0, o.points_min - 1));
  RETURN_IF_ERROR(InRange("likely.points", o.likely.points, 0, 1000000));
  RETURN_IF_ERROR(InRange("certain.points", o.certain.points, 0, 1000000));
  RETURN_IF_ERROR(InRange("soft.expiry", o.soft.expiry, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("likely.expiry", o.likely.expiry, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("certain.expiry", o.certain.expiry, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("drain_expiry", o.drain_expiry, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("good_time", o.good_time, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("future_max", o.future_max, absl::ZeroDuration()));
  RETURN_IF_ERROR(InRange("nodes", o.nodes, 1, 1 << 20));
  RETURN_IF_ERROR(InRange("program_nodes_min", o.program_nodes_min, 2, 1 << 20));
  RETURN_IF_ERROR(InRange("program_percent_min", o.program_percent_min, 0, 100));
  RETURN_IF_ERROR(InRange("program_window", o.program_window, absl::Seconds(1)));
  RETURN_IF_ERROR(InRange("lone_factor", o.lone_factor, 1, 1000));
  RETURN_IF_ERROR(InRange("excluded_max", o.excluded_max, 0, 1 << 20));
  RETURN_IF_ERROR(InRange("excluded_percent_max", o.excluded_percent_max, 0, 100));
  RETURN_IF_ERROR(InRange("entries_per_node_max", o.entries_per_node_max, 1, 1024));
  RETURN_IF_ERROR(InRange("nodes_known_max", o.nodes_known_max, 1, 1 << 20));
  return InRange("pins_max", o.pins_max, 0, 1 << 20);
}

EvidenceBook::EvidenceBook(const Options& options) : options_(options) {
  PERDURE_CHECK(Validate(options).ok());
}

absl::StatusOr<EvidenceBook> EvidenceBook::Restore(const Options& options,
                                                   const std::vector<EvidenceEntry>& entries,
                                                   const std::set<std::string>& pins) {
  RETURN_IF_ERROR(Validate(options));
  EvidenceBook book(options);
  for (const EvidenceEntry& entry : entries) RETURN_IF_ERROR(book.Record(entry));
  for (const std::string& name : pins) RETURN_IF_ERROR(book.Pin(name));
  return book;
}

// ---- What is known ------------------------------------------------------------------------------

// Nothing that takes other entries' weight expires before them.
absl::Duration EvidenceBook::ExpiryOf(const EvidenceEntry& entry) const {
  const Options& o = options_;
  if (entry.kind == Kind::kDrained || entry.kind == Kind::kReturned) return o.drain_expiry;
  if (entry.kind == Kind::kWorked) return std::max(o.soft.expiry, o.likely.expiry);
  if (entry.kind == Kind::kCleared || entry.kind == Kind::kDrilled)
    return std::max({o.soft.expiry, o.likely.expiry, o.certain.expiry, o.drain_expiry});
  switch (ClassOf(entry.kind, entry.number)) {
    case EvidenceClass::kSoft:
      return o.soft.expiry;
    case EvidenceClass::kLikely:
      return o.likely.expiry;
    case EvidenceClass::kCertain:
      return o.certain.expiry;
    case EvidenceClass::kNone:
      return o.soft.expiry;  // To be read only.
  }
  PERDURE_CHECK(false);
}

absl::Time EvidenceBook::ExpiresAt(const EvidenceEntry& entry) const {
  return entry.time + ExpiryOf(entry);
}

int EvidenceBook::PointsOf(EvidenceClass of) const {
  switch (of) {
    case EvidenceClass::kSoft:
      return options_.soft.points;
    case EvidenceClass::kLikely:
      return options_.likely.points;
    case EvidenceClass::kCertain:
      return options_.certain.points;
    case EvidenceClass::kNone:
      return 0;
  }
  PERDURE_CHECK(false);
}

// A node that nothing is held against is worth least.
absl::Time EvidenceBook::WorthOf(const Held& held) const {
  absl::Time worth = absl::InfinitePast();
  for (const EvidenceEntry& entry : held)
    if (IsAgainst(entry)) worth = std::max(worth, ExpiresAt(entry));
  return worth;
}

absl::Status EvidenceBook::Record(EvidenceEntry entry) {
  RETURN_IF_ERROR(CheckEvidence(entry));
  entry = Bounded(std::move(entry));
  const std::string name = entry.node;
  Held& held = nodes_[name];
  if (!held.empty()) worth_.erase({WorthOf(held), name});
  const auto before = [&](const EvidenceEntry& a, const EvidenceEntry& b) {
    return std::tuple(ExpiresAt(a), a) < std::tuple(ExpiresAt(b), b);
  };
  const auto place = std::lower_bound(held.begin(), held.end(), entry, before);
  if (place == held.end() || *place != entry) held.insert(place, std::move(entry));
  if (held.size() > static_cast<std::size_t>(options_.entries_per_node_max))
    held.erase(held.begin());
  worth_.emplace(WorthOf(held), name);
  if (nodes_.size() > static_cast<std::size_t>(options_.nodes_known_max)) {
    nodes_.erase(worth_.begin()->second);
    worth_.erase(worth_.begin());
  }
  return absl::OkStatus();
}

absl::Status EvidenceBook::Pin(const std::string& name) {
  RETURN_IF_ERROR(CheckNodeName(name));
  if (!pins_.contains(name) && pins_.size() >= static_cast<std::size_t>(options_.pins_max))
    return ResourceExhausted("node {} cannot be pinned: {} nodes are; unpin some", name,
                             pins_.size());
  pins_.insert(name);
  return absl::OkStatus();
}

absl::Status EvidenceBook::Clear(const std::string& name, absl::Time now) {
  const auto known = nodes_.find(name);
  if (known == nodes_.end())
    return NotFound("nothing is known against node {}; `perdure nodes` lists those that are known",
                    name);
  // Also what came from a clock that is ahead.
  for (const EvidenceEntry& entry : known->second) now = std::max(now, entry.time);
  return Record({.node = name, .time = now, .kind = Kind::kCleared});
}

std::vector<EvidenceEntry> EvidenceBook::Entries() const {
  std::vector<EvidenceEntry> all;
  for (const auto& [name, held] : nodes_) all.insert(all.end(), held.begin(), held.end());
  return all;
}

// ---- What follows from it -----------------------------------------------------------------------

struct EvidenceBook::Case {
  Verdict verdict;
  int certain_points = 0;
  absl::Time latest = absl::InfinitePast();  // Of what counts.
};

EvidenceBook::Key EvidenceBook::KeyOf(const EvidenceEntry& entry) {
  return {entry.kind, entry.kind == Kind::kDeviceError ? entry.number : 0};
}

// Not too old, not of a wrong clock, nobody's doing, neither cleared nor forgiven. REQUIRES: `held`
// is its node's.
bool EvidenceBook::Counts(const EvidenceEntry& entry, const Held& held, absl::Time now) const {
  if (now >= ExpiresAt(entry) || entry.time > now + options_.future_max) return false;
  if (OnPurpose(entry, held)) return false;
  absl::Duration worked;
  for (const EvidenceEntry& other : held) {
    if (other.time > now + options_.future_max) continue;
    if (other.kind == Kind::kCleared && other.time >= entry.time) return false;
    if (other.kind == Kind::kReturned && other.time >= entry.time && entry.kind == Kind::kDrained)
      return false;
    if (other.kind == Kind::kWorked && other.time - absl::Seconds(other.number) >= entry.time)
      worked += absl::Seconds(other.number);
  }
  return !MayBeTheProgram(entry) || worked < options_.good_time;
}

int EvidenceBook::NodesThatAreMany() const {
  const int share = (options_.nodes * options_.program_percent_min + 99) / 100;
  return std::min(std::max(options_.program_nodes_min, share), std::max(2, options_.nodes));
}

EvidenceBook::Spans EvidenceBook::FindSpans(absl::Time now) const {
  std::map<Key, std::vector<std::pair<absl::Time, const EvidenceEntry*>>> seen;
  for (const auto& [name, held] : nodes_)
    for (const EvidenceEntry& entry : held)
      if (MayBeTheProgram(entry) && entry.time <= now + options_.future_max &&
          !OnPurpose(entry, held))
        seen[KeyOf(entry)].emplace_back(entry.time, &entry);
  Spans spans;
  const auto many = static_cast<std::size_t>(NodesThatAreMany());
  for (auto& [key, entries] : seen) {
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    std::map<std::string_view, int> inside;  // Entries by node, between first and last.
    std::vector<Span> found;
    auto first = entries.begin();
    for (auto last = entries.begin(); last != entries.end(); ++last) {
      ++inside[last->second->node];
      for (; last->first - first->first > options_.program_window; ++first)
        if (--inside[first->second->node] == 0) inside.erase(first->second->node);
      if (inside.size() < many) continue;
      if (found.empty() || found.back().until < first->first)
        found.push_back({.from = first->first, .until = last->first});
      found.back().until = last->first;
    }
    auto entry = entries.begin();
    for (Span& span : found) {
      std::set<std::pair<std::string_view, Incident>> incidents;
      while (entry->first < span.from) ++entry;
      for (; entry != entries.end() && entry->first <= span.until; ++entry)
        incidents.emplace(entry->second->node, IncidentOf(*entry->second));
      std::vector<int> counts;
      for (const auto& [node, incident] : incidents) ++span.incidents[node];
      for (const auto& [node, count] : span.incidents) counts.push_back(count);
      const auto median = counts.begin() + (static_cast<ptrdiff_t>(counts.size()) - 1) / 2;
      std::nth_element(counts.begin(), median, counts.end());
      span.incidents_max = options_.lone_factor * *median;
    }
    if (!found.empty()) spans[key] = std::move(found);
  }
  return spans;
}

EvidenceBook::Case EvidenceBook::Weigh(const std::string& name, const Held& held,
                                       const Spans& spans, absl::Time now) const {
  Case result{.verdict = {.node = name,
                          .pinned = pins_.contains(name),
                          .entries = static_cast<int>(held.size())}};
  Verdict& verdict = result.verdict;
  std::map<Incident, EvidenceClass> incidents;  // By the weightiest of each.
  std::map<Key, std::set<Incident>> blamed, acquitted;
  const EvidenceEntry* latest = nullptr;
  bool wanted_back = false;
  const auto of_program = [&](const EvidenceEntry& entry) {
    const auto of_kind = spans.find(KeyOf(entry));
    if (of_kind == spans.end()) return false;
    return std::any_of(of_kind->second.begin(), of_kind->second.end(), [&](const Span& span) {
      return span.from <= entry.time && entry.time <= span.until &&
             span.incidents.find(name)->second <= span.incidents_max;
    });
  };
  for (const EvidenceEntry& entry : held) {
    if (!IsAgainst(entry) || !Counts(entry, held, now)) continue;
    const EvidenceClass of = ClassOf(entry.kind, entry.number);
    if (of == EvidenceClass::kNone) {
      wanted_back = true;
      continue;
    }
    if (of_program(entry)) {
      acquitted[KeyOf(entry)].insert(IncidentOf(entry));
      continue;
    }
    blamed[KeyOf(entry)].insert(IncidentOf(entry));
    EvidenceClass& weightiest = incidents.emplace(IncidentOf(entry), of).first->second;
    if (PointsOf(of) > PointsOf(weightiest)) weightiest = of;
    if (latest == nullptr || std::tie(latest->time, *latest) < std::tie(entry.time, entry))
      latest = &entry;
  }
  for (const auto& [incident, of] : incidents) {
    verdict.points += PointsOf(of);
    if (of == EvidenceClass::kCertain) result.certain_points += PointsOf(of);
  }
  verdict.drained = !verdict.pinned && (wanted_back || verdict.points >= options_.points_min);
  if (latest != nullptr) result.latest = latest->time;
  verdict.reason = ReasonOf(name, blamed, acquitted, latest, wanted_back);
  return result;
}

// Of those with enough points, the ones with the best reasons, up to the cap.
void EvidenceBook::Exclude(std::vector<Case>& cases) const {
  std::vector<Case*> candidates;
  for (Case& one : cases) {
    if (one.verdict.pinned)
      one.verdict.reason += "; pinned";
    else if (one.verdict.points >= options_.points_min)
      candidates.push_back(&one);
  }
  std::sort(candidates.begin(), candidates.end(), [](const Case* a, const Case* b) {
    return std::tuple(-a->certain_points, -a->verdict.points, b->latest,
                      std::string_view(a->verdict.node)) <
           std::tuple(-b->certain_points, -b->verdict.points, a->latest,
                      std::string_view(b->verdict.node));
  });
  const int share = options_.nodes * options_.excluded_percent_max / 100;
  const int cap = std::min(options_.excluded_max, std::max(1, share));
  int excluded = 0;
  for (Case* one : candidates) {
    if (excluded < cap) {
      one->verdict.excluded = true;
      ++excluded;
    } else {
      one->verdict.reason +=
          fmt::format("; not excluded: {} of {} nodes are, which is the most", cap, options_.nodes);
    }
  }
}

std::vector<EvidenceBook::SuspectProgram> EvidenceBook::ProgramsOf(const Spans& spans,
                                                                   absl::Time now) const {
  std::vector<SuspectProgram> programs;
  for (const auto& [key, found] : spans)
    for (const Span& span : found) {
      if (now >= span.until + ExpiryOf({.kind = key.first, .number = key.second})) continue;
      programs.push_back(
          {.kind = key.first,
           .number = key.second,
           .nodes = static_cast<int>(span.incidents.size()),
           .from = span.from,
           .until = span.until,
           .reason = fmt::format("{} on {} nodes from {} to {}: suspect the program, or what these "
                                 "nodes share, and not the nodes",
                                 WordsOf(key.first, key.second), span.incidents.size(),
                                 Minute(span.from), Minute(span.until))});
    }
  return programs;
}

EvidenceBook::Judgement EvidenceBook::Judge(absl::Time now) const {
  const Spans spans = FindSpans(now);
  std::set<std::string_view> names(pins_.begin(), pins_.end());
  for (const auto& [name, held] : nodes_) names.insert(name);
  std::vector<Case> cases;
  for (const std::string_view name : names) {
    const auto known = nodes_.find(std::string(name));
    cases.push_back(
        Weigh(std::string(name), known == nodes_.end() ? Held{} : known->second, spans, now));
  }
  Exclude(cases);
  Judgement judgement{.programs = ProgramsOf(spans, now)};
  for (Case& one : cases) judgement.nodes.push_back(std::move(one.verdict));
  return judgement;
}

std::vector<EvidenceBook::Verdict> EvidenceBook::Excluded(absl::Time now) const {
  std::vector<Verdict> verdicts = Judge(now).nodes;
  std::erase_if(verdicts, [](const Verdict& verdict) { return !verdict.excluded; });
  return verdicts;
}

bool EvidenceBook::Drained(const std::string& name, absl::Time now) const {
  const auto known = nodes_.find(name);
  if (known == nodes_.end()) return false;
  return Weigh(name, known->second, FindSpans(now), now).verdict.drained;
}

}  // namespace perdure
