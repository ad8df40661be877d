// Text -> PREFIX.bin and PREFIX.idx: extract, drop duplicates, tokenize, write. Equal input gives
// equal bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/text_sources.h"

namespace perdure {

struct BuildOptions {
  std::vector<std::string> from;  // Files and folders.
  std::string tokenizer;  // "byte", "sentencepiece:VOCAB" (trained on the text), or a .model file.
  std::string output;     // PREFIX; the model that is trained becomes PREFIX.model.
  bool force = false;     // Replace what is there.
};

struct BuildProgress {
  std::string_view stage;  // "read" (for training), "train", "encode".
  int64_t files_done = 0;
  int64_t files = 0;
  int64_t text_bytes = 0;
  int64_t tokens = 0;
};
// Called before every file and before training; false ends the build with Aborted.
using BuildWatcher = std::function<bool(const BuildProgress&)>;

struct BuildSummary {
  int64_t files = 0;  // That were read; `skipped` counts others too.
  int64_t documents = 0;
  SkipCounts skipped{};
  int64_t text_bytes = 0;  // Of the documents.
  int64_t tokens = 0;      // With one end-of-document id each.
  int64_t vocab = 0;
  int token_bytes = 0;
  std::string model;           // The model that was trained, or empty.
  int64_t training_bytes = 0;  // Of text that it was trained on.
  double training_seconds = 0;
  double encoding_seconds = 0;  // Reading and writing included.
  std::vector<std::string> outputs;
};

// Outputs appear when all are complete, or not at all. AlreadyExists names one that is there.
absl::StatusOr<BuildSummary> BuildDataset(const BuildOptions& options, const BuildWatcher& watcher);

}  // namespace perdure
