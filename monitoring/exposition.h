// Metric families as Prometheus' text format (version 0.0.4). prometheus-cpp's own serializer
// writes 16 digits, which are not all of a double: a loss would not be the loss that was trained.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

namespace perdure {

// Of gauges, counters and histograms; each value reads back as the same double.
std::string ExpositionText(const std::vector<prometheus::MetricFamily>& families);

}  // namespace perdure
