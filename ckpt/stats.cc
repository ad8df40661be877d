#include "ckpt/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ckpt/atom_reader.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct Sums {
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0, squares = 0;
  int64_t finite = 0, not_finite = 0;

  void Add(const float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = values[i];
      if (!std::isfinite(value)) {
        ++not_finite;
        continue;
      }
      ++finite;
      min = std::min(min, value);
      max = std::max(max, value);
      sum += value;
      squares += value * value;
    }
  }

  ValueStats Finish() const {
    if (finite == 0) return {.not_finite = not_finite};
    const double count = static_cast<double>(finite);
    return {min, max, sum / count, std::sqrt(squares / count), not_finite};
  }
};

}  // namespace

absl::StatusOr<std::array<ValueStats, kStatePartCount>> TensorStats(const std::string& directory,
                                                                    const Manifest& manifest,
                                                                    const AtomTable& table,
                                                                    int64_t tensor) {
  ASSIGN_OR_RETURN(const auto reader, AtomReader::Open(directory, manifest, table));
  std::array<Sums, kStatePartCount> sums;
  RETURN_IF_ERROR(ForEachAtom(*reader, table, table.TensorAtoms(tensor),
                              [&sums](const AtomState& state, int64_t count) {
                                for (size_t i = 0; i < sums.size(); ++i)
                                  sums[i].Add(state.parts[i], count);
                              }));
  std::array<ValueStats, kStatePartCount> stats;
  for (size_t i = 0; i < sums.size(); ++i) stats[i] = sums[i].Finish();
  return stats;
}

}  // namespace perdure
