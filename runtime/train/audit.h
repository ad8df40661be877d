// An audit: each replica computes one leaf of another one again. The kernels and shapes are the
// same, so the gradients must have the same bits; a difference is wrong arithmetic of one of the
// two, and a third computation says whose.
#pragma once

#include "absl/status/status.h"
#include "runtime/comm/group.h"
#include "runtime/train/corruption.h"
#include "runtime/train/mesh.h"
#include "runtime/train/pipeline.h"
#include "runtime/train/schedule_math.h"
#include "runtime/train/sharded_state.h"
#include "runtime/train/statistics.h"

namespace perdure {

// Pointers outlive the calls. The trainer's, on its thread.
struct AuditParts {
  Mesh mesh;
  MeshPoint at;
  int64_t leaves = 0;  // Of the step.
  Pipeline* pipeline = nullptr;
  ShardedState* state = nullptr;
  Group* data = nullptr;  // Of the host.
  StatisticsGather* statistics = nullptr;
};

// Of a step whose gradients are finished and not used yet. Every rank calls it. As Resolve: OK,
// Corruption or SuspectedCorruption of this rank, or Unavailable because of another one.
absl::Status Audit(const AuditParts& parts, const StepInfo& step);

// Which of two replicas is wrong about a leaf, given what the first, its auditor and a third
// computation came to: -1, the first; +1, the auditor; 0: nobody knows.
int WhoIsWrong(const std::vector<uint64_t>& first, const std::vector<uint64_t>& auditor,
               const std::vector<uint64_t>& third);

}  // namespace perdure
