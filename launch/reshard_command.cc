#include "launch/reshard_command.h"

#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/extract.h"
#include "ckpt/file_io.h"
#include "ckpt/reshard.h"
#include "ckpt/room.h"
#include "ckpt/view.h"
#include "launch/byte_count.h"
#include "launch/ckpt_target.h"
#include "launch/config.h"
#include "model/parameters.h"
#include "runtime/base/status.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

constexpr int64_t kFilesMax = 1 << 20;
constexpr int kMappedBytes = 4 << 20;  // Buffers from this size on go back to the system.

struct ReshardArguments {
  std::string source, target;
  int64_t files = 0;
  std::string layout;
  int64_t ranks_per_file = 1;
  std::string memory = "1GiB";
  int threads = 0;
  bool params_only = false;
  std::string dtype = "fp32";
};

// "tensor=2,pipeline=2,data=2,zero=1".
absl::StatusOr<LayoutConfig> ParseLayout(const std::string& text) {
  LayoutConfig layout;
  const std::pair<std::string_view, int64_t*> keys[] = {{"tensor", &layout.tensor},
                                                        {"pipeline", &layout.pipeline},
                                                        {"data", &layout.data},
                                                        {"zero", &layout.zero},
                                                        {"virtual_stages", &layout.virtual_stages}};
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view word = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(word.size() + 1, rest.size()));
    const std::string_view key = word.substr(0, word.find('='));
    int64_t* value = nullptr;
    for (const auto& [name, member] : keys)
      if (name == key) value = member;
    const std::string_view number = word.substr(std::min(key.size() + 1, word.size()));
    if (value == nullptr ||
        std::from_chars(number.data(), number.data() + number.size(), *value).ptr !=
            number.data() + number.size() ||
        number.empty())
      return InvalidArgument(
          "--layout {}: '{}' is not key=number of tensor, pipeline, data, zero, virtual_stages; "
          "for example tensor=2,pipeline=2,data=2",
          text, word);
  }
  if (layout.data < 1)
    return InvalidArgument("--layout {}: data={} is missing or not 1 or more; data=1 would do",
                           text, layout.data);
  return layout;
}

absl::StatusOr<std::vector<PartPlan>> PlanOf(const ReshardArguments& arguments,
                                             const Manifest& manifest, const AtomTable& table) {
  if (arguments.layout.empty()) return CutParts(table, std::max<int64_t>(arguments.files, 1));
  ASSIGN_OR_RETURN(RunConfig config, ParseConfig(manifest.config, "the checkpoint's run.toml", {}));
  ASSIGN_OR_RETURN(const LayoutConfig layout, ParseLayout(arguments.layout));
  config.layout.tensor = layout.tensor;
  config.layout.pipeline = layout.pipeline;
  config.layout.data = layout.data;
  config.layout.zero = layout.zero;
  config.layout.virtual_stages = layout.virtual_stages;
  RETURN_IF_ERROR(ValidateConfig(config));
  if (ModelTensors(config.model, config.numerics.tensor_shards) != table.tensors() ||
      config.numerics.atom_elements != table.atom_elements())
    return DataLoss("its tensors are not those of the run.toml that its manifest carries");
  return PlanWriters(config, table, arguments.ranks_per_file).files;
}

absl::Status CheckArguments(const ReshardArguments& arguments) {
  if (arguments.params_only && (arguments.files > 0 || !arguments.layout.empty()))
    return InvalidArgument("--params-only makes one file: leave --files and --layout out");
  if (!arguments.params_only && arguments.dtype != "fp32")
    return InvalidArgument("--dtype {} needs --params-only: a checkpoint is fp32", arguments.dtype);
  if (arguments.files > 0 && !arguments.layout.empty())
    return InvalidArgument("--files and --layout exclude each other");
  if (arguments.layout.empty() && arguments.ranks_per_file != 1)
    return InvalidArgument("--ranks-per-file {} needs --layout", arguments.ranks_per_file);
  return absl::OkStatus();
}

absl::StatusOr<StreamOptions> StreamOptionsOf(const ReshardArguments& arguments) {
  StreamOptions options;
  ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes("--memory", arguments.memory));
  options.memory_bytes = static_cast<uint64_t>(bytes);
  if (options.memory_bytes < kStreamMemoryLeast)
    return InvalidArgument("--memory {}: at least {} are needed", arguments.memory,
                           HumanBytes(kStreamMemoryLeast));
  options.threads =
      std::max(options.threads, static_cast<int>(std::thread::hardware_concurrency()));
  if (arguments.threads > 0) options.threads = arguments.threads;
  return options;
}

