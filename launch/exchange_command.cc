#include "launch/exchange_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "launch/byte_count.h"
#include "launch/ckpt_target.h"
#include "launch/config.h"
#include "launch/export.h"
#include "launch/import.h"
#include "launch/run_data.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

struct ImportArguments {
  std::string config, from, source, run_directory, data_directory;
  std::vector<std::string> settings;
  int64_t step = -1;
};

// Whatever is found before anything is written is the caller's to change.
int Refuse(const absl::Status& status) {
  FailCkpt(status);
  return kCkptUsage;
}

int RunImport(const ImportArguments& arguments) {
  const absl::StatusOr<RunConfig> config = LoadConfig(arguments.config, arguments.settings);
  if (!config.ok()) return Refuse(config.status());
  if (!arguments.data_directory.empty())
    if (const absl::Status data = CheckData(*config, arguments.data_directory); !data.ok())
      return Refuse(data);
  ImportOptions options{.config = *config,
                        .format = arguments.from,
                        .directory = AbsolutePath(arguments.source),
                        .run_directory = AbsolutePath(arguments.run_directory),
                        .step = {}};
  if (arguments.step >= 0) options.step = arguments.step;
  ProgressLine progress("import " + options.directory);
  const absl::StatusOr<Import> import = CheckImport(options, progress.callback());
  if (!import.ok()) return Refuse(import.status());
  for (const std::string& note : import->notes) fmt::print(stderr, "note: {}\n", note);
  const absl::StatusOr<Manifest> manifest =
      WriteImport(*import, options, {.progress = progress.callback()});
  if (!manifest.ok()) return FailCkpt(manifest.status());
  fmt::print("{}: step {}, {} samples, certificate {}\n", options.run_directory, manifest->step,
             manifest->samples, manifest->certificate.Hex());
  return kCkptGood;
}

struct ExportArguments {
  std::string source, target, to, dtype, shard_size, tokenizer;
};

absl::StatusOr<std::string> RunExport(const ExportArguments& arguments) {
  if (arguments.to != "hf" &&
      !(arguments.dtype.empty() && arguments.shard_size.empty() && arguments.tokenizer.empty()))
    return InvalidArgument("--dtype, --shard-size and --tokenizer are for --to hf; {} is fp32",
                           arguments.to);
  ExportOptions options{.format = arguments.to,
                        .directory = AbsolutePath(arguments.target),
                        .tokenizer = arguments.tokenizer};
  if (arguments.dtype == "fp32") options.dtype = SafetensorsDType::kF32;
  if (!arguments.shard_size.empty()) {
    ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes("--shard-size", arguments.shard_size));
    options.shard_bytes_max = static_cast<uint64_t>(bytes);
  }
  ASSIGN_OR_RETURN(const CheckpointTarget source, ResolveNewestCheckpoint(arguments.source));
  RETURN_IF_ERROR(CheckCommitted(source));
  ASSIGN_OR_RETURN(const Manifest manifest, ManifestOf(source));
  ASSIGN_OR_RETURN(const RunConfig config,
                   ParseConfig(manifest.config, source.path + "/manifest.json", {}));
  ProgressLine progress("export to " + options.directory);
  RETURN_IF_ERROR(ExportCheckpoint(source.path, manifest, config, options, progress.callback()));
  return fmt::format("{}: step {} of {} for {}", options.directory, manifest.step, source.path,
                     arguments.to);
}

void AddImport(CLI::App& ckpt, int* exit_code) {
  const auto arguments = std::make_shared<ImportArguments>();
  CLI::App* import = ckpt.add_subcommand(
      "import", "A run directory that begins with a state made elsewhere, for perdure run");
  import->add_option("RUN_TOML", arguments->config, "The run's configuration")->required();
  import->add_option("SRC", arguments->source, "The directory to import")->required();
  import->add_option("--from", arguments->from, "hf, megatron-deepspeed, universal or dcp")
      ->required()
      ->check(CLI::IsMember({"hf", "megatron-deepspeed", "universal", "dcp"}));
  import->add_option("--run-dir", arguments->run_directory, "The new run directory")->required();
  import->add_option("--data-dir", arguments->data_directory,
                     "Check the phases' data there, as perdure run will");
  import->add_option("--set", arguments->settings, "key=value over run.toml; may be repeated")
      ->allow_extra_args(false);
  import
      ->add_option("--step", arguments->step,
                   "Where the run stands; 0: a new schedule (default: as the source says)")
      ->check(CLI::NonNegativeNumber);
  import->callback([=] { *exit_code = RunImport(*arguments);
});
}  // namespace

void AddExport(CLI::App& ckpt, int* exit_code) {
  const auto arguments = std::make_shared<ExportArguments>();
  CLI::App* exported =
      ckpt.add_subcommand("export", "A checkpoint for Hugging Face, DeepSpeed or PyTorch");
  exported->add_option("SRC", arguments->source, "A checkpoint, or a run (its newest)")->required();
  exported->add_option("-o,--output", arguments->target, "The new directory")->required();
  exported->add_option("--to", arguments->to, "hf, universal or dcp")
      ->required()
      ->check(CLI::IsMember({"hf", "universal", "dcp"}));
  exported->add_option("--dtype", arguments->dtype, "Of hf: bf16 (default) or fp32")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  exported->add_option("--shard-size", arguments->shard_size, "Of hf (default: 5GB)");
  exported->add_option("--tokenizer", arguments->tokenizer,
                       "Of hf: tokenizer.json or a SentencePiece model to copy");
  exported->callback([=] {
    const absl::StatusOr<std::string> done = RunExport(*arguments);
    if (done.ok()) fmt::print("{}\n", *done);
    *exit_code = done.ok() ? kCkptGood : FailCkpt(done.status());
  });
}

}  // namespace perdure

void AddExchangeCommands(CLI::App& ckpt, int* exit_code) {
  AddImport(ckpt, exit_code);
  AddExport(ckpt, exit_code);
}

}  // namespace perdure
