#include <algorithm>
#include <vector>

#include "runtime/base/status.h"
#include "tests/sim/chain_world.h"

namespace perdure::sim {
namespace {

// "12d 09:41" of the chain; day 0 begins at midnight before its first job was queued.
std::string At(absl::Time time) {
  const int64_t minutes = absl::ToInt64Minutes(time - absl::UnixEpoch());
  return fmt::format("{:3}d {:02}:{:02}", minutes / 1440, minutes / 60 % 24, minutes % 60);
}

std::string Grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = std::ssize(text) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), ",");
  return text;
}

absl::Duration MedianUnused(const ChainOutcome& outcome) {
  std::vector<absl::Duration> unused;
  for (const ChainRow& row : outcome.rows)
    if (row.at_its_end) unused.push_back(row.unused);
  if (unused.empty()) return absl::ZeroDuration();
  std::sort(unused.begin(), unused.end());
  return unused[unused.size() / 2];
}

absl::Duration MostUnused(const ChainOutcome& outcome) {
  absl::Duration most;
  for (const ChainRow& row : outcome.rows)
    if (row.at_its_end) most = std::max(most, row.unused);
  return most;
}

}  // namespace

GpuHours ChainOutcome::hours() const {
  GpuHours hours;
  for (const ChainRow& row : rows) hours += row.hours;
  return hours;
}

absl::Duration ChainOutcome::waited() const {
  absl::Duration waited;
  for (const ChainRow& row : rows) waited += row.began - row.eligible;
  return waited;
}

std::string Timeline(const ChainOutcome& outcome) {
  std::string text = fmt::format("{:>5}  {:10}  {:>8}  {:10}  {:>5}  {:>17}  {:>8}  {:>9}  {}\n",
                                 "job", "could run", "waited", "began", "nodes", "steps", "unused",
                                 "lost", "how it left; what happened in it");
  for (const ChainRow& row : outcome.rows) {
    const std::string number =
        row.restarts == 0 ? std::to_string(row.job) : fmt::format("{}.{}", row.job, row.restarts);
    text += fmt::format(
        "{:>5}  {:10}  {:6.1f} h  {:10}  {:>5}  {:>8}-{:<8}  {:>6} s  {:>5} GPUh  {}{}{}\n", number,
        At(row.eligible), absl::ToDoubleHours(row.began - row.eligible), At(row.began), row.nodes,
        row.first_step, row.last_step, absl::ToInt64Seconds(row.unused),
        Grouped(std::llround(row.hours.lost())), row.end, row.events.empty() ? "" : "; ",
        row.events);
  }
  return text;
}

std::string Summary(const ChainOutcome& chain, const ChainOutcome& script) {
  std::string text = fmt::format("{:<34} {:>12} {:>12} {:>10}\n", "", "perdure", "script", "ratio");
  const auto row = [&](const std::string& name, double a, double b, int digits) {
    const std::string ratio = a != 0 && b != 0 ? fmt::format("{:.2f}", b / a) : "";
    const auto number = [&](double value) {
      return digits == 0 ? Grouped(std::llround(value)) : fmt::format("{:.{}f}", value, digits);
    };
    text += fmt::format("{:<34} {:>12} {:>12} {:>10}\n", name, number(a), number(b), ratio);
  };
  const GpuHours a = chain.hours(), b = script.hours();
  const auto days = [](absl::Duration time) { return absl::ToDoubleHours(time) / 24; };
  row("starts of jobs", static_cast<double>(chain.rows.size()),
      static_cast<double>(script.rows.size()), 0);
  row("failures met", chain.failures, script.failures, 0);
  row("days", days(chain.ends - chain.begins), days(script.ends - script.begins), 1);
  row("  of them between jobs", days(chain.waited()), days(script.waited()), 1);
  row("GPU-hours held", a.held(), b.held(), 0);
  row("  productive", a.productive, b.productive, 0);
  row("  lost", a.lost(), b.lost(), 0);
  row("    steps taken again", a.redone, b.redone, 0);
  row("    starting", a.starting, b.starting, 0);
  row("    recovering", a.recovering, b.recovering, 0);
  row("    saving", a.saving, b.saving, 0);
  row("    leaving", a.leaving, b.leaving, 0);
  row("    spares, shrunk layouts", a.idle, b.idle, 0);
  row("goodput, %", 100 * a.productive / a.held(), 100 * b.productive / b.held(), 2);
  row("unused by a job, median s", absl::ToDoubleSeconds(MedianUnused(chain)),
      absl::ToDoubleSeconds(MedianUnused(script)), 0);
  row("unused by a job, most s", absl::ToDoubleSeconds(MostUnused(chain)),
      absl::ToDoubleSeconds(MostUnused(script)), 0);
  row("ended by their limit", chain.by_limit, script.by_limit, 0);
  row("times back to a checkpoint", chain.from_checkpoint, script.from_checkpoint, 0);
  return text;
}

}  // namespace perdure::sim
