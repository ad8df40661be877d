// Frames between agents whose connection is proved, and what a rank says to its agent.
#include "runtime/agent/peer_frame.h"
#include "runtime/agent/rank_frames.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const std::string_view text = FuzzText(data, size);
  // No two byte strings mean the same.
  if (const auto frame = DecodePeerFrame(text); frame.ok())
    FuzzCheck(EncodePeerFrame(*frame) == text);
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return 0;
  // What is accepted comes back as it was.
  if (const auto frame = ParseFromRank(json); frame.ok())
    FuzzCheck(ParseFromRank(Json::parse(ToJson(*frame).dump())).ok());
  if (const auto frame = ParseToRank(json); frame.ok())
    FuzzCheck(ParseToRank(Json::parse(ToJson(*frame).dump())).ok());
  return 0;
}
