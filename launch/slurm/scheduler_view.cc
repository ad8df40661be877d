#include "launch/slurm/scheduler_view.h"

#include <algorithm>
#include <utility>

namespace perdure {
namespace {

constexpr std::pair<std::string_view, JobState> kStates[] = {
    {"BOOT_FAIL", JobState::kBootFail},
    {"CANCELLED", JobState::kCancelled},
    {"COMPLETED", JobState::kCompleted},
    {"COMPLETING", JobState::kCompleting},
    {"CONFIGURING", JobState::kConfiguring},
    {"DEADLINE", JobState::kDeadline},
    {"FAILED", JobState::kFailed},
    {"NODE_FAIL", JobState::kNodeFail},
    {"OUT_OF_MEMORY", JobState::kOutOfMemory},
    {"PENDING", JobState::kPending},
    {"PREEMPTED", JobState::kPreempted},
    {"REQUEUED", JobState::kRequeued},
    {"REQUEUE_HOLD", JobState::kRequeueHeld},
    {"RESIZING", JobState::kResizing},
    {"REVOKED", JobState::kRevoked},
    {"RUNNING", JobState::kRunning},
    {"SIGNALING", JobState::kSignaling},
    {"SPECIAL_EXIT", JobState::kSpecialExit},
    {"STAGE_OUT", JobState::kStageOut},
    {"STOPPED", JobState::kStopped},
    {"SUSPENDED", JobState::kSuspended},
    {"TIMEOUT", JobState::kTimeout},
};

}  // namespace

JobState ParseJobState(std::string_view word) {
  word = word.substr(0, word.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"));
  for (const auto& [name, state] : kStates)
    if (name == word) return state;
  return JobState::kOther;
}

bool IsOver(JobState state) {
  switch (state) {
    case JobState::kBootFail:
    case JobState::kCancelled:
    case JobState::kCompleted:
    case JobState::kDeadline:
    case JobState::kFailed:
    case JobState::kNodeFail:
    case JobState::kOutOfMemory:
    case JobState::kPreempted:
    case JobState::kTimeout:
      return true;
    default:
      return false;
  }
}

bool JobView::batch_host_lost() const {
  return state == JobState::kRunning && !batch_host.empty() &&
         std::find(nodes.begin(), nodes.end(), batch_host) == nodes.end();
}

bool NodeView::down() const {
  return state.starts_with("down") || state.starts_with("fail") || state.starts_with("unknown") ||
         state.starts_with("inval") || marks.find('*') != std::string::npos;
}
bool NodeView::drained() const { return state.starts_with("drain"); }

bool QosView::before_partition() const {
  return ("," + flags + ",").find(",OverPartQOS,") != std::string::npos;
}

std::optional<absl::Duration> PastJob::waited() const {
  if (!eligible || !start || *start < *eligible) return std::nullopt;
  return *start - *eligible;
}

}  // namespace perdure
