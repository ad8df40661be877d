// A coordinator of a job, on node 0 or on the spare behind the others, told as a story in virtual
// time: its log and its members are the test's lines.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/control/coordinator.h"
#include "tests/control/control_records.h"
#include "tests/control/effects_done.h"

namespace perdure {

class CoordinatorStory : public EffectsDone<Coordinator> {
 public:
  static constexpr uint32_t kNumber = 2;
  static Author Me(NodeId node = 0) { return {.at = {kJob, node}, .incarnation = 1}; }

  // Replicas of one rank, as many as fit; a save a minute.
  static LayoutRule Rule() {
    return {.tensor = 1, .pipeline = 1, .leaves = 64, .grow_after = absl::Seconds(1)};
  }
  // Two replicas and a spare node.
  static LayoutRule TwoAndASpare() {
    return {.tensor = 1, .pipeline = 1, .data = 2, .leaves = 64, .spares = 1};
  }
  // So many nodes are needed, and waited for.
  static LayoutRule Needs(int32_t nodes, absl::Duration wait_max) {
    LayoutRule rule = Rule();
    rule.data = rule.data_min = nodes;
    rule.wait_max = wait_max;
    return rule;
  }
  static ControlOptions Options() {
    ControlOptions options;
    options.save_every = absl::Seconds(60);
    return options;
  }

  explicit CoordinatorStory(NodeId nodes, const LogView& view = {}, const LayoutRule& rule = Rule(),
                            const ControlOptions& options = Options())
      : nodes_(nodes),
        lead_(options, rule,
              {.me = Me(rule.spares > 0 ? nodes - 1 : 0), .nodes = nodes, .number = kNumber}, view,
              now_),
        checkpoint_(view.commit_step) {
    Do(Coordinator::Tick{});
  }

  // ---- what happens; done() has what the coordinator does about it, and nothing of before

  void Do(const Coordinator::Event& event) {
    done_.clear();
    Feed(event);
  }
  // Time passes, and the coordinator is woken whenever it asked to be.
  void After(absl::Duration time) {
    done_.clear();
    Pass(time);
  }
  // As After, while `nodes` say again every 100 ms what they reported last.
  void AfterInTouch(absl::Duration time, const std::vector<NodeId>& nodes) {
    done_.clear();
    for (const absl::Time end = now_ + time; now_ < end;) {
      Pass(std::min(Ms(100), end - now_));
      for (NodeId node : nodes) FeedReport(node);
    }
  }
  // From now on each poll of the log is answered at once, and finds nothing.
  void LogStaysAsItIs() { log_answers_ = true; }
  // From now on nobody says which checkpoint it is to be; until then the newest, at once.
  void StoreIsSilent() { store_answers_ = false; }
  // From now on the store has something to do behind the last step.
  void StoreIsBusy() { store_winds_up_ = false; }
  // The record that was asked for gets its slot.
  LogEntry Win() {
    EXPECT_TRUE(append_.has_value()) << "nothing was to be appended";
    if (!append_.has_value()) return {};
    LogEntry entry = *std::exchange(append_, std::nullopt);
    if (entry.kind == EntryKind::kCommit) checkpoint_ = entry.step;
    entry.note = 0;  // Not in the log.
    Do(Coordinator::Appended{entry});
    return entry;
  }
  void Hear(NodeId node, const ControlMessage& message) {
    Do(Coordinator::Received{{kJob, node}, message});
  }
  // Of now, of its first life, of one slot, with a step a second; `change` what is unusual.
  void Report(NodeId node, NodeStage stage, Generation generation, const auto& change) {
    msg::Report& report = reports_[node];
    report = {.term = lead_.term(),
              .incarnation = 100 + node,
              .slots = 1,
              .generation = generation,
              .stage = stage};
    changes_[node] = change;
    done_.clear();
    FeedReport(node);
  }
  void Report(NodeId node, NodeStage stage, Generation generation = 0) {
    Report(node, stage, generation, [](msg::Report&) {});
  }
  void Stopped(NodeId node, Generation generation, std::vector<Holding> holdings = {}) {
    uint64_t life = 100 + node;
    if (const auto said = reports_.find(node); said != reports_.end()) {
      life = said->second.incarnation;
      said->second.stage = NodeStage::kStopped;
      said->second.generation = generation;
    }
    Hear(node, msg::Stopped{.term = lead_.term(),
                            .incarnation = life,
                            .generation = generation,
                            .holdings = std::move(holdings)});
  }
  void Present(NodeId node, Generation generation) {
    Hear(node, msg::Present{.term = lead_.term(), .generation = generation, .addresses = {"a"}});
  }
  // Node `node` has written its share of an attempt at the save of `step`.
  void Wrote(NodeId node, StepIndex step, int32_t attempt, bool ok = true,
             Generation generation = 1) {
    Hear(node, msg::Wrote{.term = lead_.term(),
                          .generation = generation,
                          .step = step,
                          .attempt = attempt,
                          .ok = ok,
                          .packed = std::to_string(node) + " wrote " + std::to_string(attempt)});
  }
  // Members form the generation of the START that was won last, and run.
  void RunOn() {
    const Generation generation = lead_.layout().generation;
    const std::vector<NodeId> members = lead_.members();
    for (NodeId node : members) Present(node, generation);
    for (NodeId node : members) Report(node, NodeStage::kReady, generation);
    for (NodeId node : members) reports_[node].stage = NodeStage::kRunning;
  }
  // The members of the running generation freeze, write and read back the state of `step`, which is
  // committed.
  void SaveAll(StepIndex step) {
    const Generation generation = lead_.layout().generation;
    const std::vector<NodeId> members = lead_.members();
    for (NodeId node : members)
      Report(node, NodeStage::kRunning, generation, [=](msg::Report& r) { r.frozen = step; });
    Do(Coordinator::Measured{generation, step, true});
    for (NodeId node : members) Wrote(node, step, 1, true, generation);
    Do(Coordinator::PartsJoined{generation, step, 1, {0}, {"A"}, true});
    Hear(members[0], msg::Voted{.term = lead_.term(),
                                .generation = generation,
                                .step = step,
                                .attempt = 1,
                                .ok = true});
    ASSERT_EQ(Win().kind, EntryKind::kCommit);
    for (NodeId node : members) Report(node, NodeStage::kRunning, generation);
  }
  void Done(NodeId node, StepIndex finished) {
    Report(node, NodeStage::kDone, lead_.layout().generation,
           [=](msg::Report& r) { r.finished = finished; });
  }
  // LEAD, all nodes, START, Go.
  void RunAll() {
    Win();
    for (NodeId node = 0; node < nodes_; ++node) Report(node, NodeStage::kIdle);
    Win();
    RunOn();
    ASSERT_EQ(phase(), Coordinator::Phase::kRunning);
  }

