#include "runtime/train/statistics.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Every rank's block to every rank, by three gathers along the axes: data, then pipeline, then
// tensor. The result is in (tensor, pipeline, data) order; `place` turns that into ranks.
template <typename T>
absl::StatusOr<std::vector<T>> GatherAll(Group* tensor, Group* data, Group* pipeline,
                                         const std::vector<T>& own) {
  std::vector<T> block = own;
  for (Group* group : {data, pipeline, tensor}) {
    std::vector<T> all(block.size() * static_cast<size_t>(group->size()));
    RETURN_IF_ERROR(group->AllGather(block.data(), block.size() * sizeof(T), all.data()));
    block = std::move(all);
  }
  return block;
}

size_t Place(const Mesh& mesh, const MeshPoint& at) {
  return static_cast<size_t>((at.tensor * mesh.pipeline() + at.pipeline) * mesh.data() + at.data);
}

}  // namespace

absl::StatusOr<StatisticsGather> StatisticsGather::Create(
    const Mesh& mesh, MeshPoint at, int64_t atoms, Group* tensor, Group* data, Group* pipeline,
    const std::vector<std::vector<int64_t>>& owned) {
  StatisticsGather result(mesh, at);
  result.tensor_ = tensor;
  result.data_ = data;
  result.pipeline_ = pipeline;
  result.atoms_ = atoms;
  const std::vector<int64_t>& mine = owned[static_cast<size_t>(at.data)];
  ASSIGN_OR_RETURN(const std::vector<int64_t> counts,
                   GatherAll<int64_t>(tensor, data, pipeline, {static_cast<int64_t>(mine.size())}));
  result.squares_max_ = static_cast<size_t>(*std::max_element(counts.begin(), counts.end()));
  std::vector<int64_t> padded = mine;
  padded.resize(result.squares_max_, -1);
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, GatherAll(tensor, data, pipeline, padded));
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    const auto begin =
        all.begin() + static_cast<int64_t>(Place(mesh, mesh.At(rank)) * result.squares_max_);
    std::vector<int64_t> list(begin, begin + static_cast<int64_t>(result.squares_max_));
    std::erase(list, -1);
    result.owned_.push_back(std::move(list));
  }
  return result;
}

absl::StatusOr<std::vector<Digest>> StatisticsGather::GatherDigests(std::span<const Digest> own) {
  PERDURE_CHECK(own.size() == owned_[static_cast<size_t>(mesh_.Rank(at_))].size());
  std::vector<Digest> block(own.begin(), own.end());
  block.resize(squares_max_);
  ASSIGN_OR_RETURN(const std::vector<Digest> all, GatherAll(tensor_, data_, pipeline_, block));
  std::vector<Digest> by_atom(static_cast<size_t>(atoms_));
  std::vector<int> from(by_atom.size(), -1);
  for (int rank = 0; rank < mesh_.ranks(); ++rank) {
    const auto& owned = owned_[static_cast<size_t>(rank)];
    const Digest* digests = all.data() + Place(mesh_, mesh_.At(rank)) * squares_max_;
    for (size_t i = 0; i < owned.size(); ++i) {
      const auto atom = static_cast<size_t>(owned[i]);
      if (from[atom] >= 0 && by_atom[atom] != digests[i])
        return DataLoss("atom {} is not the same on ranks {} and {}: one of them has wrong memory",
                        atom, from[atom], rank);
      from[atom] = rank;
      by_atom[atom] = digests[i];
    }
  }
  for (size_t atom = 0; atom < from.size(); ++atom)
    if (from[atom] < 0) return Internal("no rank owns atom {}", atom);
  return by_atom;
}

absl::Status StatisticsGather::Share(void* data, size_t bytes) {
  // Along one axis after the other: what others than those of rank 0 pass on is passed over.
  for (Group* group : {data_, pipeline_, tensor_})
    RETURN_IF_ERROR(group->Broadcast(data, bytes, 0));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> StatisticsGather::GatherNumbers(int own) {
  ASSIGN_OR_RETURN(const std::vector<int> all, GatherAll<int>(tensor_, data_, pipeline_, {own}));
  std::vector<int> by_rank;
  for (int rank = 0; rank < mesh_.ranks(); ++rank)
    by_rank.push_back(all[Place(mesh_, mesh_.At(rank))]);
  return by_rank;
}

absl::Status StatisticsGather::ResolveTogether(const Verdict& own, std::span<const int> kinds) {
  absl::Status resolved = Resolve(own, kinds);
  // Over when all have come to it, or somebody is gone.
  if (!resolved.ok()) (void)GatherNumbers(0);
  return resolved;
}

absl::StatusOr<StepStatistics> StatisticsGather::Gather(int64_t leaves,
                                                        std::span<const double> losses,
                                                        std::span<const double> squares,
                                                        int command, int verdict) {
  const auto rounds = static_cast<size_t>((leaves + mesh_.data() - 1) / mesh_.data());
  PERDURE_CHECK(losses.size() == rounds && squares.size() <= squares_max_);
  constexpr size_t kHead = 2;
  std::vector<double> block(kHead + rounds + squares_max_, 0.0);
  block[0] = command;
  block[1] = verdict;
  std::copy(losses.begin(), losses.end(), block.begin() + kHead);
  std::copy(squares.begin(), squares.end(), block.begin() + static_cast<int64_t>(kHead + rounds));
  ASSIGN_OR_RETURN(const std::vector<double> all, GatherAll(tensor_, data_, pipeline_, block));
  const auto block_of = [&](const MeshPoint& at) {
    return all.data() + Place(mesh_, at) * block.size();
  };

  StepStatistics statistics;
  statistics.command = static_cast<int>(block_of(MeshPoint{})[0]);
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const MeshPoint at{.tensor = 0,
                       .data = static_cast<int>(leaf % mesh_.data()),
                       .pipeline = mesh_.pipeline() - 1};
    statistics.loss_sum += block_of(at)[kHead + static_cast<size_t>(leaf / mesh_.data())];
  }
  std::vector<double> by_atom(static_cast<size_t>(atoms_), 0.0);
  for (int rank = 0; rank < mesh_.ranks(); ++rank) {
    const auto& owned = owned_[static_cast<size_t>(rank)];
    const double* values = block_of(mesh_.At(rank)) + kHead + rounds;
    statistics.verdicts.push_back(static_cast<int>(block_of(mesh_.At(rank))[1]));
    // Replicated atoms (norms) come once from each tensor rank, with equal values.
    for (size_t i = 0; i < owned.size(); ++i) by_atom[static_cast<size_t>(owned[i])] = values[i];
  }
  for (double square : by_atom) statistics.square_sum += square;
  return statistics;
}

}  // namespace perdure
