// Diaries of what was seen of which node when, written into an evidence book.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/control/evidence_book.h"

namespace perdure {

using Kind = EvidenceKind;
inline const absl::Time kMonday = absl::FromCivil(absl::CivilDay(2026, 3, 2), absl::UTCTimeZone());
inline absl::Time Hour(int hour) { return kMonday + absl::Hours(hour); }
inline absl::Time Day(int day) { return Hour(24 * day); }

inline EvidenceBook::Options Nodes(int nodes) {
  EvidenceBook::Options options;
  options.nodes = nodes;
  return options;
}

// Each call is an incident of its own.
inline void See(EvidenceBook& book, absl::Time time, const std::string& node, Kind kind,
                int64_t number = 0) {
  const auto generation = static_cast<Generation>(absl::ToInt64Seconds(time - kMonday) + 1);
  EXPECT_EQ(book.Record({node, time, kind, number, generation, "7", ""}), absl::OkStatus());
}

inline std::vector<std::string> Names(const std::vector<EvidenceBook::Verdict>& verdicts) {
  std::vector<std::string> names;
  for (const EvidenceBook::Verdict& verdict : verdicts) names.push_back(verdict.node);
  return names;
}
inline EvidenceBook::Verdict Of(const EvidenceBook& book, const std::string& node, absl::Time now) {
  for (const EvidenceBook::Verdict& verdict : book.List(now))
    if (verdict.node == node) return verdict;
  return {};
}
inline std::string Numbered(int number) { return fmt::format("n{:03}", number); }

}  // namespace perdure
