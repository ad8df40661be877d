// The network of the world: delay, loss, doubling, reordering, one-way holes.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/control/message_codec.h"
#include "tests/sim/world.h"

namespace perdure::sim {

bool World::Cut(Index from, Index to) const {
  if (from == to) return false;
  if (agents_[from].isolated > now_ || agents_[to].isolated > now_) return true;
  return std::any_of(cuts_.begin(), cuts_.end(), [&](const CutLink& cut) {
    return cut.until > now_ && cut.from == from && cut.to == to;
  });
}

void World::Send(Index from, const Endpoint& to, const ControlMessage& message) {
  const Index target = IndexOf(to);
  if (target >= agents_.size()) return;
  encoded_.clear();
  EncodeMessage(message, encoded_);
  ++outcome_.messages;
  outcome_.message_bytes += encoded_.size();
  if (from != target && (Cut(from, target) || network_.PerMille(scenario_.loss))) return;
  const int copies = from != target && network_.PerMille(scenario_.doubled) ? 2 : 1;
  for (int copy = 0; copy < copies; ++copy) {
    Nanos delay =
        from == target ? kMs / 50 : network_.Between(scenario_.delay_min, scenario_.delay_max);
    if (slow_network_ > now_ && from != target) delay *= network_.Between(1, 100);
    At(now_ + delay, {.what = What::kDeliver, .agent = target, .from = from, .bytes = encoded_});
  }
}

void World::Deliver(Happening& h) {
  Agent& agent = Of(h.agent);
  if (!agent.alive) return;
  absl::StatusOr<ControlMessage> message = DecodeMessage(h.bytes);
  if (!message.ok()) {
    Violate("a message cannot be read: " + std::string(message.status().message()));
    return;
  }
  for (char c : h.bytes)
    outcome_.digest = outcome_.digest * 1099511628211u + static_cast<uint8_t>(c);
  const Endpoint from{Of(h.from).job, Of(h.from).node};
  if (ForCoordinator(*message))
    StepLead(h.agent, Coordinator::Received{from, *std::move(message)});
  else
    StepMember(h.agent, Member::Received{from, *std::move(message)});
}

// The kernel of a living machine says so when a process there has gone.
void World::CloseConnectionsOf(Index index) {
  const Agent& gone = Of(index);
  for (Index i = 0; i < agents_.size(); ++i)
    if (i != index && agents_[i].alive && agents_[i].job == gone.job && !Cut(index, i))
      At(now_ + network_.Between(kMs, 20 * kMs),
         {.what = What::kClosed, .agent = i, .from = index});
}

}  // namespace perdure::sim
