// All metrics that a run exports, in one table: what is not in it is not exported, and
// docs/metrics.md is made of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace perdure {

enum class MetricKind { kGauge, kCounter, kHistogram };

struct LabelSpec {
  std::string_view name;
  std::string_view values;  // What it can be, and how many there are at most.
};

struct MetricSpec {
  std::string_view group;  // Heading of docs/metrics.md.
  std::string_view name;   // Prometheus' conventions: base units, _total, _ratio, _info.
  MetricKind kind = MetricKind::kGauge;
  std::string_view help;
  std::vector<LabelSpec> labels = {};  // Beside `run`, which all have.
  std::vector<double> buckets = {};    // Of a histogram, ascending, without the infinite one.
};

const std::vector<MetricSpec>& MetricList();
// REQUIRES: it is in the list.
const MetricSpec& FindMetric(std::string_view name);

// docs/metrics.md.
std::string MetricsPage();

}  // namespace perdure