absl::StatusOr<std::string> RunReshard(const ReshardArguments& arguments) {
  RETURN_IF_ERROR(CheckArguments(arguments));
  // Otherwise glibc keeps what threads free, several times --memory.
  ::mallopt(M_MMAP_THRESHOLD, kMappedBytes);
  ASSIGN_OR_RETURN(StreamOptions options, StreamOptionsOf(arguments));
  ASSIGN_OR_RETURN(const CheckpointTarget source, ResolveNewestCheckpoint(arguments.source));
  RETURN_IF_ERROR(CheckCommitted(source));
  ASSIGN_OR_RETURN(const Manifest manifest, ManifestOf(source));
  const std::string target = AbsolutePath(arguments.target);
  ProgressLine progress("reshard to " + target);
  options.progress = progress.callback();
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  if (arguments.params_only) {
    const uint64_t width = arguments.dtype == "bf16" ? sizeof(uint16_t) : sizeof(float);
    RETURN_IF_ERROR(CheckRoomFor(
        target, "the result",
        {.bytes = static_cast<uint64_t>(table.parameters()) * width + kBlockBytes, .files = 3}));
    RETURN_IF_ERROR(ExtractParameters(
        source.path, manifest, target,
        arguments.dtype == "bf16" ? TensorDType::kBF16 : TensorDType::kF32, options));
    return fmt::format("{}/{}: parameters of step {} in {}", target, kParametersFile, manifest.step,
                       arguments.dtype);
  }
  const auto plans = PlanOf(arguments, manifest, table);
  if (!plans.ok())
    return ErrorStatus(plans.status().code(), "{}: {}", source.path, Message(plans.status()));
  RETURN_IF_ERROR(CheckRoomFor(target, "the result", CheckpointNeed(table, *plans)));
  ASSIGN_OR_RETURN(const Resharded resharded,
                   Reshard(source.path, manifest, *plans, target, options));
  const Manifest& made = resharded.manifest;
  if (!resharded.view.ok())
    fmt::print(stderr, "warning: no {}: {}\n", kViewFile, Message(resharded.view));
  uint64_t bytes = 0;
  for (const PartReport& part : made.parts) bytes += part.bytes;
  return fmt::format("{}: step {} in {} files, {}, certificate {}", target, made.step,
                     made.parts.size(), HumanBytes(bytes), made.certificate.Hex());
}

}  // namespace

void AddReshardCommand(CLI::App& ckpt, int* exit_code) {
  const auto arguments = std::make_shared<ReshardArguments>();
  CLI::App* reshard = ckpt.add_subcommand(
      "reshard", "The same checkpoint in other files; an interrupted call continues");
  reshard->add_option("SRC", arguments->source, "A checkpoint, or a run (its newest)")->required();
  reshard->add_option("-o,--output", arguments->target, "The new directory; made in its .partial")
      ->required();
  reshard->add_option("--files", arguments->files, "So many files (default: 1)")
      ->check(CLI::Range(int64_t{1}, kFilesMax));
  reshard->add_option("--layout", arguments->layout,
                      "As the ranks of tensor=T,pipeline=P,data=D[,virtual_stages=V] write them");
  reshard->add_option("--ranks-per-file", arguments->ranks_per_file, "Of that layout (default: 1)")
      ->check(CLI::PositiveNumber);
  reshard->add_option("--memory", arguments->memory, "At most so much (default: 1GiB)");
  reshard
      ->add_option("--threads", arguments->threads,
                   "Files at once (default: one a core, at least 8)")
      ->check(CLI::Range(1, 1024));
  reshard->add_flag("--params-only", arguments->params_only,
                    "Whole parameters in one HDF5 file, params.h5, in place of a checkpoint");
  reshard->add_option("--dtype", arguments->dtype, "Of --params-only: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  reshard->callback([=] {
    const absl::StatusOr<std::string> done = RunReshard(*arguments);
    if (done.ok()) fmt::print("{}\n", *done);
    *exit_code = done.ok() ? kCkptGood : FailCkpt(done.status());
  });
}

}  // namespace perdure
