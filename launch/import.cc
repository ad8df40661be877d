#include "launch/import.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "ckpt/convert/dcp.h"
#include "ckpt/convert/huggingface.h"
#include "ckpt/convert/megatron_deepspeed.h"
#include "ckpt/convert/universal.h"
#include "ckpt/manifest_json.h"
#include "ckpt/partial.h"
#include "ckpt/room.h"
#include "launch/backend.h"
#include "launch/config.h"
#include "model/parameters.h"
#include "monitoring/journal.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// State of one file, so that files are not many and yet several are written at once.
constexpr int64_t kFileElements = (int64_t{1} << 30) / 12;
constexpr uint64_t kGeneration = 1;
constexpr int kExitMore = 75;  // As a job that stopped cleanly.

std::vector<PartPlan> PlanFiles(const AtomTable& table) {
  return CutParts(table, 1 + table.parameters() / kFileElements);
}

OpenSource Opener(const ImportOptions& options, const ModelConfig& model, const AtomTable* table) {
  using Source = absl::StatusOr<std::unique_ptr<StateSource>>;
  const std::string directory = options.directory;
  if (options.format == "hf")
    return [=]() -> Source { return HuggingFaceSource::Open(directory, *table); };
  if (options.format == "universal")
    return [=]() -> Source { return UniversalSource::Open(directory, model, *table); };
  if (options.format == "dcp")
    return [=]() -> Source { return DcpSource::Open(directory, *table); };
  return [=]() -> Source { return MegatronDeepSpeedSource::Open(directory, model, *table); };
}

// What the source says of its progress, after its checksums were compared.
absl::StatusOr<ForeignProgress> CheckSource(const ImportOptions& options, const Import& import,
                                            const Progress& progress) {
  const ModelConfig model = ResolveModel(import.config.model);
  if (options.format == "hf") {
    ASSIGN_OR_RETURN(const HuggingFaceConfig theirs, ReadHuggingFaceConfig(options.directory));
    RETURN_IF_ERROR(CheckSameModel(theirs, model));
    RETURN_IF_ERROR(HuggingFaceSource::Open(options.directory, *import.table).status());
    return ForeignProgress{.has_moments = false};
  }
  const auto check = [&](auto source) -> absl::StatusOr<ForeignProgress> {
    RETURN_IF_ERROR(source.status());
    RETURN_IF_ERROR((*source)->Verify(progress));
    return (*source)->progress();
  };
  if (options.format == "universal")
    return check(UniversalSource::Open(options.directory, model, *import.table));
  if (options.format == "dcp") return check(DcpSource::Open(options.directory, *import.table));
  if (options.format == "megatron-deepspeed")
    return check(MegatronDeepSpeedSource::Open(options.directory, model, *import.table));
  return InvalidArgument("--from {} is none of hf, megatron-deepspeed, universal, dcp",
                         options.format);
}

