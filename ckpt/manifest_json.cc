#include "ckpt/manifest_json.h"

#include <utility>

#include "ckpt/file_io.h"
#include "ckpt/json_object.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr const char* kFormatName = "perdure checkpoint";
// The text ends in `"digest": "<32 hex>"` and this.
constexpr std::string_view kDigestHead = "\"digest\": \"";
constexpr std::string_view kDigestTail = "\"\n}\n";
constexpr size_t kSealBytes = kDigestHead.size() + 32 + kDigestTail.size();

constexpr std::array<std::string_view, 3> kAxisNames = {"none", "rows", "cols"};

OrderedJson PartJson(const PartReport& part) {
  return {{"file", part.file},
          {"bytes", part.bytes},
          {"offsets", part.offsets},
          {"runs", part.runs},
          {"atoms", part.atoms},
          {"atom_digests", HexList(part.atom_digests)},
          {"blocks", HexList(part.blocks)}};
}

OrderedJson TensorJson(const TensorSpec& tensor) {
  return {{"name", tensor.name},     {"rows", tensor.rows},
          {"cols", tensor.cols},     {"axis", kAxisNames[static_cast<size_t>(tensor.axis)]},
          {"slices", tensor.slices}, {"layer", tensor.layer},
          {"decays", tensor.decays}, {"init_std", tensor.init_std}};
}

OrderedJson HeadJson(const Manifest& manifest) {
  OrderedJson head = {{"format", kFormatName},
                      {"version", kFormatVersion},
                      {"run_id", manifest.run_id},
                      {"generation", manifest.generation},
                      {"step", manifest.step},
                      {"samples", manifest.samples},
                      {"tokens", manifest.tokens},
                      {"phase", manifest.phase},
                      {"phase_name", manifest.phase_name},
                      {"layout", manifest.layout},
                      {"created", manifest.created},
                      {"certificate", manifest.certificate.Hex()},
                      {"sample_chain", manifest.trail.sample_chain.Hex()}};
  // A version that does not know them must not take the state for another one.
  if (!manifest.gaps.empty()) head["gaps"] = NumbersOf(manifest.gaps);
  if (!manifest.trail.recent.empty()) head["recent_steps"] = HexOf(manifest.trail.recent);
  head["config"] = manifest.config;
  head["block_bytes"] = kBlockBytes;
  head["state_parts"] = kStateParts;
  head["atom_elements"] = manifest.atom_elements;
  return head;
}

// Throws what nlohmann throws on strings that are not UTF-8.
std::string ManifestText(const Manifest& manifest) {
  std::string text = "{\n";
  const OrderedJson head = HeadJson(manifest);  // items() only refers to it.
  for (const auto& item : head.items())
    text += fmt::format("\"{}\": {},\n", item.key(), item.value().dump());
  text += "\"tensors\": [";
  const char* separator = "\n";
  for (const TensorSpec& tensor : manifest.tensors) {
    text += separator + TensorJson(tensor).dump();
    separator = ",\n";
  }
  text += "\n],\n\"parts\": [";
  separator = "\n";
  for (const PartReport& part : manifest.parts) {
    text += separator + PartJson(part).dump();
    separator = ",\n";
  }
  text += "\n],\n";
  text += fmt::format("{}{}{}", kDigestHead, DigestOf(text).Hex(), kDigestTail);
  return text;
}

absl::StatusOr<PartReport> PartFromJson(const Json& json, const std::string& where) {
  JsonObject object(json, where);
  PartReport part;
  std::vector<int64_t> offsets;
  object.String("file", &part.file);
  object.Unsigned("bytes", &part.bytes);
  object.Ints("offsets", &offsets);
  object.Ints("runs", &part.runs);
  object.Ints("atoms", &part.atoms);
  object.Digests("atom_digests", &part.atom_digests);
  object.Digests("blocks", &part.blocks);
  if (offsets.size() == part.offsets.size())
    std::copy(offsets.begin(), offsets.end(), part.offsets.begin());
  else
    object.Fail("offsets",
                fmt::format("has {} entries; {} expected", offsets.size(), part.offsets.size()));
  RETURN_IF_ERROR(object.Done());
  RETURN_IF_ERROR(ValidatePart(part, where));
  return part;
}

absl::StatusOr<TensorSpec> TensorFromJson(const Json& json, const std::string& where) {
  JsonObject object(json, where);
  TensorSpec tensor;
  std::string axis;
  object.String("name", &tensor.name);
  object.Int("rows", &tensor.rows, 1);
  object.Int("cols", &tensor.cols, 1);
  object.String("axis", &axis);
  object.Int("slices", &tensor.slices, 1);
  object.Int("layer", &tensor.layer, -1);
  object.Bool("decays", &tensor.decays);
  object.Number("init_std", &tensor.init_std);
  size_t index = 0;
  while (index < kAxisNames.size() && kAxisNames[index] != axis) ++index;
  if (index == kAxisNames.size()) object.Fail("axis", "is none of none, rows, cols");
  RETURN_IF_ERROR(object.Done());
  tensor.axis = static_cast<SliceAxis>(index);
  return tensor;
}

