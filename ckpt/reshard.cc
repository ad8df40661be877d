#include "ckpt/reshard.h"

#include <filesystem>
#include <memory>

#include "ckpt/atom_reader.h"
#include "ckpt/manifest_json.h"
#include "ckpt/partial.h"
#include "ckpt/view.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// What the result will be, whatever files the source has.
absl::StatusOr<Digest> Identity(const Manifest& manifest, std::span<const PartPlan> plans) {
  Manifest head = manifest;
  head.parts.clear();
  ASSIGN_OR_RETURN(const std::string text, SerializeManifest(head));
  DigestStream stream;
  stream.Update(text);
  for (const PartPlan& plan : plans) {
    PartReport part;
    part.file = plan.file;
    part.atoms = plan.atoms;
    part.runs = plan.runs;
    stream.Update(SerializePart(part));
  }
  return stream.Finish();
}

}  // namespace

absl::StatusOr<Resharded> Reshard(const std::string& source, const Manifest& manifest,
                                  std::span<const PartPlan> plans, const std::string& target,
                                  const StreamOptions& options) {
  RETURN_IF_ERROR(ValidateManifest(manifest));
  const AtomTable table(manifest.tensors, manifest.atom_elements);
  ASSIGN_OR_RETURN(const Digest identity, Identity(manifest, plans));
  ASSIGN_OR_RETURN(
      PartialDirectory partial,
      PartialDirectory::Open(target, identity,
                             fmt::format("step {} in {} files, certificate {}", manifest.step,
                                         plans.size(), manifest.certificate.Hex())));
  if (partial.published()) {
    ASSIGN_OR_RETURN(Manifest made, ReadManifest(partial.path(), nullptr));
    RETURN_IF_ERROR(partial.Publish());
    return Resharded{std::move(made), absl::OkStatus()};
  }
  const OpenSource open = [&]() -> absl::StatusOr<std::unique_ptr<StateSource>> {
    return AtomReader::Open(source, manifest, table, /*threads=*/1);
  };
  Manifest made = manifest;
  ASSIGN_OR_RETURN(made.parts, StreamParts(partial.path(), table, plans,
                                           {manifest.step, manifest.generation, manifest.run_id},
                                           open, options));
  std::error_code ignored;  // What an interrupted call left; its creation tells of trouble.
  std::filesystem::remove(std::filesystem::path(partial.path()) / kManifestFile, ignored);
  RETURN_IF_ERROR(WriteManifest(partial.path(), table, made).status());
  if (made.certificate != manifest.certificate)
    return DataLoss(
        "{}: the certificate of what was written is {}, that of {} is {}: the source "
        "is bad",
        partial.path(), made.certificate.Hex(), source, manifest.certificate.Hex());
  const uint64_t all =
      2 * static_cast<uint64_t>(table.parameters()) * kStatePartCount * sizeof(float);
  if (options.progress) options.progress(all, all);
  absl::Status view = WriteView(partial.path(), made, table);
  RETURN_IF_ERROR(partial.Publish());
  return Resharded{std::move(made), std::move(view)};
}

}  // namespace perdure
