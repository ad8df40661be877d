#include "runtime/train/audit.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Sums = std::vector<uint64_t>;

// Leaf `round` of replica (own + shift) mod D, computed by this one.
absl::StatusOr<Sums> Compute(const AuditParts& parts, const StepInfo& step, int64_t round,
                             int shift) {
  parts.state->BeginAudit();
  RETURN_IF_ERROR(parts.pipeline->RunLeaf(step, round, shift));
  return parts.state->EndAudit();
}

// By replica, all of one length.
absl::StatusOr<std::vector<Sums>> Share(const AuditParts& parts, const Sums& own) {
  const auto replicas = static_cast<size_t>(parts.data->size());
  Sums all(own.size() * replicas);
  RETURN_IF_ERROR(parts.data->AllGather(own.data(), own.size() * sizeof(uint64_t), all.data()));
  std::vector<Sums> shared;
  for (size_t d = 0; d < replicas; ++d) {
    const auto begin = all.begin() + static_cast<int64_t>(d * own.size());
    shared.emplace_back(begin, begin + static_cast<int64_t>(own.size()));
  }
  return shared;
}

// As the ranks of one data group see it.
struct Dispute {
  int first = 0, auditor = 0;  // Replicas.
  bool here = false;           // This group's buckets show it.
  Sums of_first, of_auditor;
};

// The replica at fault: Dispute's, or -1: either.
absl::StatusOr<int> Settle(const AuditParts& parts, const StepInfo& step, int64_t round,
                           const Dispute& dispute) {
  const int replicas = parts.mesh.data();
  if (replicas == 1) return dispute.first;
  const auto by = [&](int shift) { return (dispute.first - shift + replicas) % replicas; };
  // A third replica, or of two the first again and then its auditor again.
  int answer = 0;
  for (const int shift : replicas > 2 ? std::vector<int>{2} : std::vector<int>{0, 1}) {
    ASSIGN_OR_RETURN(const Sums computed, Compute(parts, step, round, shift));
    ASSIGN_OR_RETURN(const std::vector<Sums> all, Share(parts, computed));
    const Sums& third = all[static_cast<size_t>(by(shift))];
    int says = WhoIsWrong(dispute.of_first, dispute.of_auditor, third);
    // Who says the same twice is no witness for itself.
    if (replicas == 2 && says == (shift == 0 ? 1 : -1)) says = 0;
    if (answer == 0 && dispute.here) answer = says;
  }
  // All ranks come to one answer: those that see the dispute know it.
  ASSIGN_OR_RETURN(const std::vector<int> answers, parts.statistics->GatherNumbers(answer));
  for (const int said : answers)
    if (said != 0) return said < 0 ? dispute.first : dispute.auditor;
  return -1;
}

}  // namespace

int WhoIsWrong(const Sums& first, const Sums& auditor, const Sums& third) {
  if (third == first) return 1;
  return third == auditor ? -1 : 0;
}

absl::Status Audit(const AuditParts& parts, const StepInfo& step) {
  const int replicas = parts.mesh.data();
  const int64_t rounds = parts.leaves / replicas;  // In which every replica has a leaf.
  if (rounds == 0) return absl::OkStatus();
  const int64_t round = step.step % rounds;
  const int shift = replicas > 1 ? 1 : 0;
  ASSIGN_OR_RETURN(const Sums audited, Compute(parts, step, round, shift));
  ASSIGN_OR_RETURN(const std::vector<Sums> firsts, Share(parts, parts.state->LeafSumsOf(round)));
  ASSIGN_OR_RETURN(const std::vector<Sums> auditors, Share(parts, audited));
  const auto auditor_of = [&](int first) { return (first - shift + replicas) % replicas; };
  int disputed = 0;  // Replica + 1.
  for (int d = replicas; d-- > 0;)
    if (firsts[static_cast<size_t>(d)] != auditors[static_cast<size_t>(auditor_of(d))])
      disputed = d + 1;
  ASSIGN_OR_RETURN(const std::vector<int> all, parts.statistics->GatherNumbers(disputed));
  const int worst = *std::max_element(all.begin(), all.end());
  if (worst == 0) return absl::OkStatus();
  Dispute dispute{.first = worst - 1, .auditor = auditor_of(worst - 1), .here = false};
  dispute.of_first = firsts[static_cast<size_t>(dispute.first)];
  dispute.of_auditor = auditors[static_cast<size_t>(dispute.auditor)];
  dispute.here = dispute.of_first != dispute.of_auditor;
  ASSIGN_OR_RETURN(const int guilty, Settle(parts, step, round, dispute));
  Verdict verdict;
  const int self = parts.at.data;
  const bool suspect =
      guilty < 0 ? self == dispute.first || self == dispute.auditor : self == guilty;
  if (suspect && dispute.here) {
    // Of several ranks that compute one replica together, each passes on what another got wrong.
    const bool sure = guilty >= 0 && parts.mesh.tensor() * parts.mesh.pipeline() == 1;
    verdict.kind = sure ? Verdict::Kind::kOwn : Verdict::Kind::kSuspected;
    verdict.words = fmt::format(
        "replica {} and replica {} computed another gradient of leaf {} of step {}; {}",
        dispute.first, dispute.auditor, round * replicas + dispute.first, step.step + 1,
        guilty < 0 ? "nobody can say which is wrong" : fmt::format("replica {} is wrong", guilty));
  }
  ASSIGN_OR_RETURN(const std::vector<int> kinds,
                   parts.statistics->GatherNumbers(static_cast<int>(verdict.kind)));
  return parts.statistics->ResolveTogether(verdict, kinds);
}

}  // namespace perdure
