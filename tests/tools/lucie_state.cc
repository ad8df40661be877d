#include "tests/tools/lucie_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "launch/config.h"
#include "model/parameters.h"
#include "runtime/base/check.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kStep = 1000;
constexpr size_t kRanksAtOnce = 2;

// SplitMix64 (Steele, Lea, Flood 2014): the n-th value is a function of n.
uint64_t Mix(uint64_t n) {
  n = (n + 1) * 0x9e3779b97f4a7c15;
  n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9;
  n = (n ^ (n >> 27)) * 0x94d049bb133111eb;
  return n ^ (n >> 31);
}

}  // namespace

absl::StatusOr<RunConfig> ScaledLucie(const LucieSize& size, const LayoutConfig& layout) {
  return LoadConfig(
      PERDURE_SOURCE_DIR "/launch/recipes/lucie/run.toml",
      {fmt::format("model.hidden={}", size.hidden), fmt::format("model.ffn={}", 3 * size.hidden),
       fmt::format("model.head_dim={}", std::max<int64_t>(size.hidden / 32, 8)),
       fmt::format("model.vocab={}", size.vocab),
       fmt::format("numerics.atom_elements={}", size.atom_elements),
       fmt::format("layout.tensor={}", layout.tensor),
       fmt::format("layout.pipeline={}", layout.pipeline),
       fmt::format("layout.data={}", layout.data),
       fmt::format("layout.virtual_stages={}", layout.virtual_stages)});
}

AtomTable LucieTable(const RunConfig& config) {
  return AtomTable(ModelTensors(config.model, config.numerics.tensor_shards),
                   config.numerics.atom_elements);
}

LucieState::LucieState(const AtomTable& table, const std::vector<int64_t>& atoms) {
  const auto count = [&](int64_t atom) { return table.atoms()[static_cast<size_t>(atom)].count; };
  int64_t elements = 0;
  for (const int64_t atom : atoms) elements += count(atom);
  memory_.resize(static_cast<size_t>(elements * kStatePartCount));
  float* at = memory_.data();
  for (const int64_t atom : atoms) {
    AtomState state{.atom = atom};
    for (size_t part = 0; part < state.parts.size(); ++part)
      state.parts[part] = at + static_cast<int64_t>(part) * elements;
    at += count(atom);
    atoms_.push_back(state);
  }
}

void LucieState::Fill(const AtomTable& table) {
  for (const AtomState& state : atoms_) {
    const int64_t count = table.atoms()[static_cast<size_t>(state.atom)].count;
    for (size_t part = 0; part < state.parts.size(); ++part) {
      const uint64_t first = (static_cast<uint64_t>(state.atom) * kStatePartCount + part) << 32;
      for (int64_t i = 0; i < count; ++i) {
        const auto bits = static_cast<uint32_t>(Mix(first + static_cast<uint64_t>(i)));
        // A sign and 23 random bits: numbers from 0.5 to 1.
        state.parts[part][i] = std::bit_cast<float>((bits & 0x807fffff) | 0x3f000000);
      }
    }
  }
}

std::vector<int64_t> AtomsOfRank(const Writers& writers, size_t rank) {
  const Writers::Place place = writers.ranks[rank];
  if (place.file < 0) return {};
  const PartPlan& plan = writers.files[static_cast<size_t>(place.file)];
  const auto first = plan.atoms.begin() +
                     std::accumulate(plan.runs.begin(), plan.runs.begin() + place.run, int64_t{0});
  return {first, first + plan.runs[static_cast<size_t>(place.run)]};
}

Manifest LucieManifest(const RunConfig& config, const AtomTable& table) {
  Manifest manifest;
  manifest.step = kStep;
  manifest.samples = kStep * 1024;
  manifest.tokens = manifest.samples * 4096;
  manifest.phase_name = "pretrain";
  manifest.generation = 1;
  manifest.run_id = std::string(32, '7');
  manifest.config = PrintConfig(config);
  manifest.layout = fmt::format("tensor {} x pipeline {} x data {}, zero {}", config.layout.tensor,
                                config.layout.pipeline, config.layout.data, config.layout.zero);
  manifest.created = "2026-11-27T00:00:00Z";
  manifest.atom_elements = table.atom_elements();
  manifest.tensors = table.tensors();
  return manifest;
}

absl::StatusOr<Manifest> WriteAsRanks(const std::string& directory, const RunConfig& config,
                                      const AtomTable& table, int64_t ranks_per_file) {
  Manifest manifest = LucieManifest(config, table);
  const Writers writers = PlanWriters(config, table, ranks_per_file);
  const PartStamp stamp{.step = kStep, .generation = 1, .run_id = manifest.run_id};
  std::vector<std::vector<RunReport>> reports(writers.files.size());
  for (size_t file = 0; file < reports.size(); ++file)
    reports[file].resize(writers.files[file].runs.size());
  const absl::Status done = ForEachInParallel(
      writers.ranks.size(),
      [&](size_t rank) -> absl::Status {
        const Writers::Place place = writers.ranks[rank];
        if (place.file < 0) return absl::OkStatus();
        const auto file = static_cast<size_t>(place.file), run = static_cast<size_t>(place.run);
        LucieState state(table, AtomsOfRank(writers, rank));
        state.Fill(table);
        ASSIGN_OR_RETURN(const auto writer, RunWriter::Create(directory, table, writers.files[file],
                                                              run, stamp, WriteOptions{}));
        for (const AtomState& atom : state.atoms()) RETURN_IF_ERROR(writer->Append(atom));
        ASSIGN_OR_RETURN(reports[file][run], writer->Finish());
        return absl::OkStatus();
      },
      kRanksAtOnce);
  RETURN_IF_ERROR(done);
  for (const std::vector<RunReport>& runs : reports) {
    ASSIGN_OR_RETURN(PartReport part, JoinRuns(runs));
    manifest.parts.push_back(std::move(part));
  }
  RETURN_IF_ERROR(WriteManifest(directory, table, manifest).status());
  return manifest;
}

absl::StatusOr<Digest> LoadAsRanks(const std::string& directory, const Manifest& manifest,
                                   const RunConfig& config, const AtomTable& table) {
  const Writers writers = PlanWriters(config, table, 1);
  std::vector<Digest> digests(table.atoms().size());
  const absl::Status done = ForEachInParallel(
      writers.ranks.size(),
      [&](size_t rank) -> absl::Status {
        LucieState state(table, AtomsOfRank(writers, rank));
        RETURN_IF_ERROR(ReadAtoms(directory, manifest, table, state.atoms()));
        for (const AtomState& atom : state.atoms()) {
          const auto index = static_cast<size_t>(atom.atom);
          if (digests[index] != Digest{}) return Internal("two ranks loaded atom {}", atom.atom);
          digests[index] = AtomDigest(atom, table.atoms()[index].count);
        }
        return absl::OkStatus();
      },
      kRanksAtOnce);
  RETURN_IF_ERROR(done);
  return Certificate(table, digests, manifest.step, manifest.samples);
}

}  // namespace perdure
