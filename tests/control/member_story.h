// A member of a job, told as a story in virtual time: its log, its coordinator and its ranks are
// the test's lines.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/control/member.h"
#include "tests/control/control_records.h"
#include "tests/control/effects_done.h"

namespace perdure {

class MemberStory : public EffectsDone<Member> {
 public:
  static constexpr uint64_t kLife = 33;
  static constexpr uint32_t kDomain = 5;

  explicit MemberStory(NodeId node, const ControlOptions& options = {},
                       const Member::Adopted& adopted = {})
      : me_{kJob, node},
        options_(options),
        member_(options,
                {.me = {.at = me_, .incarnation = kLife}, .slots = 0b11, .domain = kDomain},
                adopted, kStart) {
    Do(Member::Tick{});
  }

  // ---- what happens; done() has what the member does about it, and nothing of before

  void Do(const Member::Event& event) {
    done_.clear();
    Feed(event);
  }
  // Time passes, and the member is woken whenever it asked to be.
  void After(absl::Duration time) {
    done_.clear();
    const absl::Time end = now_ + time;
    int64_t woken = 0;
    while (member_.NextDeadline() <= end && ++woken < kWokenMax) {
      now_ = std::max(now_, member_.NextDeadline());
      Feed(Member::Tick{});
    }
    now_ = end;
    ASSERT_LT(woken, kWokenMax) << "asks to be woken again and again";
  }
  // As After, while the coordinator answers every report.
  void AfterInTouch(absl::Duration time) {
    std::vector<std::pair<absl::Time, Member::Effect>> all;
    for (const absl::Time end = now_ + time; now_ < end;) {
      After(std::min(Ms(50), end - now_));
      all.insert(all.end(), done_.begin(), done_.end());
      Answer();
      all.insert(all.end(), done_.begin(), done_.end());
    }
    done_ = std::move(all);
  }
  void Hear(const Endpoint& from, const ControlMessage& message) {
    Do(Member::Received{from, message});
  }
  // From its coordinator.
  void Hear(const ControlMessage& message) { Hear(leader_, message); }
  // The log is read now, from the slot that is read next.
  void Read(const std::vector<LogEntry>& entries) {
    Do(Member::LogRead{
        .asked = now_, .from = member_.view().next_slot, .entries = entries, .pulse = {}});
  }
  // From now on each reading is answered at once, and finds nothing new.
  void LogStaysAsItIs() { log_answers_ = true; }
  // Node `leader` coordinates, by the record in slot 0.
  void Follow(NodeId leader) {
    leader_ = {kJob, leader};
    Read({Lead(0, leader)});
    ASSERT_EQ(Sent<msg::Report>().size(), 1u);
  }
  // Another takes over, and says so.
  void FollowNext(Slot term, NodeId leader) {
    leader_ = {kJob, leader};
    Hear(msg::Announce{.term = term});
    ASSERT_EQ(member_.term(), term);
  }
  void Answer(int64_t lease_ms = 0, Generation generation = 0) {
    Hear(msg::Answer{.term = member_.term(),
                     .sequence = newest_.sequence,
                     .stamp = absl::ToUnixNanos(now_),
                     .generation = generation,
                     .lease = lease_ms * 1'000'000});
  }

  // A generation of ranks 0 and 1, of which this node's is rank 0.
  msg::Prepare PrepareOf(Generation generation) const {
    return {.term = member_.term(),
            .generation = generation,
            .shape = {.data = 2},
            .ranks = {{.local_rank = 0, .rank = 0}},
            .resume = {.from_checkpoint = true, .generation = 0, .step = 40, .elsewhere = {}},
            .children = {}};
  }
  msg::Table TableOf(Generation generation, int32_t first, int32_t count, int32_t ranks = 2) const {
    msg::Table table{.term = member_.term(),
                     .generation = generation,
                     .ranks = ranks,
                     .first = first,
                     .count = count,
                     .packed = {}};
    for (int32_t i = 0; i < count; ++i) PackAddress("a", table.packed);
    return table;
  }
  // To the named stage of `generation`, by what takes it there; the stages behind it follow.
  void Spawn(Generation generation) {
    Hear(PrepareOf(generation));
    ASSERT_EQ(member_.stage(), NodeStage::kSpawning);
  }
  void Present(Generation generation) {
    Spawn(generation);
    Do(Member::RanksMade{generation, {"a"}});
    ASSERT_EQ(member_.stage(), NodeStage::kPresent);
  }
  void LoadAll(Generation generation) {
    Present(generation);
    Hear(TableOf(generation, 0, 2));
    ASSERT_EQ(member_.stage(), NodeStage::kLoading);
  }
  void Ready(Generation generation) {
    LoadAll(generation);
    Do(Member::RanksLoaded{generation});
    ASSERT_EQ(member_.stage(), NodeStage::kReady);
  }
  void Run(Generation generation) {
    Ready(generation);
    Hear(msg::Go{.term = member_.term(), .generation = generation});
    ASSERT_EQ(member_.stage(), NodeStage::kRunning);
  }

  // ---- what the member did

  // Messages of one kind, in order, whoever they went to.
  template <typename M>
  std::vector<M> Sent() const {
    std::vector<M> sent;
    for (const Member::Send& send : All<Member::Send>())
      if (const auto* m = std::get_if<M>(&send.message)) sent.push_back(*m);
    return sent;
  }
  template <typename M>
  std::vector<Endpoint> SentTo() const {
    std::vector<Endpoint> to;
    for (const Member::Send& send : All<Member::Send>())
      if (std::holds_alternative<M>(send.message)) to.push_back(send.to);
    return to;
  }
  template <typename M>
  std::vector<absl::Duration> WhenSent(absl::Time since) const {
    return WhenSentTo<M>(since, [](const Endpoint&) { return true; });
  }

  absl::Time now() const { return now_; }
  Member& member() { return member_; }
  const Endpoint& me() const { return me_; }
  const Endpoint& leader() const { return leader_; }
  const msg::Report& newest() const { return newest_; }
  const ControlOptions& options() const { return options_; }

  std::function<Pulse()> pulse;  // That is found with each reading that LogStaysAsItIs answers.

 private:
  static constexpr int64_t kWokenMax = 100'000;

  void Feed(const Member::Event& event) {
    Member::Effects effects;
    member_.Step(now_, event, effects);
    bool read = false;
    for (Member::Effect& effect : effects) {
      read |= std::holds_alternative<Member::ReadLog>(effect);
      if (const auto* send = std::get_if<Member::Send>(&effect))
        if (const auto* report = std::get_if<msg::Report>(&send->message)) newest_ = *report;
      done_.emplace_back(now_, std::move(effect));
    }
    if (read && log_answers_)
      Feed(Member::LogRead{.asked = now_,
                           .from = member_.view().next_slot,
                           .entries = std::vector<LogEntry>(),
                           .pulse = pulse ? std::optional(pulse()) : std::nullopt});
  }

  Endpoint me_;
  ControlOptions options_;
  absl::Time now_ = kStart;
  Member member_;
  Endpoint leader_;
  msg::Report newest_;
  bool log_answers_ = false;
};

}  // namespace perdure
