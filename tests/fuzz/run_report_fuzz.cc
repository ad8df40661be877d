// Reports of writers and parts, as they come over the wire.
#include <vector>

#include "ckpt/manifest_json.h"
#include "ckpt/packed_report.h"
#include "ckpt/part_plan.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const std::string_view text = FuzzText(data, size);
  if (const auto part = UnpackPart(text); part.ok())
    FuzzCheck(PackPart(*part) == text && ParsePart(SerializePart(*part)).ok());
  PackReader packed(text, "a run");
  const RunReport unpacked = UnpackRun(packed);
  if (packed.Done().ok()) {
    std::string again;
    PackWriter to(&again);
    PackRun(unpacked, to);
    FuzzCheck(again == text);
  }
  (void)ParsePart(text);
  const auto run = ParseRun(text);
  if (!run.ok()) return 0;
  const auto again = ParseRun(SerializeRun(*run));
  FuzzCheck(again.ok() && SerializeRun(*again) == SerializeRun(*run));
  // Alone, twice, and with the run that it lacks.
  RunReport other = *run;
  other.run = run->run == 0 ? 1 : 0;
  for (const auto& runs : {std::vector<RunReport>{*run}, {*run, *run}, {*run, other}}) {
    const auto part = JoinRuns(runs);
    if (part.ok()) FuzzCheck(ParsePart(SerializePart(*part)).ok());
  }
  return 0;
}
