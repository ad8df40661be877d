// What an agent asks of whoever looks after its node's ranks, and of whoever knows checkpoints.
// Both answer with events, later and on the loop's thread, by Agent::Tell.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/agent/control_log.h"
#include "runtime/agent/peer_frame.h"
#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"

namespace perdure {

// A rank that failed, or that was killed because it did not stop.
struct RankFailure {
  Generation generation = 0;
  int32_t rank = -1;  // -1: it had none.
  int32_t local_rank = 0;
  pid_t pid = 0;
  EvidenceKind kind = EvidenceKind::kRankCrashed;
  int64_t number = 0;
  std::string words;  // What it said, or how it ended; its last activity; its last output.
};

// Who sits where.
struct RankProcess {
  int32_t local_rank = 0;
  int32_t rank = -1;  // -1: it has none.
  pid_t pid = 0;
};

// What the ranks of a slot of a node have printed, all one after the other.
inline std::string SlotLogPath(const std::string& directory, NodeId node, int32_t local_rank) {
  return fmt::format("{}/node-{:05}-slot-{:02}.log", directory, node, local_rank);
}

class NodeRanks {
 public:
  virtual ~NodeRanks() = default;
  // Ranks that outlived the agent before this one. Asked once, when the agent begins.
  virtual Member::Adopted Adopted() { return {}; }
  // Member's effects; its header says what answers each.
  virtual void Do(const Member::MakeRanks& order) = 0;
  virtual void Do(const Member::Connect& order) = 0;
  virtual void Do(const Member::Load& order) = 0;
  virtual void Do(const Member::Run& order) = 0;
  virtual void Do(const Member::Renew& order) = 0;
  virtual void Do(const Member::StopRanks& order) = 0;
  virtual void Do(const Member::KillRanks& order) = 0;
  virtual void Do(const Member::FreezeState& order) = 0;
  virtual void Do(const Member::WriteState& order) = 0;
  virtual void Do(const Member::VerifyFile& order) = 0;
  virtual void Do(const Member::SettleState& order) = 0;
  // A question of another node of the job after a snapshot of this one, or an answer to one.
  virtual void Take(NodeId /*from*/, SnapshotFrame /*frame*/) {}
  // Such questions and answers that were under way to or from that node may not arrive.
  virtual void Lost(NodeId /*node*/) {}
};

class CheckpointStore {
 public:
  virtual ~CheckpointStore() = default;
  // This agent's coordinator has the lead from now on; has it no more. What was asked for under
  // another lead is void: nobody waits for its answers.
  virtual void Leads() = 0;
  virtual void LeadEnds() = 0;
  // Coordinator's effects; answered by `then`.
  virtual void Do(const Coordinator::MeasureRoom& order,
                  std::function<void(Coordinator::Measured)> then) = 0;
  virtual void Do(const Coordinator::JoinParts& order,
                  std::function<void(Coordinator::PartsJoined)> then) = 0;
  // The same question may come again before it is answered: one answer to it is enough.
  virtual void Do(const Coordinator::ChooseCheckpoint& order,
                  std::function<void(Coordinator::CheckpointChosen)> then) = 0;
  // Notes that it asks for before it answers come before END.
  virtual void Do(const Coordinator::WindUp& /*order*/,
                  std::function<void(Coordinator::WoundUp)> then) {
    then({});
  }
  // Not answered.
  virtual void Do(const Coordinator::AllPresent& said) = 0;
  virtual void Do(const Coordinator::SaveOver& said) = 0;
  virtual void Do(const Coordinator::Noted& said) = 0;
  virtual void Do(const Coordinator::GoodSteps& said) = 0;

  // The following are called on the run log's thread, with the record's slot free so far; perhaps
  // again for the same record.
  // Makes the manifest of a checkpoint whose parts are written and read back, and says what its
  // COMMIT says. `term`: of the coordinator whose attempt it is.
  virtual absl::StatusOr<CommitRecord> Publish(const LogEntry& commit, Slot term,
                                               int32_t attempt) = 0;
  // The record that Coordinator::Note{tag} asked for. An error: there will be none; NotFound:
  // because there is nothing to say.
  virtual absl::StatusOr<ControlLog::NoteBody> NoteBody(uint64_t tag) = 0;
};

}  // namespace perdure
