// What a machine did in a story of virtual time: its effects, each with when it came.
#pragma once

#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"

namespace perdure {

// Of `Machine`, whose Effect is a variant with a Send.
template <typename Machine>
class EffectsDone {
 public:
  // Effects of one kind, in order.
  template <typename E>
  std::vector<E> All() const {
    std::vector<E> all;
    for (const auto& [when, effect] : done_)
      if (const auto* e = std::get_if<E>(&effect)) all.push_back(*e);
    return all;
  }
  // How long after `since` the effects of one kind came.
  template <typename E>
  std::vector<absl::Duration> When(absl::Time since) const {
    std::vector<absl::Duration> all;
    for (const auto& [when, effect] : done_)
      if (std::holds_alternative<E>(effect)) all.push_back(when - since);
    return all;
  }
  bool DoesNothing() const { return done_.empty(); }

 protected:
  // Of a message of one kind, and to whom `to` says.
  template <typename M>
  std::vector<absl::Duration> WhenSentTo(absl::Time since, const auto& to) const {
    std::vector<absl::Duration> all;
    for (const auto& [when, effect] : done_)
      if (const auto* send = std::get_if<typename Machine::Send>(&effect))
        if (std::holds_alternative<M>(send->message) && to(send->to)) all.push_back(when - since);
    return all;
  }

  std::vector<std::pair<absl::Time, typename Machine::Effect>> done_;
};

}  // namespace perdure
