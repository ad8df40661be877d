// Prometheus' text format, as it documents it.
#include "monitoring/exposition.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

ClientMetric Gauge(double value, std::vector<ClientMetric::Label> labels = {}) {
  ClientMetric metric;
  metric.gauge.value = value;
  metric.label = std::move(labels);
  return metric;
}

TEST(Exposition, GaugesAndCounters) {
  ClientMetric counted;
  counted.counter.value = 3131736326144.0;
  EXPECT_EQ(ExpositionText({{.name = "a_ratio",
                             .help = "Two\nlines, a \\ and a \"",
                             .type = MetricType::Gauge,
                             .metric = {Gauge(0.5, {{"run", "x\"y\\z\n"}, {"b", ""}}), Gauge(1)}},
                            {.name = "none", .help = "", .type = MetricType::Gauge, .metric = {}},
                            {.name = "n_total",
                             .help = "Counted",
                             .type = MetricType::Counter,
                             .metric = {counted}}}),
            "# HELP a_ratio Two\\nlines, a \\\\ and a \"\n"
            "# TYPE a_ratio gauge\n"
            "a_ratio{run=\"x\\\"y\\\\z\\n\",b=\"\"} 0.5\n"
            "a_ratio 1\n"
            "# HELP n_total Counted\n"
            "# TYPE n_total counter\n"
            "n_total 3131736326144\n");
}

TEST(Exposition, Histograms) {
  ClientMetric metric;
  metric.label = {{"run", "x"}};
  metric.histogram = {.sample_count = 5,
                      .sample_sum = 2.25,
                      .bucket = {{2, 0.1}, {5, std::numeric_limits<double>::infinity()}}};
  EXPECT_EQ(
      ExpositionText(
          {{.name = "t_seconds", .help = "h", .type = MetricType::Histogram, .metric = {metric}}}),
      "# HELP t_seconds h\n# TYPE t_seconds histogram\n"
      "t_seconds_bucket{run=\"x\",le=\"0.1\"} 2\n"
      "t_seconds_bucket{run=\"x\",le=\"+Inf\"} 5\n"
      "t_seconds_sum{run=\"x\"} 2.25\n"
      "t_seconds_count{run=\"x\"} 5\n");
}

// Every double comes back as it was.
TEST(Exposition, ValuesAreExact) {
  uint64_t bits = 0x9e3779b97f4a7c15;
  for (int i = 0; i < 20000; ++i) {
    bits = bits * 6364136223846793005U + 1442695040888963407U;
    double value = 0;
    static_assert(sizeof value == sizeof bits);
    std::memcpy(&value, &bits, sizeof value);
    const std::string text = ExpositionText(
        {{.name = "v", .help = "h", .type = MetricType::Gauge, .metric = {Gauge(value)}}});
    const std::string number = text.substr(text.rfind(' ') + 1);
    if (std::isnan(value))
      EXPECT_EQ(number, "NaN\n");
    else
      EXPECT_EQ(std::strtod(number.c_str(), nullptr), value) << number;
  }
  EXPECT_EQ(ExpositionText({{.name = "v",
                             .help = "h",
                             .type = MetricType::Gauge,
                             .metric = {Gauge(-std::numeric_limits<double>::infinity())}}}),
            "# HELP v h\n# TYPE v gauge\nv -Inf\n");
}

}  // namespace
}  // namespace perdure
