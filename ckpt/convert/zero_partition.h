// One file of DeepSpeed's optimizer state: what a data rank keeps of the parameters of a pipeline
// stage and tensor rank, in flat tensors.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/float_source.h"
#include "ckpt/convert/foreign_file.h"

namespace perdure {

// A run of a parameter's elements, flat, as one data rank holds it.
struct ZeroFragment {
  int64_t data_rank = 0;
  std::array<std::shared_ptr<FloatSource>, kStatePartCount> sources;  // Flat tensors of a group.
  int64_t first = 0;                                                  // In those.
  int64_t count = 0;
  bool at_begin = false, at_end = false;  // Of the data rank's partition.
};

// Of one pipeline stage and tensor rank, by parameter; fragments by data rank.
using ZeroFragments = std::map<std::string, std::vector<ZeroFragment>>;

// What the optimizer says of its progress; -1: nothing so far.
struct ZeroProgress {
  int64_t step = -1;  // In every file the same.
  double rate = -1;   // Of the first group that has one: factors make others' differ.
};

// Adds what the file at `path` holds. `progress` is what other files said before: this one must
// agree with the step.
absl::Status ReadZeroPartition(const std::string& path, int64_t data_rank, int64_t data_ranks,
                               FileCache& files, ZeroFragments& fragments, ZeroProgress& progress);

// The parameter's elements out of its fragments, for each part of the state. DataLoss when they do
// not join.
absl::StatusOr<std::array<std::shared_ptr<FloatSource>, kStatePartCount>> JoinFragments(
    const std::vector<ZeroFragment>& fragments, const std::string& where);

}  // namespace perdure
