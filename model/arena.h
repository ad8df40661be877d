// Where a rank keeps the parameters it computes with: one flat arena of buckets, laid out so that
// fused matmuls read neighbouring slices as one matrix and so that an owner's share of a bucket is
// one contiguous run.
//
// A bucket is what is gathered and exchanged as one: a block, the embedding (layer -1), or the
// final norm and the head (layer = layers). Within a block: per local slice q|k|v, then o per
// slice, then gate|up per slice, then down per slice, then the two norms. The layout of a bucket
// follows from (model, tensor_shards, tensor size, tensor index) alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "runtime/base/atoms.h"

namespace perdure {

// One slice of one tensor. Offsets are in elements; every piece begins at a multiple of 16 within
// its bucket.
struct Piece {
  int32_t tensor = 0;
  int32_t slice = 0;
  int64_t offset = 0;  // Within the bucket.
  int64_t size = 0;
};

// An atom's place in its bucket.
struct PlacedAtom {
  int64_t atom = 0;    // Index in the AtomTable.
  int64_t offset = 0;  // Within the bucket, in elements.
  int64_t count = 0;
};

struct Bucket {
  int64_t layer = 0;
  int64_t offset = 0;  // Of the bucket in the rank's arena.
  int64_t size = 0;    // Elements, padding included.
  std::vector<Piece> pieces;
  std::vector<PlacedAtom> atoms;  // In bucket order.
};

// Which part of the model a rank holds.
struct TensorSlot {
  int64_t shards = 1;  // V.
  int64_t size = 1;    // T.
  int64_t index = 0;   // t: local slices are [t V/T, (t + 1) V/T).

  int64_t local() const { return shards / size; }
  int64_t first() const { return index * local(); }
};

// Buckets of the given layers (-1 and model.layers allowed), in that order.
std::vector<Bucket> MakeBuckets(const AtomTable& table, const ModelConfig& model,
                                const TensorSlot& slot, std::span<const int64_t> layers);

}  // namespace perdure
