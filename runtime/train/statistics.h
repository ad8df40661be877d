// A step's statistics, gathered from all ranks: per leaf the loss, per atom the squared gradient,
// each summed in index order in fp64, so that the totals depend on leaves and atoms alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/atoms.h"
#include "runtime/base/digest.h"
#include "runtime/comm/group.h"
#include "runtime/train/corruption.h"
#include "runtime/train/mesh.h"

namespace perdure {

struct StepStatistics {
  double loss_sum = 0;        // Over leaves in order.
  double square_sum = 0;      // Of all gradients, over atoms in order.
  int command = 0;            // What rank 0 asked for.
  std::vector<int> verdicts;  // By rank, what each gave.
};

class StatisticsGather {
 public:
  // owned[d]: atoms of replica d at this rank's (p, t), as ShardedState::OwnedAtomIndices. The
  // lists of other (p, t) are exchanged once, here.
  static absl::StatusOr<StatisticsGather> Create(const Mesh& mesh, MeshPoint at, int64_t atoms,
                                                 Group* tensor, Group* data, Group* pipeline,
                                                 const std::vector<std::vector<int64_t>>& owned);

  // By atom of the table, on every rank: digests of all ranks' owned atoms; `own` in the order of
  // its list. DataLoss: ranks that hold one atom do not agree.
  absl::StatusOr<std::vector<Digest>> GatherDigests(std::span<const Digest> own);

  // losses: this rank's rounds (meaningful on the last pipeline rank); squares: of its own atoms.
  // `leaves` of the step. `verdict`: any small number (Verdict::Kind).
  absl::StatusOr<StepStatistics> Gather(int64_t leaves, std::span<const double> losses,
                                        std::span<const double> squares, int command,
                                        int verdict = 0);
  // Of rank 0, to all.
  absl::Status Share(void* data, size_t bytes);
  // By rank, the number that each gave.
  absl::StatusOr<std::vector<int>> GatherNumbers(int own);
  // Resolve of the kinds that a gather gave. Where one is bad nobody leaves before all have read
  // them: who leaves takes the gather with him, and the culprit would not hear that it is one.
  absl::Status ResolveTogether(const Verdict& own, std::span<const int> kinds);

 private:
  StatisticsGather(const Mesh& mesh, MeshPoint at) : mesh_(mesh), at_(at) {}

  Mesh mesh_;
  MeshPoint at_;
  Group* tensor_ = nullptr;
  Group* data_ = nullptr;
  Group* pipeline_ = nullptr;
  int64_t atoms_ = 0;
  size_t squares_max_ = 0;                   // Most atoms of any rank: blocks are padded to it.
  std::vector<std::vector<int64_t>> owned_;  // [rank] -> atoms.
};

}  // namespace perdure
