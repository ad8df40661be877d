// Which atoms a part file holds, who writes which of them, and where each then stands. Pure.
//
// A file has one or more writers; each writes a *run*: some of the file's atoms, one after the
// other. In every dataset a run begins at a whole block, so that no two writers share one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"

namespace perdure {

struct PartPlan {
  std::string file;            // "part-00000.h5".
  std::vector<int64_t> atoms;  // In the order of the datasets' elements.
  std::vector<int64_t> runs;   // Of how many of them each run consists; their sum is atoms.size().
};

// What every part file of a checkpoint says.
struct PartStamp {
  int64_t step = 0;
  uint64_t generation = 0;
  std::string run_id;
};

// Elements of each of a part's datasets.
struct ElementPlaces {
  std::vector<int64_t> begins;   // Of each atom, in the plan's order.
  std::vector<IndexRange> runs;  // Of each run, from its first atom's first to its last one's end.
  int64_t length = 0;            // Of the dataset.
};

// REQUIRES: atoms of the table, runs that add up to them.
ElementPlaces PlaceElements(const AtomTable& table, std::span<const int64_t> atoms,
                            std::span<const int64_t> runs);

// What one writer of a part did: goes to whoever joins them.
struct RunReport {
  std::string file;
  int64_t run = 0;
  std::vector<int64_t> runs;  // Of the file's plan.
  uint64_t bytes = 0;         // Of the file.
  std::array<uint64_t, kStatePartCount> offsets{};
  std::vector<int64_t> atoms;        // Of this run.
  std::vector<Digest> atom_digests;  // Likewise.
  std::vector<uint64_t> blocks;      // Those that this writer wrote, ascending,
  std::vector<Digest> block_digests;
};
std::string SerializeRun(const RunReport& run);  // For the wire.
absl::StatusOr<RunReport> ParseRun(std::string_view serialized);

// DataLoss names what does not fit together: a run missing or twice, another plan, a block of
// nobody.
absl::StatusOr<PartReport> JoinRuns(std::span<const RunReport> runs);

}  // namespace perdure
