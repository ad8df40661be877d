#include "ckpt/part_plan.h"

#include <algorithm>

#include "ckpt/file_io.h"
#include "ckpt/json_object.h"
#include "ckpt/manifest_json.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kBlockElements = static_cast<int64_t>(kBlockBytes / sizeof(float));

}  // namespace

ElementPlaces PlaceElements(const AtomTable& table, std::span<const int64_t> atoms,
                            std::span<const int64_t> runs) {
  ElementPlaces places;
  places.begins.reserve(atoms.size());
  size_t next = 0;
  for (const int64_t count : runs) {
    const int64_t first = (places.length + kBlockElements - 1) / kBlockElements * kBlockElements;
    int64_t element = first;
    for (int64_t i = 0; i < count; ++i) {
      PERDURE_CHECK(next < atoms.size());
      places.begins.push_back(element);
      element += table.atoms()[static_cast<size_t>(atoms[next++])].count;
    }
    places.runs.push_back({first, element});
    places.length = element;
  }
  PERDURE_CHECK(next == atoms.size());
  return places;
}

std::string SerializeRun(const RunReport& run) {
  const OrderedJson json = {{"file", run.file},
                            {"run", run.run},
                            {"runs", run.runs},
                            {"bytes", run.bytes},
                            {"offsets", run.offsets},
                            {"atoms", run.atoms},
                            {"atom_digests", HexList(run.atom_digests)},
                            {"blocks", run.blocks},
                            {"block_digests", HexList(run.block_digests)}};
  return json.dump();
}

absl::StatusOr<RunReport> ParseRun(std::string_view serialized) {
  const Json json = Json::parse(serialized, nullptr, /*allow_exceptions=*/false);
  JsonObject object(json, "run");
  RunReport run;
  std::vector<int64_t> offsets, blocks;
  object.String("file", &run.file);
  object.Int("run", &run.run, 0);
  object.Ints("runs", &run.runs);
  object.Unsigned("bytes", &run.bytes);
  object.Ints("offsets", &offsets);
  object.Ints("atoms", &run.atoms);
  object.Digests("atom_digests", &run.atom_digests);
  object.Ints("blocks", &blocks);
  object.Digests("block_digests", &run.block_digests);
  if (offsets.size() != run.offsets.size())
    object.Fail("offsets",
                fmt::format("has {} entries; {} expected", offsets.size(), run.offsets.size()));
  RETURN_IF_ERROR(object.Done());
  std::copy(offsets.begin(), offsets.end(), run.offsets.begin());
  run.blocks.assign(blocks.begin(), blocks.end());
  return run;
}

absl::StatusOr<PartReport> JoinRuns(std::span<const RunReport> runs) {
  if (runs.empty()) return DataLoss("a part without a run");
  const RunReport& first = runs.front();
  PartReport part;
  part.file = first.file;
  part.bytes = first.bytes;
  part.runs = first.runs;
  part.offsets = first.offsets;
  // A file without atoms has one writer all the same.
  std::vector<const RunReport*> in_order(std::max<size_t>(first.runs.size(), 1), nullptr);
  for (const RunReport& run : runs) {
    const auto index = static_cast<size_t>(run.run);
    if (run.file != first.file || run.bytes != first.bytes || run.runs != first.runs ||
        run.offsets != first.offsets || index >= in_order.size() ||
        static_cast<int64_t>(run.atoms.size()) != (run.runs.empty() ? 0 : run.runs[index]) ||
        run.atom_digests.size() != run.atoms.size() ||
        run.block_digests.size() != run.blocks.size())
      return DataLoss("{}: the writers of runs {} and {} disagree on the file's plan", first.file,
                      first.run, run.run);
    if (std::exchange(in_order[index], &run) != nullptr)
      return DataLoss("{}: run {} was written twice", first.file, run.run);
  }
  const uint64_t blocks = part.bytes / kBlockBytes + (part.bytes % kBlockBytes != 0);
  if (blocks > kPartBlocksMax) return DataLoss("{}: {} blocks", first.file, blocks);
  part.blocks.resize(blocks);
  std::vector<bool> written(blocks, false);
  for (size_t r = 0; r < in_order.size(); ++r) {
    if (in_order[r] == nullptr) return DataLoss("{}: run {} is missing", first.file, r);
    const RunReport& run = *in_order[r];
    part.atoms.insert(part.atoms.end(), run.atoms.begin(), run.atoms.end());
    part.atom_digests.insert(part.atom_digests.end(), run.atom_digests.begin(),
                             run.atom_digests.end());
    for (size_t i = 0; i < run.blocks.size(); ++i) {
      if (run.blocks[i] >= blocks || written[run.blocks[i]])
        return DataLoss("{}: block {} of {} was written by nobody's plan or twice", first.file,
                        run.blocks[i], blocks);
      written[run.blocks[i]] = true;
      part.blocks[run.blocks[i]] = run.block_digests[i];
    }
  }
  const auto missing = std::find(written.begin(), written.end(), false);
  if (missing != written.end())
    return DataLoss("{}: nobody wrote block {}", first.file, missing - written.begin());
  RETURN_IF_ERROR(ValidatePart(part, "part"));
  return part;
}

}  // namespace perdure
