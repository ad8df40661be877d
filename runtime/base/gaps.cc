#include "runtime/base/gaps.h"

#include <algorithm>
#include <limits>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kNumbers = 4;  // Of a gap.
// Of all gaps: sums of it with counts of samples do not overflow.
constexpr int64_t kSamplesMax = std::numeric_limits<int64_t>::max() / 4;

}  // namespace

absl::Status CheckGaps(std::span<const Gap> gaps) {
  if (gaps.size() > kGapsMax)
    return DataLoss("{} gaps; a run has {} at most", gaps.size(), kGapsMax);
  int64_t samples = 0, first = 1;
  for (size_t i = 0; i < gaps.size(); ++i) {
    const Gap& gap = gaps[i];
    if (gap.first_step < first || gap.bad_step < gap.first_step || gap.samples < 1 ||
        gap.samples > kSamplesMax - samples || gap.number < 1)
      return DataLoss(
          "gap {} is of {} samples before step {}, for step {}, the {}. in a row: no run has it "
          "behind a first step of {}",
          i, gap.samples, gap.first_step, gap.bad_step, gap.number, first);
    first = gap.first_step;
    samples += gap.samples;
  }
  return absl::OkStatus();
}

Gaps GapsBehind(std::span<const Gap> gaps, int64_t step) {
  Gaps behind(gaps.begin(), gaps.end());
  std::erase_if(behind, [step](const Gap& gap) { return gap.first_step > step; });
  return behind;
}

bool SameLine(std::span<const Gap> a, std::span<const Gap> b, int64_t step) {
  return GapsBehind(a, step) == GapsBehind(b, step);
}

int64_t SamplesLeftOut(std::span<const Gap> gaps, int64_t first, int64_t last) {
  int64_t samples = 0;
  for (const Gap& gap : gaps)
    if (gap.first_step >= first && gap.first_step <= last) samples += gap.samples;
  return samples;
}

Gaps WithGap(std::span<const Gap> gaps, const Gap& gap) {
  Gaps with = GapsBehind(gaps, gap.first_step);
  with.push_back(gap);
  return with;
}

std::vector<int64_t> NumbersOf(std::span<const Gap> gaps) {
  std::vector<int64_t> numbers;
  for (const Gap& gap : gaps)
    numbers.insert(numbers.end(), {gap.first_step, gap.samples, gap.bad_step, gap.number});
  return numbers;
}

absl::StatusOr<Gaps> GapsOf(std::span<const int64_t> numbers) {
  if (numbers.size() % kNumbers != 0)
    return DataLoss("{} numbers are no gaps, which have {} each", numbers.size(), kNumbers);
  Gaps gaps;
  for (size_t i = 0; i < numbers.size(); i += kNumbers)
    gaps.push_back({.first_step = numbers[i],
                    .samples = numbers[i + 1],
                    .bad_step = numbers[i + 2],
                    .number = numbers[i + 3]});
  RETURN_IF_ERROR(CheckGaps(gaps));
  return gaps;
}

}  // namespace perdure
