// What Slurm's commands print: names of jobs and reasons of nodes are other people's words. The
// first byte chooses the reader.
#include <algorithm>
#include <set>

#include "launch/slurm/hostlist.h"
#include "launch/slurm/scheduler_text.h"
#include "tests/fuzz/fuzz_input.h"

namespace perdure {
namespace {

constexpr std::string_view kSeparator = "<~|~>";

void CheckHostlist(std::string_view list, HostlistGrammar grammar) {
  const auto names = ExpandHostlist(list, grammar);
  if (!names.ok()) return;
  FuzzCheck(names->size() <= kHostlistNamesMax);
  FuzzCheck(std::all_of(names->begin(), names->end(), IsNodeName));
  const std::string again = CompressHostlist(*names);
  const auto back = ExpandHostlist(again);
  FuzzCheck(back.ok());
  const std::set<std::string> unique(names->begin(), names->end());
  FuzzCheck(back->size() == unique.size());
  FuzzCheck(std::set<std::string>(back->begin(), back->end()) == unique);
}

void CheckJobs(const absl::StatusOr<std::vector<JobView>>& jobs) {
  if (!jobs.ok()) return;
  for (const JobView& job : *jobs)
    FuzzCheck(job.id >= 0 && job.nodes_min >= 0 && job.nodes_max >= 0);
}

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  if (size == 0) return 0;
  const std::string_view text = FuzzText(data + 1, size - 1);
  switch (data[0]) {
    case 'l':
      CheckHostlist(text, HostlistGrammar::k22_05);
      break;
    case 'm':
      CheckHostlist(text, HostlistGrammar::k23_11);
      break;
    case 'q':
      CheckJobs(ParseSqueue(text, kSeparator));
      break;
    case 'j':
      CheckJobs(ParseScontrolJobs(text, std::nullopt));
      break;
    case 'a':
      CheckJobs(ParseScontrolJobs(text, "arr"));
      break;
    case 'n':
      (void)ParseSinfo(text, kSeparator);
      break;
    case 'p':
      (void)ParsePartitions(text);
      break;
    case 'c':
      (void)ParseConfig(text);
      break;
    case 'o':
      (void)ParseQos(text);
      break;
    case 'u':
      (void)ParseAssociations(text);
      break;
    case 'h':
      (void)ParseHistory(text);
      break;
    case 's':
      (void)ParseSubmitted(text);
      break;
    default:
      FuzzCheck(
          !CommandFailure({"x"}, {.exit_code = 1, .output = "", .errors = std::string(text)}).ok());
  }
  return 0;
}
