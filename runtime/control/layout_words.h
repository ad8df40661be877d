// The reasons of the layout planner in words: one line, with numbers, bounded however many nodes
// were lost. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/control/layout_planner.h"
#include "runtime/control/offered_slots.h"
#include "runtime/control/seat_assignment.h"

namespace perdure {

// "3", "0-2, 7", "0-2, 7, 9 and 480 more". `numbers` ascending.
std::string Ranges(std::span<const int64_t> numbers);

// `text`, cut to kWordsMax bytes.
std::string Clip(std::string text);

// Why the decision's layout follows that of `current` (which is empty for kStart). `avoided`: nodes
// that were not lost but are slow; sorted.
std::string WordsOfLayout(const LayoutRule& rule, const PlacedLayout& current,
                          const OfferedSlots& offered, std::span<const NodeId> avoided,
                          const SeatPlan& plan, const Decision& decision);

}  // namespace perdure
