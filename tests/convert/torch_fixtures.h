// Checkpoints that PyTorch and DeepSpeed wrote (make_torch_fixtures.py), what is in them
// (golden.txt) and whole tensors out of a StateSource, for tests.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "ckpt/state_source.h"
#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

std::string TorchFixture(const std::string& name);

// The scripts' model; smaller than what may be trained.
ModelConfig SmallModel(int64_t layers);
// Its atoms: slices that do not divide the vocabulary, atoms that end inside rows.
AtomTable SmallTable(int64_t layers, int64_t slices = 4, int64_t atom_elements = 13);

// All elements of each tensor's parts, row-major.
using WholeState = std::vector<std::array<std::vector<float>, kStatePartCount>>;
WholeState ReadWhole(StateSource& source, const AtomTable& table);
// Whether all bits are equal.
bool SameBits(const WholeState& a, const WholeState& b);

// Compares with the lines of golden.txt that begin with `label`; moments that have none are not
// compared.
void ExpectGolden(const std::string& label, StateSource& source, const AtomTable& table);

// Changes the pickle of a file of torch.save in place, its length kept and its CRC made true.
absl::Status RewritePickle(const std::string& path,
                           const std::function<void(std::string& pickle)>& change);

// A plain zip file of stored records, without zip64.
std::string MakeZip(const std::vector<std::pair<std::string, std::string>>& records);

// A copy of a fixture's directory, to be damaged.
std::string CopyFixture(const std::string& name, const std::string& to);

}  // namespace perdure
