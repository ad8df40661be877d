#include "launch/step_lines.h"

#include <unistd.h>

#include <cstdio>

#include "runtime/base/status.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

constexpr auto kEvery = std::chrono::milliseconds(100);
constexpr auto kPlainEvery = std::chrono::milliseconds(2000);

double TokensPerSecond(const StepReport& report) {
  return report.seconds > 0 ? static_cast<double>(report.step_tokens) / report.seconds : 0;
}

}  // namespace

LossRow LossRowOf(const RunConfig& config, uint64_t generation, int64_t ranks,
                  const StepReport& report) {
  return {.step = report.step,
          .samples = report.samples,
          .tokens = report.tokens,
          .loss = report.loss,
          .grad_norm = report.grad_norm,
          .learning_rate = report.rate,
          .batch = report.batch,
          .context = report.context,
          .step_seconds = report.seconds,
          .tokens_per_second = TokensPerSecond(report),
          .generation = generation,
          .ranks = ranks,
          .phase = config.phases[static_cast<size_t>(report.phase)].name};
}

StepLine::StepLine(const RunConfig& config, bool quiet)
    : config_(config),
      steps_(StepSchedule(config).steps()),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) != 0) {}

void StepLine::Show(const StepReport& r) {
  const auto now = std::chrono::steady_clock::now();
  const bool last = r.step == steps_;
  if (quiet_ || (!last && now - shown_ < (terminal_ ? kEvery : kPlainEvery))) return;
  shown_ = now;
  const std::string line = fmt::format(
      "step {:>6}/{}  {}  loss {:.4f}  grad norm {:.3f}  rate {:.2e}  batch {}  {:.0f} tokens/s",
      r.step, steps_, config_.phases[static_cast<size_t>(r.phase)].name, r.loss, r.grad_norm,
      r.rate, r.batch, TokensPerSecond(r));
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
    open_ = !last;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
}

void StepLine::Say(const std::string& line, bool others) {
  std::fprintf(stderr, "%s%s\n", open_ || (others && terminal_) ? "\r\033[K" : "", line.c_str());
  open_ = false;
}

void StepLine::Close() {
  if (open_) std::fputs("\n", stderr);
  open_ = false;
}

}  // namespace perdure
