#include "runtime/control/checkpoint_commit.h"

namespace perdure {

CheckpointCommit::CheckpointCommit(const Options& options) : options_(options) {}

bool CheckpointCommit::Step(const Event& event, Effects& effects) {
  return std::visit([&](const auto& e) { return On(e, effects); }, event);
}

// Every rank is to be heard once in `stage`.
void CheckpointCommit::Expect(Stage stage) {
  stage_ = stage;
  heard_.assign(static_cast<std::size_t>(options_.ranks), false);
  heard_count_ = 0;
}

bool CheckpointCommit::Hear(int rank) {
  if (rank < 0 || rank >= options_.ranks || heard_[static_cast<std::size_t>(rank)]) return false;
  heard_[static_cast<std::size_t>(rank)] = true;
  ++heard_count_;
  return true;
}

void CheckpointCommit::Begin(Effects& effects) {
  Expect(Stage::kWriting);
  failed_ = false;
  effects.emplace_back(Write{++attempt_});
}

// Every writer waits for an order by now.
void CheckpointCommit::GiveUp(Effects& effects) {
  if (attempt_ < options_.attempts_max) {
    Begin(effects);
    return;
  }
  stage_ = Stage::kIdle;
  attempt_ = 0;
  effects.emplace_back(Settle{.committed = false});
}

bool CheckpointCommit::On(const Frozen& event, Effects& effects) {
  if (event.rank < 0 || event.rank >= options_.ranks) return false;
  if (stage_ == Stage::kIdle) Expect(Stage::kFreezing);
  if (stage_ != Stage::kFreezing || !Hear(event.rank)) return false;
  if (heard_count_ < options_.ranks) return true;
  stage_ = Stage::kMeasuring;
  effects.emplace_back(Measure{});
  return true;
}

// What does not fit is not tried: there would be no more room the second time.
bool CheckpointCommit::On(const Measured& event, Effects& effects) {
  if (stage_ != Stage::kMeasuring) return false;
  if (event.ok) {
    Begin(effects);
    return true;
  }
  stage_ = Stage::kIdle;
  effects.emplace_back(Settle{.committed = false});
  return true;
}

bool CheckpointCommit::On(const Written& event, Effects& effects) {
  if (stage_ != Stage::kWriting || !Hear(event.rank)) return false;
  failed_ |= !event.ok;
  if (heard_count_ < options_.ranks) return true;
  if (failed_) {
    GiveUp(effects);
  } else {
    stage_ = Stage::kJoining;
    effects.emplace_back(Join{});
  }
  return true;
}

bool CheckpointCommit::On(const Joined& event, Effects& effects) {
  if (stage_ != Stage::kJoining) return false;
  if (!event.ok || event.readers.empty()) {
    GiveUp(effects);
    return true;
  }
  stage_ = Stage::kVerifying;
  voted_.assign(event.readers.size(), false);
  voted_count_ = 0;
  for (std::size_t file = 0; file < event.readers.size(); ++file)
    effects.emplace_back(Verify{static_cast<int>(file), event.readers[file]});
  return true;
}

bool CheckpointCommit::On(const Voted& event, Effects& effects) {
  if (stage_ != Stage::kVerifying || event.file < 0 ||
      event.file >= static_cast<int>(voted_.size()) || voted_[static_cast<std::size_t>(event.file)])
    return false;
  voted_[static_cast<std::size_t>(event.file)] = true;
  failed_ |= !event.ok;
  if (++voted_count_ < static_cast<int>(voted_.size())) return true;
  if (failed_) {
    GiveUp(effects);
  } else {
    stage_ = Stage::kPublishing;
    effects.emplace_back(Publish{});
  }
  return true;
}

bool CheckpointCommit::On(const Published& event, Effects& effects) {
  if (stage_ != Stage::kPublishing) return false;
  if (!event.ok) {
    GiveUp(effects);
    return true;
  }
  stage_ = Stage::kIdle;
  attempt_ = 0;
  effects.emplace_back(Settle{.committed = true});
  return true;
}

}  // namespace perdure
