// Initial parameter values: a function of (seed, tensor, element), so that any rank can make any
// atom.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/atoms.h"

namespace perdure {

// Fills values[i] for element i of the atom. Normal(0, init_std) by Philox at (seed, tensor index,
// row * cols + col) of the logical tensor; ones where init_std is 0. REQUIRES: values.size() ==
// atom.count.
void InitializeAtom(const AtomTable& table, const Atom& atom, uint64_t seed,
                    std::span<float> values);

}  // namespace perdure
