// Writes the parts of a checkpoint from a source that is read piece by piece: reshard, import.
// Memory is bounded, several files are written and read back at once, and what was finished before
// an interruption is kept.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/part_plan.h"
#include "ckpt/state_source.h"

namespace perdure {

// Deals the atoms in their order to `files` files, balanced by elements; fewer where there are
// fewer atoms.
std::vector<PartPlan> CutParts(const AtomTable& table, int64_t files);

inline constexpr uint64_t kStreamMemoryLeast = uint64_t{64} << 20;

struct StreamOptions {
  uint64_t memory_bytes = uint64_t{1} << 30;  // At least kStreamMemoryLeast.
  int threads = 8;    // Files at once, memory permitting; more than cores, for they wait for disks.
  Progress progress;  // Bytes of state, each twice: written, and read back.
};

// One for each thread that writes; may be called by several threads.
using OpenSource = std::function<absl::StatusOr<std::unique_ptr<StateSource>>()>;

// Writes every part into `directory`, which exists and belongs to this call alone, durably, and
// reads it back as VerifyPart does. A part is written when <file>.done, its report, is there; the
// caller deletes these when all is done. A written part that is found is read and compared instead
// of written; anything else of its name is written anew. The reports need not be durable for that:
// a lost or torn one costs no more than writing its part again.
absl::StatusOr<std::vector<PartReport>> StreamParts(const std::string& directory,
                                                    const AtomTable& table,
                                                    std::span<const PartPlan> plans,
                                                    const PartStamp& stamp, const OpenSource& open,
                                                    const StreamOptions& options);

// "part-00000.h5.done".
std::string DoneName(const std::string& part_file);

}  // namespace perdure