absl::Status ListsFromJson(JsonObject& object, Manifest& manifest) {
  const Json* tensors = object.Array("tensors");
  const Json* parts = object.Array("parts");
  if (tensors == nullptr || parts == nullptr) return object.Done();
  for (const Json& json : *tensors) {
    const std::string where = fmt::format("tensors[{}]", manifest.tensors.size());
    ASSIGN_OR_RETURN(TensorSpec tensor, TensorFromJson(json, where));
    manifest.tensors.push_back(std::move(tensor));
  }
  for (const Json& json : *parts) {
    const std::string where = fmt::format("parts[{}]", manifest.parts.size());
    ASSIGN_OR_RETURN(PartReport part, PartFromJson(json, where));
    manifest.parts.push_back(std::move(part));
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> ManifestFromJson(const Json& json) {
  JsonObject object(json, "");
  Manifest manifest;
  Digest self;
  object.Constant("format", kFormatName);
  object.Constant("version", kFormatVersion);
  object.String("run_id", &manifest.run_id);
  object.Unsigned("generation", &manifest.generation);
  object.Int("step", &manifest.step);
  object.Int("samples", &manifest.samples);
  object.Int("tokens", &manifest.tokens);
  object.Int("phase", &manifest.phase);
  object.String("phase_name", &manifest.phase_name);
  object.String("layout", &manifest.layout);
  object.String("created", &manifest.created);
  object.Hex("certificate", &manifest.certificate);
  object.Hex("sample_chain", &manifest.trail.sample_chain);
  std::vector<int64_t> gaps;
  if (object.Has("gaps")) object.Ints("gaps", &gaps);
  std::vector<std::string> recent;
  if (object.Has("recent_steps")) object.Strings("recent_steps", &recent);
  object.String("config", &manifest.config);
  object.Constant("block_bytes", kBlockBytes);
  object.Constant("state_parts", kStateParts);
  object.Int("atom_elements", &manifest.atom_elements, 1);
  RETURN_IF_ERROR(ListsFromJson(object, manifest));
  object.Hex("digest", &self);  // Compared by the caller, over the text.
  RETURN_IF_ERROR(object.Done());
  ASSIGN_OR_RETURN(manifest.gaps, GapsOf(gaps));
  absl::StatusOr<std::vector<StepNumbers>> steps = RecentOf(recent);
  if (!steps.ok()) return DataLoss("field recent_steps: {}", Message(steps.status()));
  manifest.trail.recent = *std::move(steps);
  return manifest;
}

// The digest in the last line against the text before it.
absl::Status CheckSeal(std::string_view text) {
  if (text.size() < kSealBytes || text.substr(text.size() - kDigestTail.size()) != kDigestTail ||
      text.substr(text.size() - kSealBytes, kDigestHead.size()) != kDigestHead)
    return DataLoss("does not end in its own digest: torn, or not a manifest");
  const std::string_view hex = text.substr(text.size() - kSealBytes + kDigestHead.size(), 32);
  const std::string actual = DigestOf(text.substr(0, text.size() - kSealBytes)).Hex();
  if (actual != hex)
    return DataLoss("field digest is {} but the text before it has {}: torn or altered", hex,
                    actual);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> SerializeManifest(const Manifest& manifest) {
  try {
    return ManifestText(manifest);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("manifest of step {}: {}", manifest.step, error.what());
  }
}

absl::StatusOr<Manifest> ParseManifest(std::string_view text) {
  RETURN_IF_ERROR(CheckSeal(text));
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, "text"));
  ASSIGN_OR_RETURN(Manifest manifest, ManifestFromJson(json));
  RETURN_IF_ERROR(ValidateManifest(manifest));
  // What was digested must be what was understood: no key twice, no second spelling of a number.
  const absl::StatusOr<std::string> again = SerializeManifest(manifest);
  if (!again.ok() || *again != text) return DataLoss("text is not as this version writes it");
  return manifest;
}

std::string SerializePart(const PartReport& part) {
  PERDURE_CHECK(IsPartFileName(part.file));  // Hence UTF-8: dump() does not throw.
  return PartJson(part).dump();
}

absl::StatusOr<PartReport> ParsePart(std::string_view serialized) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(serialized, "part report"));
  return PartFromJson(json, "part");
}

}  // namespace perdure
