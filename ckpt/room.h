// How much room a checkpoint takes, before it is written.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "ckpt/part_plan.h"
#include "runtime/base/space.h"

namespace perdure {

// Of these files, manifest and view; a little too much rather than too little.
SpaceNeed CheckpointNeed(const AtomTable& table, std::span<const PartPlan> plans);

// For commands that make the directory `target` of `what`: ResourceExhausted before anything is
// written. What an interrupted call has left in TARGET.partial is there already.
absl::Status CheckRoomFor(const std::string& target, const std::string& what, SpaceNeed need);

}  // namespace perdure
