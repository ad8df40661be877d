// Which tokens are sample number i of a phase: a pure function of (seed, phase, mixture, i). The
// data position of a run is therefore one integer, and no layout, job or failure can change what is
// read.
//
// Mixture: weights become integer counts per block of 65,536 samples (largest remainder), so a
// source's share is exact; inside a block the sources are interleaved by Megatron's greedy rule
// (the source whose share lags most comes next). The n-th use of a source maps to its (n mod
// size)-th sample under a pseudo-random permutation that is new each epoch. A sample is context + 1
// consecutive tokens of .bin (documents packed end to end), sharing one token with the next.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/digest.h"
#include "runtime/data/indexed_dataset.h"

namespace perdure {

struct MixtureSource {
  std::string prefix;  // Absolute or relative to the working directory: already joined with the
                       // data directory.
  double weight = 0;   // > 0.
};

struct SampleAddress {
  int32_t source = 0;
  int64_t epoch = 0;  // Of that source.
  int64_t sample =
      0;  // Index within the source: tokens [sample * context, sample * context + context].
};

class SampleOrder {
 public:
  // Opens every source; InvalidArgument when one is too short for a single sample or names a weight
  // that is not positive.
  static absl::StatusOr<std::unique_ptr<SampleOrder>> Open(std::span<const MixtureSource> mixture,
                                                           int64_t context, int64_t vocab,
                                                           uint64_t seed, int64_t phase);
  virtual ~SampleOrder() = default;

  // InvalidArgument when one of the first 2^28 tokens of a source is outside the vocabulary (the
  // message names file, id, vocab). For whoever starts a job: terabytes need not be read before the
  // first step, because Read compares every token again.
  virtual absl::Status CheckTokens() const = 0;

  virtual SampleAddress Locate(int64_t index) const = 0;  // index >= 0, counted within the phase.
  // tokens.size() == context + 1. DataLoss names source, token and vocabulary when an id is
  // outside.
  virtual absl::Status Read(const SampleAddress& address, std::span<int32_t> tokens) const = 0;
  // The chain after samples [first, last): digest over (chain, and per sample source, epoch,
  // sample).
  virtual Digest Chain(const Digest& chain, int64_t first, int64_t last) const = 0;
  virtual std::vector<std::string> SourceNames() const = 0;  // Last path component of each prefix.
};

}  // namespace perdure
