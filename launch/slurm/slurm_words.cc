#include "launch/slurm/slurm_words.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "launch/slurm/hostlist.h"
#include "launch/slurm/text_reader.h"
#include "runtime/base/status.h"

namespace perdure {

absl::StatusOr<std::optional<absl::Time>> ParseSlurmTime(std::string_view text) {
  for (const std::string_view none : {"Unknown", "N/A", "NONE", "None", "(null)", ""})
    if (text == none) return std::nullopt;
  const absl::StatusOr<int64_t> seconds = ParseNumber<int64_t>(text);
  if (!seconds.ok()) return Unreadable("a time in seconds", text);
  return std::optional(absl::FromUnixSeconds(*seconds));
}

absl::StatusOr<std::optional<absl::Duration>> ParseSlurmDuration(std::string_view text) {
  for (const std::string_view none :
       {"NONE", "NOT_SET", "INVALID", "Partition_Limit", "(null)", ""})
    if (text == none) return std::nullopt;
  if (text == "UNLIMITED" || text == "INFINITE") return std::optional(absl::InfiniteDuration());
  const absl::Status bad = Unreadable("a time D-HH:MM:SS", text);
  int64_t days = 0;
  std::string_view clock = text;
  if (const size_t dash = text.find('-'); dash != text.npos) {
    const absl::StatusOr<int64_t> number = ParseNumber<int64_t>(text.substr(0, dash));
    if (!number.ok() || *number > 1'000'000) return bad;
    days = *number;
    clock = text.substr(dash + 1);
  }
  const std::vector<std::string_view> parts = Split(clock, ":");
  if (parts.size() < 2 || parts.size() > 3) return bad;
  int64_t seconds = 0;
  for (const std::string_view part : parts) {
    const absl::StatusOr<int64_t> number = ParseNumber<int64_t>(part);
    if (!number.ok() || *number > 1'000'000) return bad;
    seconds = seconds * 60 + *number;
  }
  return std::optional(absl::Hours(24 * days) + absl::Seconds(seconds));
}

std::string SlurmDuration(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "UNLIMITED";
  const int64_t minutes = absl::ToInt64Minutes(absl::Ceil(duration, absl::Minutes(1)));
  return fmt::format("{}-{:02}:{:02}:00", minutes / (24 * 60), minutes / 60 % 24, minutes % 60);
}

absl::StatusOr<NodeRange> ParseNodeRange(std::string_view text) {
  NodeRange range;
  bool first = true, several = false;
  for (std::string_view part : Split(text, ",")) {
    part = part.substr(0, part.find(':'));  // A step, as in 1-15:4.
    for (const std::string_view word : Split(part, "-")) {
      ASSIGN_OR_RETURN(const int nodes, ParseNodeCount(word));
      several = several || !first;
      range.least = first ? nodes : std::min(range.least, nodes);
      range.most = std::max(range.most, nodes);
      first = false;
    }
  }
  if (!several) range.most = 0;
  return range;
}

absl::StatusOr<int> ParseNodeCount(std::string_view text) {
  ASSIGN_OR_RETURN(const int64_t count, ParseCount(text));
  if (count > std::numeric_limits<int>::max()) return Unreadable("a number of nodes", text);
  return static_cast<int>(count);
}

absl::StatusOr<std::vector<std::string>> ParseNodeNames(std::string_view list) {
  absl::StatusOr<std::vector<std::string>> nodes = ExpandHostlist(list, HostlistGrammar::k23_11);
  if (!nodes.ok()) return Internal("{}", Message(nodes.status()));
  return nodes;
}

std::string TextOrNothing(std::string_view text) {
  return text == "None" || text == "(null)" || text == "N/A" || text == "n/a" ? ""
                                                                              : std::string(text);
}

absl::StatusOr<JobExit> ParseExit(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == text.npos) return Unreadable("an exit code 'code:signal'", text);
  JobExit exit;
  ASSIGN_OR_RETURN(exit.code, ParseNumber<int>(text.substr(0, colon)));
  ASSIGN_OR_RETURN(exit.signal, ParseNumber<int>(text.substr(colon + 1)));
  return exit;
}

}  // namespace perdure
