#include "runtime/train/flip.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/check.h"

namespace perdure {
namespace {

constexpr std::string_view kNames[] = {"gradient", "received",   "sum", "parameter",
                                       "exp_avg",  "exp_avg_sq", "copy"};
static_assert(std::size(kNames) == kFlipPlaces);

}  // namespace

std::string_view NameOf(FlipPlace place) {
  PERDURE_CHECK(static_cast<int>(place) < kFlipPlaces);
  return kNames[static_cast<size_t>(place)];
}

std::optional<FlipPlace> FlipPlaceOf(std::string_view name) {
  const auto* at = std::find(std::begin(kNames), std::end(kNames), name);
  if (at == std::end(kNames)) return std::nullopt;
  return static_cast<FlipPlace>(at - std::begin(kNames));
}

}  // namespace perdure
