#include "launch/drill_compare.h"

#include <map>
#include <string_view>

#include "monitoring/loss_csv.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kWordsMax = 5;

using ByStep = std::map<int64_t, std::string>;

absl::StatusOr<ByStep> CertificatesOf(const std::string& run) {
  ASSIGN_OR_RETURN(const RunLog log, RunLog::Open(run));
  ByStep certificates;
  // Newest first: what a later job did again counts.
  for (const CheckpointEntry& entry : ListCheckpoints(log, run))
    if (!entry.left) certificates.emplace(entry.commit.step, entry.commit.certificate.Hex());
  return certificates;
}

// How many steps both have.
int64_t Compare(std::string_view what, const ByStep& run, const ByStep& other,
                RunComparison& comparison) {
  int64_t common = 0;
  for (const auto& [step, value] : run) {
    const auto at = other.find(step);
    if (at == other.end()) continue;
    ++common;
    if (at->second == value) continue;
    ++comparison.different;
    if (comparison.words.size() < kWordsMax)
      comparison.words.push_back(
          fmt::format("step {}: {} {}, there {}", step, what, value, at->second));
  }
  return common;
}

}  // namespace

absl::StatusOr<RunComparison> CompareRuns(const std::string& run, const std::string& other) {
  RunComparison comparison;
  ASSIGN_OR_RETURN(const ByStep losses, ReadLossBits(run + "/metrics/loss.csv"));
  ASSIGN_OR_RETURN(const ByStep other_losses, ReadLossBits(other + "/metrics/loss.csv"));
  comparison.losses = Compare("loss_bits", losses, other_losses, comparison);
  ASSIGN_OR_RETURN(const ByStep certificates, CertificatesOf(run));
  ASSIGN_OR_RETURN(const ByStep other_certificates, CertificatesOf(other));
  comparison.certificates = Compare("certificate", certificates, other_certificates, comparison);
  if (comparison.losses == 0)
    return FailedPrecondition(
        "{} and {} have no step in common: compare with a run of the same configuration that has "
        "come as far",
        run, other);
  return comparison;
}

}  // namespace perdure
