// Every run of events of three ranks and two files, with a failure at every place and with every
// event that does not belong, against a model made of what is owed.
#include "runtime/control/checkpoint_commit.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

namespace perdure {
namespace {

using Commit = CheckpointCommit;
using Event = Commit::Event;

constexpr int kRanks = 3;
constexpr int kFiles = 2;

enum class Kind { kFrozen, kMeasured, kWritten, kJoined, kVoted, kPublished };
using Owed = std::pair<Kind, int>;

std::string Name(const Commit::Effect& effect) {
  if (std::holds_alternative<Commit::Measure>(effect)) return "measure";
  if (std::holds_alternative<Commit::Join>(effect)) return "join";
  if (const auto* verify = std::get_if<Commit::Verify>(&effect))
    return "verify " + std::to_string(verify->file) + " by " + std::to_string(verify->rank);
  if (std::holds_alternative<Commit::Publish>(effect)) return "publish";
  if (const auto* write = std::get_if<Commit::Write>(&effect))
    return "write " + std::to_string(write->attempt);
  return std::get<Commit::Settle>(effect).committed ? "committed" : "given up";
}

std::vector<std::string> Names(const Commit::Effects& effects) {
  std::vector<std::string> names;
  for (const Commit::Effect& effect : effects) names.push_back(Name(effect));
  return names;
}

// What is still to come, whether something of it failed, which attempt it is.
struct Model {
  int attempts_max = 2;
  std::set<Owed> owed;
  bool failed = false;
  int attempt = 0;

  bool idle() const { return owed.empty(); }
  void OweRanks(Kind kind) {
    for (int rank = 0; rank < kRanks; ++rank) owed.insert({kind, rank});
  }
  std::vector<std::string> OweWrites() {
    failed = false;
    OweRanks(Kind::kWritten);
    return {"write " + std::to_string(++attempt)};
  }
  std::vector<std::string> GiveUp() {
    owed.clear();
    if (attempt < attempts_max) return OweWrites();
    attempt = 0;
    return {"given up"};
  }
  // False: does not belong.
  bool Take(const Owed& what, bool ok, std::vector<std::string>& effects) {
    if (what.first == Kind::kFrozen && idle() && what.second >= 0 && what.second < kRanks)
      OweRanks(Kind::kFrozen);
    if (owed.erase(what) == 0) return false;
    failed |= !ok;
    if (!owed.empty()) return true;
    if (what.first == Kind::kFrozen) {
      owed.insert({Kind::kMeasured, 0});
      effects = {"measure"};
    } else if (what.first == Kind::kMeasured) {
      failed = false;
      effects = ok ? OweWrites() : std::vector<std::string>{"no room"};
    } else if (failed) {
      effects = GiveUp();
    } else if (what.first == Kind::kWritten) {
      owed.insert({Kind::kJoined, 0});
      effects = {"join"};
    } else if (what.first == Kind::kJoined) {
      for (int file = 0; file < kFiles; ++file) owed.insert({Kind::kVoted, file});
      effects = {"verify 0 by 2", "verify 1 by 0"};
    } else if (what.first == Kind::kVoted) {
      owed.insert({Kind::kPublished, 0});
      effects = {"publish"};
    } else {
      attempt = 0;
      effects = {"committed"};
    }
    return true;
  }
};

struct Choice {
  Event event;
  Owed what;
  bool ok;
};

// All that could happen, and some that could not.
std::vector<Choice> Choices() {
  std::vector<Choice> choices;
  for (const bool ok : {true, false}) {
    for (int rank = -1; rank <= kRanks; ++rank)
      choices.push_back({Commit::Written{rank, ok}, {Kind::kWritten, rank}, ok});
    for (int file = -1; file <= kFiles; ++file)
      choices.push_back({Commit::Voted{file, ok}, {Kind::kVoted, file}, ok});
    choices.push_back({Commit::Joined{{2, 0}, ok}, {Kind::kJoined, 0}, ok});
    choices.push_back({Commit::Published{ok}, {Kind::kPublished, 0}, ok});
    choices.push_back({Commit::Measured{ok}, {Kind::kMeasured, 0}, ok});
  }
  for (int rank = -1; rank <= kRanks; ++rank)
    choices.push_back({Commit::Frozen{rank}, {Kind::kFrozen, rank}, true});
  choices.push_back({Commit::Joined{{}, true}, {Kind::kJoined, 0}, false});
  return choices;
}

struct Walk {
  const std::vector<Choice> choices = Choices();
  int64_t runs = 0, committed = 0, given_up = 0, no_room = 0, refused = 0;