// Step, samples, tokens and phase by the schedule, which the source must agree with.
absl::Status Place(const ImportOptions& options, const ForeignProgress& source, Import& import) {
  const StepSchedule schedule(import.config);
  Manifest& head = import.head;
  head.step = options.step.value_or(std::max<int64_t>(source.iteration, 0));
  if (head.step > schedule.steps())
    return InvalidArgument(
        "{} is at step {}, but the phases of this run end at step {}: lengthen them, or begin a "
        "new schedule with --step 0",
        options.directory, head.step, schedule.steps());
  const Consumed consumed = schedule.After(head.step);
  head.samples = consumed.samples;
  head.tokens = consumed.tokens;
  head.phase = consumed.phase;
  const bool fresh = options.step == 0;
  if (!fresh && source.samples >= 0 && source.samples != head.samples)
    return InvalidArgument(
        "{} has consumed {} samples, but the schedule of this run has consumed {} at step {}: give "
        "the phases the source's samples and batch, or begin a new schedule with --step 0",
        options.directory, source.samples, head.samples, head.step);
  if (!fresh && source.tokens >= 0 && source.tokens != head.tokens)
    import.notes.push_back(fmt::format("{} has consumed {} tokens, this run's schedule {}",
                                       options.directory, source.tokens, head.tokens));
  if (!source.has_moments)
    import.notes.push_back("the source has no moments: exp_avg and exp_avg_sq begin at zero");
  else if (head.step != source.optimizer_step && source.optimizer_step >= 0)
    import.notes.push_back(
        fmt::format("AdamW will correct its moments as at step {}; the source's have seen {} steps",
                    head.step, source.optimizer_step));
  // Theirs is what the next step would be taken with, and what ours was taken with: one number.
  if (const double ours = head.step > 0 ? schedule.At(head.step - 1).rate : -1;
      ours >= 0 && source.rate >= 0 && std::abs(source.rate - ours) > 1e-6 * ours)
    import.notes.push_back(
        fmt::format("{} has come to the learning rate {}, this run's schedule to {} at step {}",
                    options.directory, source.rate, ours, head.step));
  head.phase_name = import.config.phases[static_cast<size_t>(head.phase)].name;
  return absl::OkStatus();
}

absl::Status CompareRotary(const ImportOptions& options, Import& import) {
  if (options.format != "hf") return absl::OkStatus();
  ASSIGN_OR_RETURN(const HuggingFaceConfig theirs, ReadHuggingFaceConfig(options.directory));
  const PhaseConfig& phase = import.config.phases[static_cast<size_t>(import.head.phase)];
  if (theirs.rope_theta != phase.rope_theta)
    import.notes.push_back(fmt::format("{}/config.json has rope_theta {}, phase {} has {}",
                                       options.directory, theirs.rope_theta, phase.name,
                                       phase.rope_theta));
  return absl::OkStatus();
}

// Appends what is not there yet of START, COMMIT, VERIFIED, END, in that order.
class ImportLog {
 public:
  explicit ImportLog(RunLog log) : log_(std::move(log)) {}
  bool Has(RecordType type) const {
    for (const Record& record : log_.records())
      if (record.type == type) return true;
    return false;
  }
  absl::Status Append(RecordType type, const std::string& body) {
    return Has(type) ? absl::OkStatus() : log_.Append(type, kGeneration, body);
  }
  const std::string& run_id() const { return log_.run_id(); }

 private:
  RunLog log_;
};

absl::StatusOr<Manifest> WriteCheckpoint(const Import& import, Manifest manifest,
                                         const std::string& directory, const StreamOptions& stream,
                                         Digest* digest) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  ASSIGN_OR_RETURN(
      manifest.parts,
      StreamParts(directory, *import.table, PlanFiles(*import.table),
                  {manifest.step, manifest.generation, manifest.run_id}, import.open, stream));
  std::error_code ignored;  // What an interrupted call left.
  fs::remove(fs::path(directory) / kManifestFile, ignored);
  ASSIGN_OR_RETURN(*digest, WriteManifest(directory, *import.table, manifest));
  for (const PartReport& part : manifest.parts)
    fs::remove(fs::path(directory) / DoneName(part.file), ignored);
  return manifest;
}

