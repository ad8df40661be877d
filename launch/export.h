// A checkpoint in the formats of other tools: what `perdure ckpt export` and a run by itself write.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "ckpt/convert/safetensors.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct ExportOptions {
  std::string format = "hf";  // "hf", "universal", "dcp".
  std::string directory;      // Must not exist; its parent must.
  // Of hf alone.
  SafetensorsDType dtype = SafetensorsDType::kBF16;
  uint64_t shard_bytes_max = 5'000'000'000;
  std::string tokenizer;  // A file to copy; empty: none.
};

// Every atom is compared with its digest. `config` is the run's: model, phases, optimizer.
// AlreadyExists: the directory does. It appears when it is whole; what an interrupted call leaves
// beside it does not stand in the way of the next one.
absl::Status ExportCheckpoint(const std::string& checkpoint, const Manifest& manifest,
                              const RunConfig& config, const ExportOptions& options,
                              const Progress& progress = nullptr);

}  // namespace perdure
