// Where the states of atoms come from when a checkpoint is made of something that is not in memory:
// another checkpoint (reshard) or a foreign format (import).
#pragma once

#include <span>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"

namespace perdure {

class StateSource {
 public:
  virtual ~StateSource() = default;
  // Fills the floats of `wanted`, atoms of the table that the source was opened with; an error says
  // where it lies. One thread at a time.
  virtual absl::Status Read(std::span<const AtomState> wanted) = 0;
};

}  // namespace perdure