// The checkpoint and its records inside the directory that becomes the run's.
absl::StatusOr<Manifest> WriteRun(const Import& import, const ImportOptions& options,
                                  const std::string& run, const Digest& identity,
                                  const StreamOptions& stream) {
  ASSIGN_OR_RETURN(RunLog opened, RunLog::Open(run));
  ImportLog log(std::move(opened));
  RETURN_IF_ERROR(ReplaceFile(run + "/run.toml", import.head.config));
  const std::string words = fmt::format("imported from {} {}", options.format, options.directory);
  RETURN_IF_ERROR(log.Append(
      RecordType::kStart, SerializeStart({.shape = {}, .seats = {}, .layout = words, .step = 0})));
  Manifest manifest = import.head;
  manifest.run_id = log.run_id();
  manifest.generation = kGeneration;
  manifest.layout = words;
  uint32_t nonce = 0;  // The same when an interrupted call continues.
  for (size_t i = 0; i < sizeof nonce; ++i) nonce = nonce << 8 | identity.bytes[i];
  const std::string name = CheckpointName(manifest.step, kGeneration, nonce);
  const std::string directory = run + "/ckpt/" + name;
  if (log.Has(RecordType::kCommit)) {
    ASSIGN_OR_RETURN(manifest, ReadManifest(directory, nullptr));
  } else {
    Digest digest;
    ASSIGN_OR_RETURN(manifest,
                     WriteCheckpoint(import, std::move(manifest), directory, stream, &digest));
    CommitRecord commit{.checkpoint = name,
                        .step = manifest.step,
                        .samples = manifest.samples,
                        .manifest = digest,
                        .certificate = manifest.certificate,
                        .files = std::ssize(manifest.parts)};
    for (const PartReport& part : manifest.parts) commit.bytes += part.bytes;
    RETURN_IF_ERROR(log.Append(RecordType::kCommit, SerializeCommit(commit)));
  }
  RETURN_IF_ERROR(
      log.Append(RecordType::kVerified, SerializeVerified({.name = name, .kind = "read"})));
  RETURN_IF_ERROR(
      log.Append(RecordType::kEnd,
                 SerializeEnd({.reason = words, .exit_code = kExitMore, .step = manifest.step})));
  ASSIGN_OR_RETURN(const auto journal, Journal::Open(run + "/journal.jsonl"));
  RETURN_IF_ERROR(journal->Append("import", {{"from", options.format},
                                             {"directory", options.directory},
                                             {"step", manifest.step},
                                             {"checkpoint", name},
                                             {"certificate", manifest.certificate.Hex()}}));
  return manifest;
}

Digest IdentityOf(const Import& import, const ImportOptions& options) {
  return DigestOf(fmt::format("{}\n{}\n{}\n{}", options.format,
                              fs::absolute(options.directory).lexically_normal().string(),
                              import.head.step, import.head.config));
}

}  // namespace

absl::StatusOr<Import> CheckImport(const ImportOptions& options, const Progress& progress) {
  Import import;
  import.config = options.config;
  RETURN_IF_ERROR(ResolveBackend(import.config, nullptr));
  import.table = std::make_unique<AtomTable>(
      ModelTensors(import.config.model, import.config.numerics.tensor_shards),
      import.config.numerics.atom_elements);
  if (!fs::is_directory(options.directory))
    return NotFound("{} is not a directory: name the source's", options.directory);
  ASSIGN_OR_RETURN(const ForeignProgress source, CheckSource(options, import, progress));
  RETURN_IF_ERROR(Place(options, source, import));
  RETURN_IF_ERROR(CompareRotary(options, import));
  import.head.config = PrintConfig(import.config);
  import.head.created = TimeNow();
  import.open = Opener(options, ResolveModel(import.config.model), import.table.get());
  // What can be known now about the target is said before hours of work.
  if (fs::exists(options.run_directory) && !fs::exists(options.run_directory + "/perdure.partial"))
    return AlreadyExists("{} exists: an import makes a new run directory", options.run_directory);
  return import;
}

absl::StatusOr<Manifest> WriteImport(const Import& import, const ImportOptions& options,
                                     const StreamOptions& stream) {
  RETURN_IF_ERROR(CheckRoomFor(options.run_directory, "the run",
                               CheckpointNeed(*import.table, PlanFiles(*import.table))));
  const Digest identity = IdentityOf(import, options);
  ASSIGN_OR_RETURN(PartialDirectory partial,
                   PartialDirectory::Open(options.run_directory, identity,
                                          fmt::format("step {} from {} {}", import.head.step,
                                                      options.format, options.directory)));
  ASSIGN_OR_RETURN(Manifest manifest, WriteRun(import, options, partial.path(), identity, stream));
  RETURN_IF_ERROR(partial.Publish());
  return manifest;
}

}  // namespace perdure
