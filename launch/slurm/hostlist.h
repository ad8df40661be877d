// Slurm's notation for lists of nodes, "n[1-3,7],x[08-10]": read and written here, because
// `scontrol show hostnames` wants a readable slurm.conf and is missing in containers.
//
// The grammar is that of Slurm 22.05: brackets hold numbers and ranges of numbers, zeros in front
// are part of a name, a name may have several brackets, and nothing follows the last of them. From
// 23.11 on text may follow, "node[01-10]-int". Whoever sends a list may be hostile: nothing is
// allocated beyond kHostlistNamesMax names.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

// As many as Slurm itself takes in one list.
inline constexpr size_t kHostlistNamesMax = 65536;

// Whether text may follow the last bracket. What people write should be read by any Slurm; what a
// Slurm has printed is read as it is.
enum class HostlistGrammar { k22_05, k23_11 };

// The names in the order of the list, repeated ones repeated. "" and "(null)" are no names.
// InvalidArgument says what is wrong and at which character, counted from 0.
absl::StatusOr<std::vector<std::string>> ExpandHostlist(
    std::string_view list, HostlistGrammar grammar = HostlistGrammar::k22_05);

// `names` in Slurm's usual form: sorted by name and number, neighbours joined, each once.
// ExpandHostlist gives the same names back. REQUIRES: each is one name, see IsNodeName.
std::string CompressHostlist(std::span<const std::string> names);

// Letters, digits, '-', '_', '.': nothing that means something in a list.
bool IsNodeName(std::string_view name);

}  // namespace perdure
