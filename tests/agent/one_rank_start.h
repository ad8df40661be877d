// A START of one rank on one node, for tests that need any.
#pragma once

#include "runtime/agent/records.h"

namespace perdure {

inline StartRecord OneRankStart(int64_t step) {
  return {.shape = {.tensor = 1, .pipeline = 1, .data = 1},
          .seats = {{0, 0}},
          .layout = "tensor 1 x pipeline 1 x data 1, zero 1",
          .step = step};
}

}  // namespace perdure
