// What is said in options that people give sbatch. Each option may be spelled in several ways, and
// of repeated ones the last counts.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

// The value of an option: "-xV", "-x V", "--exclude=V", "--exclude V", and words that begin the
// long name from `unique` on ("exclud": what no other option of sbatch begins with).
struct SbatchOption {
  char letter;
  std::string_view name, unique;
};
inline constexpr SbatchOption kExcludeOption{.letter = 'x', .name = "exclude", .unique = "exclud"};
inline constexpr SbatchOption kPartitionOption{
    .letter = 'p', .name = "partition", .unique = "part"};
std::optional<std::string> ValueOf(const SbatchOption& option,
                                   std::span<const std::string> options);

// The nodes that --exclude names, sorted, each once; a value with a slash is a file of names, as
// sbatch has it. InvalidArgument: it is no list of nodes; otherwise the file cannot be read.
absl::StatusOr<std::vector<std::string>> ExcludedByOptions(std::span<const std::string> options);

}  // namespace perdure
