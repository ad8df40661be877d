#include <bit>

#include "ckpt/checkpoint.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {

// State is written and digested as it stands in memory; the format is little-endian.
static_assert(std::endian::native == std::endian::little);

Digest AtomDigest(const AtomState& state, int64_t count) {
  DigestStream stream;
  for (const float* part : state.parts) {
    PERDURE_CHECK(part != nullptr);
    stream.Update(part, static_cast<size_t>(count) * sizeof(float));
  }
  return stream.Finish();
}

std::vector<Digest> TensorDigests(const AtomTable& table, std::span<const Digest> atom_digests) {
  PERDURE_CHECK(atom_digests.size() == table.atoms().size());
  std::vector<Digest> digests;
  digests.reserve(table.tensors().size());
  for (size_t t = 0; t < table.tensors().size(); ++t) {
    const IndexRange atoms = table.TensorAtoms(static_cast<int64_t>(t));
    DigestStream stream;
    for (int64_t a = atoms.first; a < atoms.last; ++a)
      stream.Update(atom_digests[static_cast<size_t>(a)]);
    digests.push_back(stream.Finish());
  }
  return digests;
}

Digest Certificate(const AtomTable& table, std::span<const Digest> atom_digests, int64_t step,
                   int64_t samples, std::span<const Gap> gaps) {
  const std::vector<Digest> digests = TensorDigests(table, atom_digests);
  DigestStream stream;
  stream.UpdateU64(static_cast<uint64_t>(step));
  stream.UpdateU64(static_cast<uint64_t>(samples));
  stream.UpdateU64(digests.size());
  for (size_t t = 0; t < digests.size(); ++t) {
    const TensorSpec& tensor = table.tensors()[t];
    stream.UpdateU64(tensor.name.size());
    stream.Update(tensor.name);
    stream.UpdateU64(static_cast<uint64_t>(tensor.rows));
    stream.UpdateU64(static_cast<uint64_t>(tensor.cols));
    stream.Update(digests[t]);
  }
  for (const int64_t number : NumbersOf(gaps)) stream.UpdateU64(static_cast<uint64_t>(number));
  return stream.Finish();
}

std::string CheckpointName(int64_t step, uint64_t generation, uint32_t nonce) {
  return fmt::format("s{:09}.g{}.{:08x}", step, generation, nonce);
}

}  // namespace perdure
