// Records of the run log: as they are, and as bodies of records that are signed rightly.
#include "runtime/agent/records.h"
#include "runtime/agent/run_key.h"
#include "runtime/agent/run_log_format.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  static const std::string key = "0123456789abcdef0123456789ABCDEF";
  static const RunIdentity identity{.run_id = RunIdFromKey(key), .key = key};
  const std::string text(FuzzText(data, size));
  (void)DecodeRecord(text, identity);
  if (size == 0 || size > kBodyBytesMax) return 0;
  Record record{.slot = 3, .generation = 2, .holder = "fuzz", .body = text.substr(1)};
  record.type = static_cast<RecordType>(1 + data[0] % 7);
  const auto decoded = DecodeRecord(EncodeRecord(record, identity, {}), identity);
  FuzzCheck(decoded.ok() && decoded->body == record.body && decoded->type == record.type);
  (void)CheckBody(record.type, record.body);
  (void)IsCheckpointName(record.body);
  return 0;
}
