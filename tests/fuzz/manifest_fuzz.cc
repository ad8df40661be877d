// manifest.json, as it is and with a digest that fits, so that what lies behind it is reached.
#include "ckpt/checkpoint.h"
#include "ckpt/manifest_json.h"
#include "tests/fuzz/fuzz_input.h"

namespace perdure {
namespace {

void Parse(const std::string& text) {
  const auto manifest = ParseManifest(text);
  if (!manifest.ok()) return;
  const auto again = SerializeManifest(*manifest);
  FuzzCheck(again.ok() && *again == text);
  const AtomTable table(manifest->tensors, manifest->atom_elements);
  for (const PartReport& part : manifest->parts)
    FuzzCheck(ValidateExtents(part, table, "part").ok());
}

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const std::string text(FuzzText(data, size));
  Parse(text);
  // The corpus holds manifests without their last lines.
  Parse(text + "\"digest\": \"" + DigestOf(text).Hex() + "\"\n}\n");
  return 0;
}
