#include "monitoring/exposition.h"

#include <cmath>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// In help texts and label values, as the format has it.
std::string Escaped(const std::string& text, bool quotes) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\n')
      escaped += "\\n";
    else if (c == '\\' || (c == '"' && quotes))
      escaped += {'\\', c};
    else
      escaped += c;
  }
  return escaped;
}

std::string Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);  // The shortest that reads back as the same.
}

// {a="1",b="2"}, with `more` behind.
std::string Labels(const ClientMetric& metric, const std::string& more = "") {
  std::string text;
  for (const ClientMetric::Label& label : metric.label)
    text +=
        fmt::format("{}{}=\"{}\"", text.empty() ? "" : ",", label.name, Escaped(label.value, true));
  if (!more.empty()) text += (text.empty() ? "" : ",") + more;
  return text.empty() ? "" : "{" + text + "}";
}

void AppendHistogram(const std::string& name, const ClientMetric& metric, std::string& text) {
  for (const ClientMetric::Bucket& bucket : metric.histogram.bucket)
    text += fmt::format("{}_bucket{} {}\n", name,
                        Labels(metric, fmt::format("le=\"{}\"", Number(bucket.upper_bound))),
                        bucket.cumulative_count);
  text += fmt::format("{}_sum{} {}\n", name, Labels(metric), Number(metric.histogram.sample_sum));
  text += fmt::format("{}_count{} {}\n", name, Labels(metric), metric.histogram.sample_count);
}

}  // namespace

std::string ExpositionText(const std::vector<MetricFamily>& families) {
  std::string text;
  for (const MetricFamily& family : families) {
    PERDURE_CHECK(family.type == MetricType::Gauge || family.type == MetricType::Counter ||
                  family.type == MetricType::Histogram);
    if (family.metric.empty()) continue;
    const char* type = family.type == MetricType::Gauge     ? "gauge"
                       : family.type == MetricType::Counter ? "counter"
                                                            : "histogram";
    text += fmt::format("# HELP {} {}\n# TYPE {} {}\n", family.name, Escaped(family.help, false),
                        family.name, type);
    for (const ClientMetric& metric : family.metric) {
      if (family.type == MetricType::Histogram)
        AppendHistogram(family.name, metric, text);
      else
        text += fmt::format(
            "{}{} {}\n", family.name, Labels(metric),
            Number(family.type == MetricType::Gauge ? metric.gauge.value : metric.counter.value));
    }
  }
  return text;
}

}  // namespace perdure
