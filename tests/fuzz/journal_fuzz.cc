// Lines of a journal, which many processes append to and a crash may tear.
#include <algorithm>
#include <string_view>

#include "monitoring/recoveries.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  std::string_view rest = FuzzText(data, size);
  JournalStory story;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    (void)story.Read(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  for (const Recovery& recovery : story.recoveries()) {
    FuzzCheck(recovery.redone >= 0 && (recovery.next == 0 || recovery.next > recovery.generation));
    FuzzCheck(recovery.next != 0 || !recovery.stepped.has_value());
  }
  FuzzCheck(story.told_twice() >= static_cast<int64_t>(story.disagreements().size()));
  story.Forget();
  FuzzCheck(story.recoveries().empty() && story.told_twice() == 0);
  return 0;
}
