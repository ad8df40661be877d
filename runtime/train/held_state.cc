#include "runtime/train/held_state.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

// Of one old rank: what is wanted of its snapshot.
struct Wanted {
  int32_t rank = 0;
  std::vector<int64_t> atoms;
};

std::vector<Wanted> WantedByRank(const std::vector<std::vector<int64_t>>& owned,
                                 const AtomTable& table, std::span<const int64_t> wanted,
                                 bool chain) {
  std::vector<int32_t> owner(table.atoms().size(), -1);
  for (size_t rank = 0; rank < owned.size(); ++rank)
    for (const int64_t atom : owned[rank])
      owner[static_cast<size_t>(atom)] = static_cast<int32_t>(rank);
  std::vector<std::vector<int64_t>> by_rank(owned.size());
  for (const int64_t atom : wanted) {
    const int32_t rank = owner[static_cast<size_t>(atom)];
    PERDURE_CHECK(rank >= 0);
    by_rank[static_cast<size_t>(rank)].push_back(atom);
  }
  std::vector<Wanted> result;
  for (size_t rank = 0; rank < by_rank.size(); ++rank)
    if (!by_rank[rank].empty() || (chain && rank == 0))
      result.push_back({static_cast<int32_t>(rank), std::move(by_rank[rank])});
  return result;
}

absl::Status CheckIs(const SnapshotReader& file, const SnapshotStamp& expected,
                     std::span<const int64_t> atoms) {
  const SnapshotStamp& stamp = file.stamp();
  const auto differs = [&](const char* field, const auto& is, const auto& due) {
    return DataLoss("snapshot {} of rank {}: {} is {}, due was {}; it is not used", file.path(),
                    expected.rank, field, is, due);
  };
  if (stamp.run_id != expected.run_id) return differs("run id", stamp.run_id, expected.run_id);
  if (stamp.generation != expected.generation)
    return differs("generation", stamp.generation, expected.generation);
  if (stamp.step != expected.step) return differs("step", stamp.step, expected.step);
  if (stamp.rank != expected.rank) return differs("rank", stamp.rank, expected.rank);
  if (!std::equal(atoms.begin(), atoms.end(), file.atoms().begin(), file.atoms().end()))
    return differs("index", fmt::format("of {} atoms", file.atoms().size()),
                   fmt::format("that of the old layout, {} atoms", atoms.size()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HeldState>> HeldState::Find(const Options& options,
                                                           const HeldStart& start,
                                                           const AtomTable* table,
                                                           std::span<const int64_t> wanted,
                                                           RankHost* host) {
  RunConfig old = options.config;
  old.layout.tensor = start.tensor;
  old.layout.pipeline = start.pipeline;
  old.layout.data = start.data;
  if (start.virtual_stages > 0) old.layout.virtual_stages = start.virtual_stages;
  const std::vector<std::vector<int64_t>> owned = AtomsByRank(old, *table);
  const std::vector<Wanted> by_rank = WantedByRank(owned, *table, wanted, options.history);
  std::vector<HeldNeed> needs;
  for (const Wanted& of : by_rank)
    needs.push_back(
        {of.rank, SnapshotRanges(*table, owned[static_cast<size_t>(of.rank)], of.atoms)});
  std::vector<std::string> paths;
  if (!needs.empty()) {
    ASSIGN_OR_RETURN(paths, host->FindHeld(needs));
  }
  if (paths.size() != needs.size())
    return Internal("{} files were found for {} needed snapshots", paths.size(), needs.size());

  std::unique_ptr<HeldState> held(new HeldState);
  held->host_threads_ = options.host_threads;
  held->file_of_.assign(table->atoms().size(), -1);
  for (size_t i = 0; i < by_rank.size(); ++i) {
    ASSIGN_OR_RETURN(auto file, SnapshotReader::Open(paths[i], table));
    const SnapshotStamp expected{.run_id = options.run_id,
                                 .generation = start.generation,
                                 .step = start.step,
                                 .rank = by_rank[i].rank};
    RETURN_IF_ERROR(CheckIs(*file, expected, owned[static_cast<size_t>(by_rank[i].rank)]));
    if (expected.rank == 0) held->history_ = file->stamp().history;
    for (const int64_t atom : by_rank[i].atoms)
      held->file_of_[static_cast<size_t>(atom)] = static_cast<int32_t>(i);
    held->files_.push_back(std::move(file));
  }
  return held;
}

absl::Status HeldState::Read(std::span<const AtomState> atoms) const {
  std::vector<std::vector<AtomState>> by_file(files_.size());
  for (const AtomState& state : atoms) {
    const int32_t file = file_of_[static_cast<size_t>(state.atom)];
    PERDURE_CHECK(file >= 0);
    by_file[static_cast<size_t>(file)].push_back(state);
  }
  for (size_t i = 0; i < files_.size(); ++i)
    RETURN_IF_ERROR(files_[i]->Read(by_file[i], host_threads_));
  return absl::OkStatus();
}

}  // namespace perdure
