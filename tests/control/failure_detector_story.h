// A failure detector told as a story in virtual time: "2s: node 7 is lost: nothing heard for 2s".
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/control/failure_detector.h"

namespace perdure {

using D = FailureDetector;
using Told = std::vector<std::string>;

inline const absl::Time kStart = absl::UnixEpoch() + absl::Hours(100);
constexpr absl::Duration kNs = absl::Nanoseconds(1);

// A detector and a shell that calls it when it asks for that.
class Story {
 public:
  explicit Story(const D::Options& options = {}) : detector_(options) {}

  // What it says to the event, without its time.
  Told Now(const D::Event& event) {
    D::Effects effects;
    detector_.Step(now_, event, effects);
    Told told;
    for (const D::Effect& effect : effects) told.push_back(InWords(effect));
    return told;
  }
  // Sleeps through the time until then.
  Story& JumpTo(absl::Duration at) {
    now_ = kStart + at;
    return *this;
  }
  // What it says until then, and then. `heard` speak every quarter of a second.
  Told Until(absl::Duration at, const std::vector<NodeId>& heard = {}) {
    Told all;
    const auto step = [&](const D::Event& event) {
      for (const std::string& words : Now(event))
        all.push_back(absl::FormatDuration(now_ - kStart) + ": " + words);
    };
    absl::Time speak = now_ + absl::Milliseconds(250);
    for (;;) {
      const absl::Time next =
          std::min(detector_.NextDeadline(), heard.empty() ? absl::InfiniteFuture() : speak);
      now_ = std::min(next, kStart + at);
      if (now_ == speak) {
        for (const NodeId node : heard) step(D::Heard{node});
        speak += absl::Milliseconds(250);
      }
      step(D::Tick{});
      if (now_ == kStart + at) return all;
    }
  }
  // All of `nodes` have finished `step` steps.
  void Finish(Generation generation, const std::vector<NodeId>& nodes, StepIndex step) {
    for (const NodeId node : nodes)
      EXPECT_THAT(Now(D::StepProgress{generation, node, step, step + 1}), testing::IsEmpty());
  }

  D& detector() { return detector_; }

 private:
  D detector_;
  absl::Time now_ = kStart;
};

// Generation 5 on nodes 0 to 3, rank by rank, after so many steps.
inline D::GenerationFormed FourNodes(StepIndex step = 100) { return {5, {0, 1, 2, 3}, step}; }
inline const std::vector<NodeId> kFour = {0, 1, 2, 3};

}  // namespace perdure