  // Every continuation until the machine is idle again.
  void From(const Commit& machine, const Model& model) {
    bool waits = false;
    for (const Choice& choice : choices) {
      Commit next = machine;
      Model expected = model;
      Commit::Effects effects;
      std::vector<std::string> names;
      const bool belongs = expected.Take(choice.what, choice.ok, names);
      ASSERT_EQ(next.Step(choice.event, effects), belongs);
      if (names == std::vector<std::string>{"no room"}) {
        ++no_room;
        names = {"given up"};
        --given_up;
      }
      ASSERT_EQ(Names(effects), names);
      ASSERT_EQ(next.idle(), expected.idle());
      ASSERT_EQ(next.attempt(), expected.attempt);
      if (!belongs) {
        ++refused;
        continue;
      }
      waits = true;
      if (!next.idle()) {
        From(next, expected);
        if (testing::Test::HasFatalFailure()) return;
        continue;
      }
      ++runs;
      (names.back() == "committed" ? committed : given_up) += 1;
      // As good as new: the next one begins with the first attempt.
      effects.clear();
      ASSERT_TRUE(next.Step(Commit::Frozen{1}, effects));
      ASSERT_EQ(next.attempt(), 0);
      ASSERT_TRUE(effects.empty());
    }
    ASSERT_TRUE(waits) << "neither idle nor waiting";
  }
};

TEST(CheckpointCommit, EveryRunOfEvents) {
  for (const int attempts : {1, 2}) {
    Walk walk;
    walk.From(Commit({.ranks = kRanks, .attempts_max = attempts}),
              Model{.attempts_max = attempts, .owed = {}});
    if (HasFatalFailure()) return;
    EXPECT_GT(walk.committed, 0);
    EXPECT_GT(walk.given_up, walk.committed);
    EXPECT_GT(walk.refused, 10 * walk.runs);
    // Orders of three ranks that freeze; of three writes and, by attempt, of two votes; each with
    // its failures.
    const int64_t good = 6 * 2, bad = 6 * 7 + 6 * 2 + 6 * 6 + 6 * 2;
    EXPECT_EQ(walk.committed, 6 * (attempts == 1 ? good : good + bad * good));
    EXPECT_EQ(walk.given_up, 6 * (attempts == 1 ? bad : bad * bad));
    EXPECT_EQ(walk.no_room, 6);
  }
}

// A refused event changes nothing, also where many come.
TEST(CheckpointCommit, StrayEventsChangeNothing) {
  Commit machine({.ranks = 2});
  Commit::Effects effects;
  const auto storm = [&] {
    effects.clear();
    for (int i = 0; i < 100; ++i) {
      EXPECT_FALSE(machine.Step(Commit::Voted{i, true}, effects));
      EXPECT_FALSE(machine.Step(Commit::Published{true}, effects));
      EXPECT_FALSE(machine.Step(Commit::Joined{{0}, true}, effects));
      EXPECT_FALSE(machine.Step(Commit::Measured{true}, effects));
      EXPECT_FALSE(machine.Step(Commit::Frozen{-1 - i}, effects));
      EXPECT_FALSE(machine.Step(Commit::Frozen{2 + i}, effects));
      EXPECT_FALSE(machine.Step(Commit::Written{-1 - i, true}, effects));
      EXPECT_FALSE(machine.Step(Commit::Written{2 + i, true}, effects));
    }
    EXPECT_TRUE(effects.empty());
  };
  storm();
  EXPECT_TRUE(machine.idle());
  ASSERT_TRUE(machine.Step(Commit::Frozen{0}, effects));
  storm();
  EXPECT_FALSE(machine.Step(Commit::Frozen{0}, effects)) << "twice";
  EXPECT_FALSE(machine.Step(Commit::Written{0, true}, effects)) << "before it may";
  ASSERT_TRUE(machine.Step(Commit::Frozen{1}, effects));
  ASSERT_TRUE(machine.Step(Commit::Measured{true}, effects));
  EXPECT_EQ(Names(effects), (std::vector<std::string>{"measure", "write 1"}));
  ASSERT_TRUE(machine.Step(Commit::Written{0, true}, effects));
  EXPECT_FALSE(machine.Step(Commit::Frozen{0}, effects)) << "too late";
  effects.clear();
  EXPECT_FALSE(machine.Step(Commit::Written{0, true}, effects)) << "twice";
  ASSERT_TRUE(machine.Step(Commit::Written{1, true}, effects));
  EXPECT_EQ(Names(effects), std::vector<std::string>{"join"});
}

}  // namespace
}  // namespace perdure
