#include "runtime/control/no_progress.h"

#include <algorithm>
#include <map>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// Of steps that no failure got beyond; more than a job that goes nowhere can have for long.
constexpr size_t kKnownMax = 64;

}  // namespace

bool MayComeAgain(EvidenceKind kind, int64_t number) {
  if (kind == EvidenceKind::kSlow) return false;
  return kind == EvidenceKind::kHung || ClassOf(kind, number) == EvidenceClass::kSoft;
}

void ForgetFailuresBefore(StepIndex finished, std::vector<FailedGeneration>& failures) {
  std::erase_if(failures, [&](const FailedGeneration& f) { return f.failure.step < finished; });
}

void AddFailure(const FailedGeneration& failed, std::vector<FailedGeneration>& failures) {
  ForgetFailuresBefore(failed.failure.step, failures);
  if (!failed.failure.kind.has_value() ||
      !MayComeAgain(*failed.failure.kind, failed.failure.number))
    return;
  failures.push_back(failed);
  if (failures.size() > kKnownMax) failures.erase(failures.begin());
}

ProgressVerdict JudgeProgress(const std::vector<FailedGeneration>& failures) {
  std::map<StepIndex, std::vector<const FailedGeneration*>> by_step;
  for (const FailedGeneration& f : failures) by_step[f.failure.step].push_back(&f);
  ProgressVerdict verdict;
  for (const auto& [step, failed] : by_step) {
    if (failed.size() < 2) continue;
    const Failure& last = failed.back()->failure;
    verdict.distrusted = std::max(verdict.distrusted, failed[1]->generation);
    const bool one_node = last.node.has_value() &&
                          std::all_of(failed.begin(), failed.end(),
                                      [&](const auto* f) { return f->failure.node == last.node; });
    if (one_node) verdict.drains.push_back(*last.node);
    if (verdict.ends) continue;
    verdict.ends = failed.size() >= static_cast<size_t>(kFailuresMax);
    verdict.words =
        fmt::format("{} times in a row a generation ended after step {}, last because of: {}{}; {}",
                    failed.size(), step, WordsOf(*last.kind, last.number),
                    last.node.has_value() ? fmt::format(" on node {}", *last.node) : "",
                    verdict.ends ? "a person must look"
                                 : "the state is taken from a checkpoint, not from memory");
  }
  std::sort(verdict.drains.begin(), verdict.drains.end());
  verdict.drains.erase(std::unique(verdict.drains.begin(), verdict.drains.end()),
                       verdict.drains.end());
  return verdict;
}

}  // namespace perdure
