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

}  // namespace

void JobHealth::OnHealth(int local_rank, int rank, const Json& report) {
  Json record = report;
  record["rank"] = rank;
  record["node"] = node_;
  record["local_rank"] = local_rank;
  hooks_.event("health", record);
  if (const auto why = report.find("no_nvml"); why != report.end() && !told_no_nvml_) {
    told_no_nvml_ = true;
    hooks_.warn(fmt::format("no NVML ({}): errors of GPUs will be known by their effects only",
                            why->get<std::string>()));
  }
  if (const auto facts = report.find("facts"); facts != report.end())
    WarnOfFacts(rank, report, *facts);
  if (report.contains("error")) return;
  Device& device = devices_[local_rank];
  device.name = report.value("device", "a device");
  device.rates = report.value("rates", Json::object());
}

void JobHealth::WarnOfFacts(int rank, const Json& report, const Json& facts) const {
  const std::string device = report.value("device", "its device");
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

std::vector<std::string> JobHealth::Compare(const std::vector<Member>& members) {
  std::vector<std::string> warnings;
  for (const Rate& rate : kRates) {
    std::vector<double> sorted;
    for (const Member& member : members)
      if (const double value = member.rates.value(rate.key, 0.0); value > 0)
        sorted.push_back(value);
    std::sort(sorted.begin(), sorted.end());
    if (sorted.size() < 2) continue;
    for (const Member& member : members) {
      const double own = member.rates.value(rate.key, 0.0);
      // Near the fastest, as most are: no median is needed.
      if (own <= 0 || own >= kSlow * sorted.back()) continue;
      std::vector<double> others = sorted;
      others.erase(std::lower_bound(others.begin(), others.end(), own));
      const double median = Median(others);
      if (own >= kSlow * median) continue;
      warnings.push_back(fmt::format(
          "warning: rank {} (node {}): {}: {} reach {:.1f} {}, {:.0f} % of the others' median "
          "{:.1f}: all ranks wait for the slowest; look at its clocks, temperature and link, or "
          "leave the node out",
          member.rank, member.node, member.device, rate.words, own / rate.unit, rate.unit_words,
          100 * own / median, median / rate.unit));
    }
  }
  return warnings;
}

void JobHealth::OnEvidence(int local_rank, int rank, const Json& evidence) {
  const std::string what = evidence.value("what", "");
  Json record = evidence;
  record["rank"] = rank;
  record["node"] = node_;
  record["local_rank"] = local_rank;
  hooks_.event("evidence", record);
  hooks_.warn(fmt::format("warning: rank {} (node {}): {}", rank, node_, what));
  std::string& last = devices_[local_rank].evidence;
  // The loss of the watch is no news after what caused it.
  if (evidence.value("event", "") == "lost" && !last.empty()) return;
  last = what;
}

std::string JobHealth::EvidenceOf(int local_rank) const {
  const auto found = devices_.find(local_rank);
  return found == devices_.end() || found->second.evidence.empty()
             ? ""
             : fmt::format("\n  last of its device: {}", found->second.evidence);
}

Json JobHealth::Devices() const {
  Json devices = Json::array();
  for (const auto& [local_rank, device] : devices_)
    if (!device.name.empty())
      devices.push_back(
          {{"local_rank", local_rank}, {"device", device.name}, {"rates", device.rates}});
  return devices;
}

}  // namespace perdure
