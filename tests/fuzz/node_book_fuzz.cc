// Lines of the book of nodes, which many processes append to and people may edit.
#include <algorithm>
#include <string_view>

#include "launch/node_book.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  std::string_view rest = FuzzText(data, size);
  EvidenceBook book({});
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const auto entry = ParseEvidenceLine(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (!entry.ok()) continue;
    FuzzCheck(book.Record(*entry).ok());
    // What we write of it is read as what we wrote: times to the millisecond.
    const std::string line = EvidenceLine(*entry);
    const auto again = ParseEvidenceLine(line);
    FuzzCheck(again.ok() && again->time <= entry->time && EvidenceLine(*again) == line);
  }
  const absl::Time now = absl::FromUnixSeconds(1'772'370'000);
  for (const EvidenceBook::Verdict& verdict : book.Judge(now).nodes)
    FuzzCheck(verdict.entries > 0 && verdict.points >= 0);
  return 0;
}
