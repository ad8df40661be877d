#include "runtime/train/rank_state.h"

#include <algorithm>
#include <utility>

#include "model/init.h"
#include "runtime/base/check.h"
#include "runtime/base/parallel.h"
#include "runtime/base/status.h"
#include "runtime/train/held_state.h"
#include "runtime/train/pipeline.h"
#include "runtime/train/writers.h"

namespace perdure {
namespace {

// A fresh run's, by the seed.
absl::Status Initialize(const RankState& rank, std::span<AtomState> atoms) {
  const auto fill = [&](size_t i) {
    const AtomState& atom = atoms[i];
    const Atom& place = rank.table->atoms()[static_cast<size_t>(atom.atom)];
    InitializeAtom(*rank.table, place, rank.options->config.seed,
                   {atom.parts[0], static_cast<size_t>(place.count)});
    for (float* moment : {atom.parts[1], atom.parts[2]}) std::fill_n(moment, place.count, 0.0F);
    return absl::OkStatus();
  };
  return ForEachInParallel(atoms.size(), fill, static_cast<size_t>(rank.options->host_threads));
}

// Of the owned atoms, in their order, as they stand on the device.
absl::StatusOr<std::vector<Digest>> DigestOwned(const RankState& rank) {
  std::vector<Digest> digests;
  RETURN_IF_ERROR(rank.state->ReadOwned([&](std::span<const AtomState> atoms) {
    const size_t first = digests.size();
    digests.resize(first + atoms.size());
    const auto digest = [&](size_t i) {
      const int64_t count = rank.table->atoms()[static_cast<size_t>(atoms[i].atom)].count;
      digests[first + i] = AtomDigest(atoms[i], count);
      return absl::OkStatus();
    };
    return ForEachInParallel(atoms.size(), digest, static_cast<size_t>(rank.options->host_threads));
  }));
  return digests;
}

}  // namespace

std::vector<AtomState> RankState::Answered(std::vector<AtomState> atoms) const {
  std::erase_if(atoms,
                [&](const AtomState& atom) { return !AnswersFor(*table, atom.atom, at.tensor); });
  return atoms;
}

absl::StatusOr<StepHistory> FillState(const RankState& rank) {
  const StartPoint& start = *rank.start;
  StepHistory history{.trail = start.trail, .steps = {}};
  std::unique_ptr<HeldState> held;
  if (start.held.has_value()) {
    PERDURE_CHECK(start.checkpoint.empty() && start.held->step == start.step);
    const HeldState::Options options{.config = rank.options->config,
                                     .run_id = rank.options->run_id,
                                     .host_threads = rank.options->host_threads,
                                     .history = rank.rank() == 0};
    ASSIGN_OR_RETURN(held, HeldState::Find(options, *start.held, rank.table,
                                           rank.state->OwnedAtomIndices(rank.at.data), rank.host));
    if (options.history) history = held->history();
  }
  RETURN_IF_ERROR(rank.state->FillOwned([&](std::span<AtomState> atoms) {
    if (held != nullptr) return held->Read(atoms);
    if (start.manifest.has_value())
      return ReadAtoms(start.checkpoint, *start.manifest, *rank.table, atoms);
    return Initialize(rank, atoms);
  }));
  RETURN_IF_ERROR(rank.state->ShareState());
  return history;
}

absl::Status CertifyState(const RankState& rank, int64_t samples, StatisticsGather* statistics) {
  const StartPoint& start = *rank.start;
  ASSIGN_OR_RETURN(const std::vector<Digest> owned, DigestOwned(rank));
  ASSIGN_OR_RETURN(const std::vector<Digest> all, statistics->GatherDigests(owned));
  const Digest certificate = Certificate(*rank.table, all, start.step, samples,
                                         GapsBehind(rank.options->gaps, start.step));
  if (start.manifest.has_value() && certificate != start.manifest->certificate)
    return DataLoss("certificate after loading {} is {}, its manifest says {}: nothing was trained",
                    start.checkpoint, certificate.Hex(), start.manifest->certificate.Hex());
  if (rank.rank() == 0) rank.host->Certificate(certificate);
  std::vector<int64_t> answered;
  std::vector<Digest> digests;
  const std::vector<int64_t> indices = rank.state->OwnedAtomIndices(rank.at.data);
  for (size_t i = 0; i < indices.size(); ++i)
    if (AnswersFor(*rank.table, indices[i], rank.at.tensor)) {
      answered.push_back(indices[i]);
      digests.push_back(owned[i]);
    }
  return rank.host->Loaded(answered, digests);
}

absl::StatusOr<std::unique_ptr<Snapshots>> MakeSnapshots(const RankState& rank, Group* group) {
  const TrainerOptions& options = *rank.options;
  const RunConfig& config = options.config;
  if (options.snapshot_directory.empty() || config.snapshot.every == 0) return nullptr;
  Snapshots::Options snapshot_options{.directory = options.snapshot_directory,
                                      .run_id = options.run_id,
                                      .generation = options.generation,
                                      .host_threads = options.host_threads};
  const std::vector<AtomState> own = rank.Answered(rank.state->OwnedAtoms());
  if (rank.state->guarded())
    for (const AtomState& atom : own)
      snapshot_options.sums.push_back(rank.state->SumsOf(atom.atom));
  if (config.snapshot.peers) snapshot_options.peers = options.snapshot_peers;
  // Ranks of one data group keep some of each other's state anyway.
  const auto shares = [&](int other) {
    const MeshPoint at = rank.mesh.At(other);
    return at.tensor == rank.at.tensor && at.pipeline == rank.at.pipeline;
  };
  std::vector<Snapshots::Ward> wards;
  if (!snapshot_options.peers.empty()) {
    const std::vector<std::vector<int64_t>> atoms = AtomsByRank(config, *rank.table);
    for (int r = 0; r < rank.mesh.ranks(); ++r) {
      if (snapshot_options.peers[static_cast<size_t>(r)] != rank.rank()) continue;
      Snapshots::Ward& ward = wards.emplace_back();
      ward.rank = r;
      if (shares(r)) {
        ward.atoms = rank.Answered(rank.state->SharedAtoms(rank.mesh.At(r).data));
      } else {
        for (const int64_t atom : atoms[static_cast<size_t>(r)])
          ward.atoms.push_back({.atom = atom});
      }
    }
    if (shares(snapshot_options.peers[static_cast<size_t>(rank.rank())]))
      snapshot_options.peer_keeps =
          ShardedState::SharedParts(static_cast<int>(config.layout.zero), DTypeOf(config.numerics));
  }
  const auto gathered = [state = rank.state](bool wait) -> absl::StatusOr<bool> {
    if (wait) RETURN_IF_ERROR(state->FinishGathers());
    return !state->gathering();
  };
  return Snapshots::Create(snapshot_options, rank.table, own, std::move(wards), gathered, rank.ops,
                           group);
}

}  // namespace perdure
