// What is said in options that people give sbatch. Each option may be spelled in several ways, and
// of repeated ones the last counts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/slurm/allocation.h"

namespace perdure {

// The value of an option: "-xV", "-x V", "--exclude=V", "--exclude V", and words that begin the
// long name from `unique` on ("exclud": what no other option of sbatch begins with).
struct SbatchOption {
  char letter;  // 0: none.
  std::string_view name, unique;
  std::string_view variable;  // That sbatch reads, too; empty: none.
};
inline constexpr SbatchOption kExcludeOption{
    .letter = 'x', .name = "exclude", .unique = "exclud", .variable = ""};
inline constexpr SbatchOption kPartitionOption{
    .letter = 'p', .name = "partition", .unique = "part", .variable = "SBATCH_PARTITION"};
inline constexpr SbatchOption kQosOption{
    .letter = 'q', .name = "qos", .unique = "qo", .variable = "SBATCH_QOS"};
inline constexpr SbatchOption kAccountOption{
    .letter = 'A', .name = "account", .unique = "acco", .variable = "SBATCH_ACCOUNT"};
inline constexpr SbatchOption kGresOption{
    .letter = 0, .name = "gres", .unique = "gres", .variable = "SBATCH_GRES"};
inline constexpr SbatchOption kGpusPerNodeOption{.letter = 0,
                                                 .name = "gpus-per-node",
                                                 .unique = "gpus-per-n",
                                                 .variable = "SBATCH_GPUS_PER_NODE"};
inline constexpr SbatchOption kCpusPerTaskOption{
    .letter = 'c', .name = "cpus-per-task", .unique = "cpus-per-t", .variable = ""};
std::optional<std::string> ValueOf(const SbatchOption& option,
                                   std::span<const std::string> options);

// What of it counts: the last on sbatch's command line, else what `lookup` says of its variable,
// else the last in the script; nothing: it is not said.
std::optional<std::string> CountingValueOf(const SbatchOption& option,
                                           std::span<const std::string> command_line,
                                           const EnvironmentLookup& lookup,
                                           std::span<const std::string> script);

// GPUs of a node by a value of --gres, "gpu:4" or "gpu:h100:4,nic:1", and by one of
// --gpus-per-node, "4" or "h100:4"; 0: none are named.
int64_t GpusOfGres(std::string_view gres);
int64_t GpusPerNode(std::string_view count);

// The nodes that --exclude names, sorted, each once; a value with a slash is a file of names, as
// sbatch has it. InvalidArgument: it is no list of nodes; otherwise the file cannot be read.
absl::StatusOr<std::vector<std::string>> ExcludedByOptions(std::span<const std::string> options);

}  // namespace perdure
