#include <filesystem>
#include <set>

#include "ckpt/checkpoint.h"
#include "ckpt/run_writer.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

absl::Status CheckStates(const AtomTable& table, std::span<const AtomState> states,
                         const std::string& path) {
  std::set<int64_t> seen;
  for (const AtomState& state : states) {
    if (state.atom < 0 || state.atom >= static_cast<int64_t>(table.atoms().size()))
      return InvalidArgument("{}: there is no atom {} of {}", path, state.atom,
                             table.atoms().size());
    if (!seen.insert(state.atom).second)
      return InvalidArgument("{}: atom {} is given twice", path, state.atom);
    for (const float* part : state.parts) PERDURE_CHECK(part != nullptr);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PartReport> WritePart(const std::string& directory, const std::string& file_name,
                                     const AtomTable& table, std::span<const AtomState> states,
                                     int64_t step, uint64_t generation, const std::string& run_id) {
  RETURN_IF_ERROR(
      CheckStates(table, states, (std::filesystem::path(directory) / file_name).string()));
  PartPlan plan{.file = file_name};
  for (const AtomState& state : states) plan.atoms.push_back(state.atom);
  if (!states.empty()) plan.runs = {static_cast<int64_t>(states.size())};
  ASSIGN_OR_RETURN(
      const auto writer,
      RunWriter::Create(directory, table, plan, 0,
                        {.step = step, .generation = generation, .run_id = run_id}, {}));
  for (const AtomState& state : states) RETURN_IF_ERROR(writer->Append(state));
  ASSIGN_OR_RETURN(const RunReport run, writer->Finish());
  return JoinRuns({&run, 1});
}

}  // namespace perdure
