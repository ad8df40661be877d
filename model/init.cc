#include "model/init.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/random.h"

namespace perdure {

void InitializeAtom(const AtomTable& table, const Atom& atom, uint64_t seed,
                    std::span<float> values) {
  PERDURE_CHECK(static_cast<int64_t>(values.size()) == atom.count);
  const TensorSpec& tensor = table.tensors()[static_cast<size_t>(atom.tensor)];
  if (tensor.init_std == 0) {
    std::fill(values.begin(), values.end(), 1.0F);
    return;
  }
  uint64_t pair = ~uint64_t{0};  // The pair of normals at hand: neighbours share one draw.
  std::array<double, 2> normals{};
  for (int64_t i = 0; i < atom.count; ++i) {
    const AtomTable::Place place = table.Locate(atom, i);
    const auto element = static_cast<uint64_t>(place.row * tensor.cols + place.col);
    if (element / 2 != pair) {
      pair = element / 2;
      normals =
          RandomNormals(seed, RandomPurpose::kInitialize, static_cast<uint64_t>(atom.tensor), pair);
    }
    values[static_cast<size_t>(i)] = static_cast<float>(normals[element % 2] * tensor.init_std);
  }
}

}  // namespace perdure
