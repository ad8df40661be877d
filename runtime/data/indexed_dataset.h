// Megatron's indexed dataset: PREFIX.bin holds tokens, PREFIX.idx says where sequences and
// documents begin. Byte-exact with Megatron-LM's version 1; layout in docs/formats.md.
//
// The reader maps both files and checks all of .idx before it is used: magic, version, dtype,
// lengths, offsets that stay inside .bin and follow one another. Tokens are read through the map;
// nothing is copied at open.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class IndexedDataset {
 public:
  // InvalidArgument / NotFound / DataLoss name the file, the field and the remedy.
  static absl::StatusOr<std::unique_ptr<IndexedDataset>> Open(const std::string& prefix);
  virtual ~IndexedDataset() = default;

  virtual const std::string& prefix() const = 0;
  virtual int64_t sequences() const = 0;
  virtual int64_t documents() const = 0;
  virtual int64_t tokens() const = 0;   // In all.
  virtual int token_bytes() const = 0;  // 1, 2, 4 or 8.
  // Sequences [first, last) of a document.
  virtual std::pair<int64_t, int64_t> Document(int64_t index) const = 0;
  virtual int64_t SequenceBegin(int64_t sequence) const = 0;  // Token offset in .bin.
  virtual int64_t SequenceTokens(int64_t sequence) const = 0;
  // out[i] = token begin + i of .bin, widened; ids of 8 bytes beyond int32 become its limits.
  // REQUIRES: within tokens().
  virtual void Read(int64_t begin, std::span<int32_t> out) const = 0;
  // The greatest token id (reads the whole .bin once; remembered). For the check against the
  // vocabulary.
  virtual int64_t MaxToken() const = 0;
};

// Writes PREFIX.bin and PREFIX.idx. Tokens are stored as u16 when vocab < 65500 (Megatron's rule),
// else i32. Files appear under their names only at Finish().
class IndexedDatasetWriter {
 public:
  static absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> Create(const std::string& prefix,
                                                                      int64_t vocab);
  virtual ~IndexedDatasetWriter() = default;
  // One document of one sequence.
  virtual absl::Status AddDocument(std::span<const int32_t> tokens) = 0;
  virtual absl::Status Finish() = 0;
};

}  // namespace perdure
