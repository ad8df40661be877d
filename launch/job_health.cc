#include "launch/job_health.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace perdure {
namespace {

using Json = nlohmann::json;

// Healthy devices of one kind differ by a few per cent.
constexpr double kSlow = 0.7;

struct Rate {
  const char* key;
  const char* words;
  double unit;
  const char* unit_words;
};
constexpr Rate kRates[] = {
    {"matmul_bf16", "bf16 products", 1e12, "TFLOP/s"},
    {"matmul_fp32", "fp32 products", 1e12, "TFLOP/s"},
    {"memory", "copies in its memory", 1e9, "GB/s"},
    {"upload", "copies from the host", 1e9, "GB/s"},
    {"download", "copies to the host", 1e9, "GB/s"},
};

// REQUIRES: sorted, not empty.
double Median(const std::vector<double>& sorted) {
  const size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// The frame as a record.
Json Record(int rank, int node, Json frame) {
  frame.erase("type");
  frame["rank"] = rank;
  frame["node"] = node;
  return frame;
}

}  // namespace

void JobHealth::OnHealth(int rank, int node, const Json& frame) {
  hooks_.event("health", Record(rank, node, frame));
  if (const auto why = frame.find("no_nvml"); why != frame.end() && !told_no_nvml_) {
    told_no_nvml_ = true;
    hooks_.warn(fmt::format("no NVML ({}): errors of GPUs will be known by their effects only",
                            why->get<std::string>()));
  }
  if (const auto facts = frame.find("facts"); facts != frame.end())
    WarnOfFacts(rank, frame, *facts);
  if (frame.contains("error")) return;
  members_[rank] = {.node = node,
                    .device = frame.at("device").get<std::string>(),
                    .rates = frame.value("rates", Json::object())};
  if (static_cast<int>(members_.size()) == ranks_) Compare();
}

void JobHealth::WarnOfFacts(int rank, const Json& frame, const Json& facts) const {
  const std::string device = frame.at("device").get<std::string>();
  if (facts.value("remap_pending", 0) != 0 || facts.value("retired_pages_pending", 0) != 0)
    hooks_.warn(
        fmt::format("warning: rank {}: {} has memory that waits to be remapped: reset it "
                    "when the node is free",
                    rank, device));
  if (facts.value("remap_failed", 0) != 0)
    hooks_.warn(
        fmt::format("warning: rank {}: {} could not remap a row of its memory: have it "
                    "replaced",
                    rank, device));
  if (const auto errors = facts.value("ecc_uncorrected", uint64_t{0}); errors != 0)
    hooks_.warn(
        fmt::format("warning: rank {}: {} has had {} uncorrected ECC errors since its "
                    "driver was loaded: reset it",
                    rank, device, errors));
}

void JobHealth::Compare() const {
  for (const Rate& rate : kRates) {
    std::vector<double> sorted;
    for (const auto& [_, member] : members_)
      if (const double value = member.rates.value(rate.key, 0.0); value > 0)
        sorted.push_back(value);
    std::sort(sorted.begin(), sorted.end());
    if (sorted.size() < 2) continue;
    for (const auto& [rank, member] : members_) {
      const double own = member.rates.value(rate.key, 0.0);
      // Near the fastest, as most are: no median is needed.
      if (own <= 0 || own >= kSlow * sorted.back()) continue;
      std::vector<double> others = sorted;
      others.erase(std::lower_bound(others.begin(), others.end(), own));
      const double median = Median(others);
      if (own >= kSlow * median) continue;
      hooks_.warn(fmt::format(
          "warning: rank {} (node {}): {}: {} reach {:.1f} {}, {:.0f} % of the others' median "
          "{:.1f}: all ranks wait for the slowest; look at its clocks, temperature and link, or "
          "leave the node out",
          rank, member.node, member.device, rate.words, own / rate.unit, rate.unit_words,
          100 * own / median, median / rate.unit));
    }
  }
}

void JobHealth::OnEvidence(int rank, int node, const Json& frame) {
  const std::string what = frame.at("what").get<std::string>();
  hooks_.event("evidence", Record(rank, node, frame));
  hooks_.warn(fmt::format("warning: rank {} (node {}): {}", rank, node, what));
  // The loss of the watch is no news after what caused it.
  if (frame.value("event", "") == "lost" && evidence_.contains(rank)) return;
  evidence_[rank] = what;
}

std::string JobHealth::EvidenceOf(int rank) const {
  const auto found = evidence_.find(rank);
  return found == evidence_.end() ? "" : fmt::format("\n  last of its device: {}", found->second);
}

}  // namespace perdure
