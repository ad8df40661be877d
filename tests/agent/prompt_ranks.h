// Ranks that do at once what they are told, and a store that keeps nothing: for jobs whose control
// plane is what is looked at.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/agent/agent.h"
#include "runtime/base/status.h"

namespace perdure {

class PromptRanks : public NodeRanks {
 public:
  explicit PromptRanks(EventLoop* loop) : loop_(loop) {}
  void Do(const Member::MakeRanks& order) override {
    prepare_ = order.prepare;
    std::vector<std::string> addresses;
    for (const auto& rank : prepare_.ranks)  // As long as a transport's.
      addresses.push_back(fmt::format("{:040}", rank.rank));
    Tell(Member::RanksMade{prepare_.generation, std::move(addresses)});
  }
  void Do(const Member::Connect&) override {}
  void Do(const Member::Load& order) override { Tell(Member::RanksLoaded{order.generation}); }
  void Do(const Member::Run&) override {}
  void Do(const Member::Renew&) override {}
  void Do(const Member::StopRanks& order) override {
    Tell(Member::RanksStopped{order.generation, {}});
  }
  void Do(const Member::KillRanks& order) override {
    Tell(Member::RanksStopped{order.generation, {}});
  }
  void Do(const Member::FreezeState&) override {}
  void Do(const Member::WriteState&) override {}
  void Do(const Member::VerifyFile&) override {}
  void Do(const Member::SettleState&) override {}

  Agent* agent = nullptr;

 protected:
  void Tell(Member::Event event) {
    loop_->Defer([this, event = std::move(event)] { agent->Tell(event); });
  }
  const msg::Prepare& prepare() const { return prepare_; }

 private:
  EventLoop* const loop_;
  msg::Prepare prepare_;
};

class NoStore : public CheckpointStore {
 public:
  void Leads() override {}
  void LeadEnds() override {}
  void Do(const Coordinator::AllPresent&) override {}
  void Do(const Coordinator::SaveOver&) override {}
  void Do(const Coordinator::MeasureRoom&, std::function<void(Coordinator::Measured)>) override {}
  void Do(const Coordinator::JoinParts&, std::function<void(Coordinator::PartsJoined)>) override {}
  void Do(const Coordinator::ChooseCheckpoint& order,
          std::function<void(Coordinator::CheckpointChosen)> then) override {
    Coordinator::CheckpointChosen none;
    none.question = order.question;
    none.ok = true;
    then(none);
  }
  void Do(const Coordinator::Noted&) override {}
  void Do(const Coordinator::GoodSteps&) override {}
  absl::StatusOr<CommitRecord> Publish(const LogEntry&, Slot, int32_t) override {
    return Internal("nothing is saved here");
  }
  absl::StatusOr<ControlLog::NoteBody> NoteBody(uint64_t) override {
    return Internal("nothing is noted here");
  }
};

}  // namespace perdure
