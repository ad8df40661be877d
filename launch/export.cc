#include "launch/export.h"

#include <filesystem>
#include <functional>

#include "ckpt/atom_reader.h"
#include "ckpt/convert/dcp.h"
#include "ckpt/convert/huggingface.h"
#include "ckpt/convert/universal.h"
#include "ckpt/partial.h"
#include "ckpt/room.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

absl::Status ExportToHuggingFace(StateSource& source, const AtomTable& table,
                                 const Manifest& manifest, const RunConfig& config,
                                 const ExportOptions& options, const Progress& progress) {
  const PhaseConfig& phase = config.phases[static_cast<size_t>(manifest.phase)];
  return ExportHuggingFace(source, table,
                           {.directory = options.directory,
                            .model = ResolveModel(config.model),
                            .context = phase.context,
                            .rope_theta = phase.rope_theta,
                            .dtype = options.dtype,
                            .shard_bytes_max = options.shard_bytes_max,
                            .tokenizer = options.tokenizer,
                            .bos_token_id = {},
                            .eos_token_id = {},
                            .pad_token_id = {}},
                           progress);
}

// DIRECTORY/global_step<N>_universal and the pointer beside it, as DeepSpeed's loader wants them.
absl::Status ExportToUniversal(StateSource& source, const AtomTable& table,
                               const Manifest& manifest, const RunConfig& config,
                               const std::string& directory, const Progress& progress) {
  const StepSchedule schedule(config);
  const int64_t last = std::min(std::max<int64_t>(manifest.step, 1), schedule.steps()) - 1;
  return ExportUniversal(source, ResolveModel(config.model), table,
                         {.step = manifest.step,
                          .samples = manifest.samples,
                          .tokens = manifest.tokens,
                          .clip_grad = config.optimizer.clip,
                          .rate = schedule.At(last).rate,
                          .beta1 = config.optimizer.beta1,
                          .beta2 = config.optimizer.beta2,
                          .eps = config.optimizer.eps,
                          .weight_decay = config.optimizer.weight_decay},
                         directory, fmt::format("global_step{}_universal", manifest.step),
                         progress);
}

// hf has parameters alone; universal a directory of four files a parameter.
SpaceNeed ExportNeed(const AtomTable& table, const ExportOptions& options) {
  const auto parameters = static_cast<uint64_t>(table.parameters());
  const bool hf = options.format == "hf";
  const uint64_t width = !hf ? kStatePartCount * sizeof(float)
                         : options.dtype == SafetensorsDType::kBF16 ? sizeof(uint16_t)
                                                                    : sizeof(float);
  const uint64_t bytes = parameters * width;
  return {.bytes = bytes + kBlockBytes,
          .files = 8 + (hf                              ? bytes / options.shard_bytes_max
                        : options.format == "universal" ? 5 * table.tensors().size()
                                                        : 0)};
}

// Runs `write` on a directory that has its name once it is whole. What an interrupted call like
// this one left is made anew; what failed leaves nothing.
absl::Status WriteWhole(const Manifest& manifest, const ExportOptions& options,
                        const std::function<absl::Status(const std::string& directory)>& write) {
  const std::string words = fmt::format("step {} as {}, certificate {}", manifest.step,
                                        options.format, manifest.certificate.Hex());
  ASSIGN_OR_RETURN(
      PartialDirectory partial,
      PartialDirectory::Open(options.directory, DigestOf(words + "\n" + manifest.config), words));
  if (partial.published()) return partial.Publish();
  RETURN_IF_ERROR(partial.Clear());
  absl::Status status = write(partial.path());
  if (status.ok()) return partial.Publish();
  std::error_code ignored;
  fs::remove_all(partial.path(), ignored);
  return status;
}

}  // namespace

absl::Status ExportCheckpoint(const std::string& checkpoint, const Manifest& manifest,
                              const RunConfig& config, const ExportOptions& options,
                              const Progress& progress) {
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  if (ModelTensors(config.model, config.numerics.tensor_shards) != table.tensors() ||
      manifest.phase >= std::ssize(config.phases))
    return DataLoss("{}: its tensors are not those of the run.toml that its manifest carries",
                    checkpoint);
  RETURN_IF_ERROR(CheckRoomFor(options.directory, "the export", ExportNeed(table, options)));
  ASSIGN_OR_RETURN(const auto source, AtomReader::Open(checkpoint, manifest, table));
  if (options.format == "hf")
    return ExportToHuggingFace(*source, table, manifest, config, options, progress);
  if (options.format == "universal")
    return WriteWhole(manifest, options, [&](const std::string& directory) {
      return ExportToUniversal(*source, table, manifest, config, directory, progress);
    });
  if (options.format == "dcp")
    return WriteWhole(manifest, options, [&](const std::string& directory) {
      return ExportDcp(
          *source, table,
          {.step = manifest.step, .samples = manifest.samples, .tokens = manifest.tokens},
          directory, progress);
    });
  return InvalidArgument("format {} is none of hf, universal, dcp", options.format);
}

}  // namespace perdure
