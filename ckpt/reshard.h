// Re-cuts the files of a checkpoint: the same state and the same manifest but for `parts`. Bounded
// memory, several files at once, and an interrupted call continues where it stood.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/part_plan.h"
#include "ckpt/stream.h"

namespace perdure {

struct Resharded {
  Manifest manifest;
  absl::Status view;  // Of view.h5, without which a checkpoint is good all the same.
};

// Makes the checkpoint TARGET of the one in `source`, whose manifest is given, with the files of
// `plans`. Work is done in TARGET.partial (ckpt/partial.h). Every atom is
// compared with its digest when it is read, every file is read back when it is written. DataLoss
// names what is bad in the source. Equal plans give equal bytes.
absl::StatusOr<Resharded> Reshard(const std::string& source, const Manifest& manifest,
                                  std::span<const PartPlan> plans, const std::string& target,
                                  const StreamOptions& options);

}  // namespace perdure
