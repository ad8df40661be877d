// A training state put together from rectangles that stand elsewhere: what every import is.
//
// A rectangle ("block") of a logical tensor has its rows in one FloatSource at a fixed stride. The
// blocks of a tensor lie in bands: blocks of one band cover the same rows and side by side all
// columns; bands follow each other. That is checked when a tensor is set, so that every element
// comes from exactly one place.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/float_source.h"
#include "ckpt/state_source.h"
#include "runtime/base/atoms.h"

namespace perdure {

struct StateBlock {
  int64_t row = 0, col = 0;    // In the logical tensor.
  int64_t rows = 0, cols = 0;  // Extent.
  std::shared_ptr<FloatSource> source;
  int64_t first = 0;   // Position of the block's first element in the source.
  int64_t stride = 0;  // Between rows, in elements.
};

class AssembledState : public StateSource {
 public:
  // The table outlives this.
  explicit AssembledState(const AtomTable& table);

  // Sets where a part of a tensor comes from. DataLoss when the blocks do not tile it, naming
  // `what` and the place.
  absl::Status Set(int64_t tensor, int part, std::vector<StateBlock> blocks, std::string what);
  // DataLoss names the first tensor's part that was not set.
  absl::Status CheckComplete() const;

  absl::Status Read(std::span<const AtomState> wanted) override;

 private:
  absl::Status ReadPart(const Atom& atom, int part, float* out);
  // Elements of one row, [col, col + count).
  absl::Status ReadRow(std::span<const StateBlock> blocks, int64_t row, int64_t col, int64_t count,
                       float* out);

  const AtomTable& table_;
  std::vector<std::array<std::vector<StateBlock>, kStatePartCount>> tensors_;  // By (row, col).
};

// What a foreign checkpoint says about itself; -1 where it does not.
struct ForeignProgress {
  int64_t iteration = -1;       // Finished optimizer steps.
  int64_t samples = -1;         // Consumed.
  int64_t tokens = -1;          // Consumed.
  int64_t optimizer_step = -1;  // What Adam counts; it lags behind iteration after skipped steps.
  double rate = -1;             // The learning rate that its last step led to.
  bool has_moments = true;      // False: exp_avg and exp_avg_sq are not there and read as zeros.
};

}  // namespace perdure