  // ---- what the coordinator did

  // By node, the newest message of one kind.
  template <typename M>
  std::map<NodeId, M> Sent() const {
    std::map<NodeId, M> sent;
    for (const auto& [when, effect] : done_)
      if (const auto* send = std::get_if<Coordinator::Send>(&effect))
        if (const auto* m = std::get_if<M>(&send->message)) sent[send->to.node] = *m;
    return sent;
  }
  template <typename M>
  std::vector<absl::Duration> WhenSent(NodeId node, absl::Time since) const {
    return WhenSentTo<M>(since, [&](const Endpoint& to) { return to.node == node; });
  }
  // Whom there is evidence against.
  std::vector<std::pair<NodeId, EvidenceKind>> Blamed() const {
    std::vector<std::pair<NodeId, EvidenceKind>> blamed;
    for (const auto& e : All<Coordinator::Evidence>()) blamed.emplace_back(e.node, e.kind);
    return blamed;
  }
  // The lease in the newest answer to `node`; zero: none.
  absl::Duration LeaseOf(NodeId node) const {
    const auto answers = Sent<msg::Answer>();
    const auto answer = answers.find(node);
    EXPECT_NE(answer, answers.end()) << "no answer";
    return answer == answers.end() ? absl::ZeroDuration() : absl::Nanoseconds(answer->second.lease);
  }

  Coordinator& lead() { return lead_; }
  Coordinator::Phase phase() const { return lead_.phase(); }
  absl::Time now() const { return now_; }
  const std::optional<LogEntry>& append() const { return append_; }  // That has no slot yet.
  bool Appends(EntryKind kind) const { return append_.has_value() && append_->kind == kind; }
  const std::string& said() const { return said_; }
  const std::string& resigned() const { return resigned_; }

 private:
  static constexpr int64_t kWokenMax = 100'000;

  void Pass(absl::Duration time) {
    const absl::Time end = now_ + time;
    int64_t woken = 0;
    while (lead_.NextDeadline() <= end && ++woken < kWokenMax) {
      now_ = std::max(now_, lead_.NextDeadline());
      Feed(Coordinator::Tick{});
    }
    now_ = end;
    ASSERT_LT(woken, kWokenMax) << "asks to be woken again and again";
  }
  void FeedReport(NodeId node) {
    const auto said = reports_.find(node);
    if (said == reports_.end()) return;
    msg::Report report = said->second;
    report.sequence = ++sequence_;
    report.echo = absl::ToUnixNanos(now_);
    if (report.stage == NodeStage::kRunning) report.finished = absl::ToInt64Seconds(now_ - kStart);
    changes_[node](report);
    Feed(Coordinator::Received{{kJob, node}, report});
  }
  void Feed(const Coordinator::Event& event) {
    Coordinator::Effects effects;
    lead_.Step(now_, event, effects);
    bool read = false, winds_up = false;
    std::optional<uint64_t> asked;
    for (Coordinator::Effect& effect : effects) {
      if (const auto* choose = std::get_if<Coordinator::ChooseCheckpoint>(&effect))
        asked = choose->question;
      read |= std::holds_alternative<Coordinator::ReadLog>(effect);
      winds_up |= std::holds_alternative<Coordinator::WindUp>(effect);
      if (const auto* remark = std::get_if<Coordinator::Remark>(&effect))
        said_ += remark->text + "\n";
      if (const auto* append = std::get_if<Coordinator::Append>(&effect)) append_ = append->entry;
      if (const auto* resign = std::get_if<Coordinator::Resign>(&effect))
        resigned_ = resign->reason;
      done_.emplace_back(now_, std::move(effect));
    }
    if (read && log_answers_)
      Feed(Coordinator::LogRead{.asked = now_, .entries = std::vector<LogEntry>()});
    if (winds_up && store_winds_up_) Feed(Coordinator::WoundUp{});
    if (!asked.has_value() || !store_answers_) return;
    Coordinator::CheckpointChosen chosen{.question = *asked, .ok = true};
    if (checkpoint_ >= 0) {
      chosen.step = checkpoint_;
      chosen.packed = "checkpoint of step " + std::to_string(checkpoint_);
    }
    Feed(chosen);
  }

  NodeId nodes_;
  absl::Time now_ = kStart;
  Coordinator lead_;
  uint64_t sequence_ = 0;
  std::map<NodeId, msg::Report> reports_;
  std::map<NodeId, std::function<void(msg::Report&)>> changes_;
  std::optional<LogEntry> append_;
  std::string said_, resigned_;
  StepIndex checkpoint_;
  bool log_answers_ = false, store_answers_ = true, store_winds_up_ = true;
};

}  // namespace perdure
