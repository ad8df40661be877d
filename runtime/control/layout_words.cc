#include "runtime/control/layout_words.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/base/status.h"

namespace perdure {
namespace {

using Numbers = std::vector<int64_t>;

// Sorts, too.
std::string RangesOf(Numbers numbers) {
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return Ranges(numbers);
}

bool IsOne(const Numbers& numbers) {
  return std::all_of(numbers.begin(), numbers.end(),
                     [&](int64_t number) { return number == numbers.front(); });
}

// "1 rank", "2 ranks".
std::string Count(int64_t count, const char* word) {
  return fmt::format("{} {}{}", count, word, count == 1 ? "" : "s");
}

// "rank 7", "ranks 7-9".
std::string Named(const char* word, const Numbers& numbers) {
  return fmt::format("{}{} {}", word, IsOne(numbers) ? "" : "s", RangesOf(numbers));
}

// "node 7 lost with ranks 56-63, slots of node 3 lost with rank 25, slow node 9 left out with rank
// 70; ", or in brief "1 node and 1 slot of others lost, 1 slow node left out, 10 ranks in all; ".
std::string WordsOfLosses(const PlacedLayout& current, const OfferedSlots& offered,
                          std::span<const NodeId> avoided, const SeatPlan& plan, bool brief) {
  if (plan.lost.empty()) return "";
  Numbers nodes, hurt, slow, ranks, ranks_hurt, ranks_slow;
  int32_t index = -1;
  for (const int32_t rank : plan.lost) {
    const NodeId node = current.seats[rank].node;
    if (std::binary_search(avoided.begin(), avoided.end(), node)) {
      slow.push_back(node);
      ranks_slow.push_back(rank);
      continue;
    }
    const int32_t found = offered.FindNode(node, index);
    if (found >= 0) index = found;
    (found < 0 ? nodes : hurt).push_back(node);
    (found < 0 ? ranks : ranks_hurt).push_back(rank);
  }
  if (brief) {
    for (Numbers* of : {&nodes, &slow}) {
      std::sort(of->begin(), of->end());
      of->erase(std::unique(of->begin(), of->end()), of->end());
    }
    const std::string left_out =
        slow.empty()
            ? ""
            : fmt::format(", {} left out", Count(static_cast<int64_t>(slow.size()), "slow node"));
    return fmt::format("{} and {} of others lost{}, {} in all; ",
                       Count(static_cast<int64_t>(nodes.size()), "node"),
                       Count(static_cast<int64_t>(hurt.size()), "slot"), left_out,
                       Count(static_cast<int64_t>(plan.lost.size()), "rank"));
  }
  std::string words;
  if (!nodes.empty())
    words = fmt::format("{} lost with {}", Named("node", nodes), Named("rank", ranks));
  if (!hurt.empty())
    words += fmt::format("{}slots of {} lost with {}", words.empty() ? "" : ", ",
                         Named("node", hurt), Named("rank", ranks_hurt));
  if (!slow.empty())
    words += fmt::format("{}slow {} left out with {}", words.empty() ? "" : ", ",
                         Named("node", slow), Named("rank", ranks_slow));
  return words + "; ";
}

struct Moves {
  Numbers from_drained;  // Nodes that ranks left although they could stay.
  Numbers to;            // Nodes that ranks moved or came to.
  Numbers onto_drained;  // Drained ones among these.
  Numbers from_slow, onto_slow;  // Likewise, of nodes that count as drained because they were slow.
  int64_t ranks = 0;     // That changed their seat.
};

Moves MovesOf(const PlacedLayout& current, const OfferedSlots& offered, const Decision& decision) {
  Moves moves;
  const LayoutShape &shape = decision.shape, &before = current.shape;
  int32_t index = -1;
  for (int32_t p = 0; p < shape.pipeline; ++p)
    for (int32_t d = 0; d < shape.data; ++d)
      for (int32_t t = 0; t < shape.tensor; ++t) {
        const Seat& seat = decision.seats[shape.Rank(p, d, t)];
        const int32_t source = decision.source[d];
        const Seat* was = source < 0 ? nullptr : &current.seats[before.Rank(p, source, t)];
        if (was != nullptr && *was == seat) continue;
        moves.ranks += was != nullptr;
        moves.to.push_back(seat.node);
        index = offered.FindNode(seat.node, index);
        const OfferedSlots::Node& node = offered.nodes()[index];
        if (node.drained) (node.avoided ? moves.onto_slow : moves.onto_drained).push_back(node.id);
        const int32_t old = was == nullptr ? -1 : offered.FindNode(was->node, index);
        if (old >= 0 && offered.nodes()[old].drained)
          (offered.nodes()[old].avoided ? moves.from_slow : moves.from_drained)
              .push_back(was->node);
      }
  return moves;
}

std::string RanksMove(const Moves& moves) {
  return Count(moves.ranks, "rank") + (moves.ranks == 1 ? " moves" : " move");
}

// Replicas of the last layout that are no more.
Numbers GivenUp(const PlacedLayout& current, const Decision& decision) {
  std::vector<bool> kept(static_cast<size_t>(current.shape.data), false);
  for (const int32_t source : decision.source)
    if (source >= 0) kept[source] = true;
  Numbers given_up;
  for (size_t d = 0; d < kept.size(); ++d)
    if (!kept[d]) given_up.push_back(static_cast<int64_t>(d));
  return given_up;
}

std::string WordsOfFewer(const LayoutRule& rule, const PlacedLayout& current, const SeatPlan& plan,
                         const Decision& decision, const Moves& moves) {
  const Numbers given_up = GivenUp(current, decision);
  const std::string data = fmt::format("data {} -> {}", current.shape.data, decision.shape.data);
  if (decision.reason == LayoutReason::kMoreThanWanted)
    return fmt::format(
        "{}, because {} {}; what is left of {} becomes spare", data,
        rule.data > 0 && rule.data < rule.leaves ? "[layout] data is" : "the leaves of a step are",
        decision.shape.data, Named("replica", given_up));
  if (decision.action == LayoutAction::kRebuild)
    return fmt::format("{}: {} of {} repaired, {} to {}", data, plan.repaired,
                       Count(plan.broken, "broken replica"), RanksMove(moves),
                       Named("node", moves.to));
  int64_t left = 0, lost = 0;
  for (const int32_t rank : plan.lost)
    lost += std::binary_search(given_up.begin(), given_up.end(), current.shape.ReplicaOf(rank));
  left = static_cast<int64_t>(given_up.size()) * current.shape.replica_ranks() - lost;
  return fmt::format("too few spares: {}, ranks of {} that are left ({}) become spares", data,
                     Named("replica", given_up), left);
}

std::string WordsOfChange(const LayoutRule& rule, const PlacedLayout& current,
                          const OfferedSlots& offered, std::span<const NodeId> avoided,
                          const SeatPlan& plan, const Decision& decision) {
  const LayoutShape& shape = decision.shape;
  const Moves moves = MovesOf(current, offered, decision);
  std::string words;
  switch (decision.action) {
    case LayoutAction::kStart:
      words += fmt::format("data {} (tensor {}, pipeline {}) on {}, {} slots are spare", shape.data,
                           shape.tensor, shape.pipeline, Named("node", moves.to),
                           decision.spares.size());
      break;
    case LayoutAction::kGrow:
      words += fmt::format("data {} -> {} on {}, {} slots stay spare", current.shape.data,
                           shape.data, Named("node", moves.to), decision.spares.size());
      break;
    case LayoutAction::kPromoteSpare:
    case LayoutAction::kRebuild:
      if (shape.data == current.shape.data) {
        words += fmt::format(
            "data {} stays, {} to {} of {}", shape.data, RanksMove(moves),
            decision.action == LayoutAction::kRebuild ? "spare and left-over slots" : "spare slots",
            Named("node", moves.to));
        break;
      }
      [[fallthrough]];
    default:
      words += WordsOfFewer(rule, current, plan, decision, moves);
  }
  const auto add = [&words](const char* what, const Numbers& nodes) {
    if (!nodes.empty()) words += fmt::format("; {}: {}", what, Named("node", nodes));
  };
  add("drained", moves.from_drained);
  add("slow", moves.from_slow);
  add("used although drained, else fewer replicas fit", moves.onto_drained);
  add("used although slow, else fewer replicas fit", moves.onto_slow);
  const std::string losses = WordsOfLosses(current, offered, avoided, plan, false);
  if (losses.size() + words.size() <= kWordsMax) return losses + words;
  return WordsOfLosses(current, offered, avoided, plan, true) + words;
}

}  // namespace

std::string Ranges(std::span<const int64_t> numbers) {
  constexpr int kRangesMax = 3;
  std::string text;
  size_t i = 0;
  for (int range = 0; i < numbers.size() && range < kRangesMax; ++range) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (last > i) text += fmt::format("-{}", numbers[last]);
    i = last + 1;
  }
  if (i < numbers.size()) text += fmt::format(" and {} more", numbers.size() - i);
  return text;
}

std::string Clip(std::string text) {
  constexpr std::string_view kCut = "...";
  if (text.size() > kWordsMax) text.replace(kWordsMax - kCut.size(), std::string::npos, kCut);
  return text;
}

std::string WordsOfLayout(const LayoutRule& rule, const PlacedLayout& current,
                          const OfferedSlots& offered, std::span<const NodeId> avoided,
                          const SeatPlan& plan, const Decision& decision) {
  if (decision.action != LayoutAction::kKeep)
    return Clip(WordsOfChange(rule, current, offered, avoided, plan, decision));
  const std::string all =
      fmt::format("data {} stays on {} ranks, {} slots are spare", decision.shape.data,
                  decision.shape.ranks(), decision.spares.size());
  if (decision.reason == LayoutReason::kNothingChanged) return Clip(all);
  return Clip(
      fmt::format("{}; room for more replicas is used when the nodes have been the same for {}",
                  all, absl::FormatDuration(rule.grow_after)));
}

}  // namespace perdure
