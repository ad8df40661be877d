// A run that begins with a state made elsewhere: its directory, with one committed checkpoint.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/checkpoint.h"
#include "ckpt/stream.h"
#include "runtime/train/run_config.h"

namespace perdure {

struct ImportOptions {
  RunConfig config;           // As `perdure run` will be given it.
  std::string format;         // "hf", "megatron-deepspeed", "universal", "dcp".
  std::string directory;      // Of the source.
  std::string run_directory;  // Must not exist; made in <run_directory>.partial.
  // Where the run stands; absent: where the source says, 0 where it does not.
  std::optional<int64_t> step;
};

// A source that was checked.
struct Import {
  RunConfig config;
  std::unique_ptr<AtomTable> table;
  Manifest head;                   // Step, samples, tokens, phase, texts.
  OpenSource open;                 // Uses the table.
  std::vector<std::string> notes;  // Sentences: it will do, but a person should know.
};

// Reads what the source says of itself, and its checksums where it has any: the model must be the
// configuration's, the step must lie on its schedule. Writes nothing.
absl::StatusOr<Import> CheckImport(const ImportOptions& options, const Progress& progress);

// Makes the run: run.toml, key, checkpoint, and the records START, COMMIT, VERIFIED, END that a job
// would have written. An interrupted call continues. Returns the manifest.
absl::StatusOr<Manifest> WriteImport(const Import& import, const ImportOptions& options,
                                     const StreamOptions& stream);

}  // namespace perdure
