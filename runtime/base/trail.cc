#include "runtime/base/trail.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>

#include "runtime/base/status.h"

namespace perdure {

void Trail::Took(const StepNumbers& step) {
  if (recent.size() == kRecentStepsMax) recent.erase(recent.begin());
  recent.push_back(step);
}

std::vector<std::string> HexOf(const std::vector<StepNumbers>& recent) {
  std::vector<std::string> hex;
  for (const StepNumbers& step : recent)
    hex.push_back(fmt::format("{:016x}{:016x}", std::bit_cast<uint64_t>(step.loss),
                              std::bit_cast<uint64_t>(step.grad_norm)));
  return hex;
}

absl::StatusOr<std::vector<StepNumbers>> RecentOf(const std::vector<std::string>& hex) {
  std::vector<StepNumbers> recent;
  for (const std::string& text : hex) {
    uint64_t loss = 0, norm = 0;
    const auto parse = [&text](size_t begin, uint64_t* bits) {
      const char* const end = text.data() + begin + 16;
      const auto parsed = std::from_chars(text.data() + begin, end, *bits, 16);
      return parsed.ec == std::errc() && parsed.ptr == end;
    };
    if (text.size() != 32 || !parse(0, &loss) || !parse(16, &norm))
      return DataLoss("entry {} is not a loss and a gradient norm of 16 hex digits each",
                      recent.size());
    recent.push_back(
        {.loss = std::bit_cast<double>(loss), .grad_norm = std::bit_cast<double>(norm)});
  }
  RETURN_IF_ERROR(CheckRecent(recent));
  return recent;
}

absl::Status CheckRecent(const std::vector<StepNumbers>& recent) {
  if (recent.size() > kRecentStepsMax)
    return DataLoss("{} entries; at most {} expected", recent.size(), kRecentStepsMax);
  for (size_t i = 0; i < recent.size(); ++i)
    if (!std::isfinite(recent[i].loss) || !std::isfinite(recent[i].grad_norm))
      return DataLoss("entry {} is loss {} and gradient norm {}: not both finite", i,
                      recent[i].loss, recent[i].grad_norm);
  return absl::OkStatus();
}

}  // namespace perdure
