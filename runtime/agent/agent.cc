#include "runtime/agent/agent.h"

#include <algorithm>
#include <utility>

#include "runtime/agent/run_key.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Exit codes that are chosen here; the others are the coordinator's.
constexpr int kExitBadLog = kExitPersonMustLook, kExitAgain = 1;

// How long the coordinator's agent stays after END for those who have not heard of it.
constexpr absl::Duration kGoodbye = absl::Seconds(1);

std::string LayoutText(const LayoutShape& shape) {
  return fmt::format("tensor {} x pipeline {} x data {}", shape.tensor, shape.pipeline, shape.data);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::New(EventLoop* loop, ControlLog* log,
                                                  const AgentOptions& options, NodeRanks* ranks,
                                                  CheckpointStore* checkpoints, AgentHooks hooks) {
  RETURN_IF_ERROR(Validate(options.control));
  if (options.node >= options.nodes)
    return InvalidArgument("node {} of a job of {}: nodes count from 0", options.node,
                           options.nodes);
  std::unique_ptr<Agent> agent(new Agent(loop, log, options, ranks, checkpoints, std::move(hooks)));
  RETURN_IF_ERROR(agent->Begin());
  return agent;
}

Agent::Agent(EventLoop* loop, ControlLog* log, const AgentOptions& options, NodeRanks* ranks,
             CheckpointStore* checkpoints, AgentHooks hooks)
    : loop_(loop),
      log_(log),
      options_(options),
      ranks_(ranks),
      checkpoints_(checkpoints),
      hooks_(std::move(hooks)),
      incarnation_(RandomIncarnation()),
      began_(MonotonicNow()),
      alive_(std::make_shared<bool>(true)) {}

Agent::~Agent() {
  *alive_ = false;
  loop_->CancelTimer(timer_);
}

absl::Status Agent::Begin() {
  ASSIGN_OR_RETURN(JobKey key, OpenJobKey(options_.run_directory, options_.job));
  PeersOptions peers = options_.peers;
  peers.wire.run_id = log_->run_id();
  peers.wire.job = options_.job;
  peers.wire.self = {.node = options_.node, .incarnation = incarnation_};
  peers.wire.nodes = options_.nodes;
  peers.wire.interface = options_.interface;
  peers.wire.port = options_.port;
  peers.connect_time = options_.control.node_silence;
  ASSIGN_OR_RETURN(
      peers_,
      Peers::New(
          loop_, std::move(key), peers,
          {.on_message = [this](const Endpoint& from,
                                ControlMessage m) { OnMessage(from, std::move(m)); },
           .on_closed =
               [this](NodeId node) {
                 Post(Member::Event(Member::Closed{{options_.job, node}}));
                 (void)TellLead(Coordinator::Closed{node});
                 Closed(node);
               },
           .on_snapshot = [this](NodeId from,
                                 SnapshotFrame frame) { ranks_->Take(from, std::move(frame)); },
           .on_lost = [this](NodeId node) { ranks_->Lost(node); },
           .key_of_job =
               [this](uint64_t job) { return OpenJobKey(options_.run_directory, job); }}));
  member_.emplace(options_.control,
                  Member::Identity{.me = Me(), .slots = options_.slots, .domain = options_.domain},
                  ranks_->Adopted(), MonotonicNow());
  // From the loop: whoever made the agent has it before he hears of it.
  timer_ = loop_->AddTimer(MonotonicNow(), [this] { Post(Member::Event(Member::Tick{})); });
  return absl::OkStatus();
}

Author Agent::Me() const { return {{options_.job, options_.node}, incarnation_}; }

// ---- events

void Agent::Tell(Member::Event event) { Post(std::move(event)); }

bool Agent::TellLead(Coordinator::Event event) {
  if (!lead_.has_value()) return false;
  Post(ForLead{leads_, std::move(event)});
  return true;
}

void Agent::Post(Waiting waiting) {
  if (exited_) return;
  waiting_.push_back(std::move(waiting));
  if (!working_) Work();
}

void Agent::Work() {
  working_ = true;
  while (!waiting_.empty() && !exited_) {
    const Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    const absl::Time now = MonotonicNow();
    if (const auto* event = std::get_if<Member::Event>(&next)) {
      Member::Effects effects;
      member_->Step(now, *event, effects);
      for (const Member::Effect& effect : effects)
        std::visit([this](const auto& e) { Do(e); }, effect);
      // Reports that only say how far they are wait for the next heartbeat.
      if (const auto* progress = std::get_if<Member::Progress>(event);
          progress != nullptr && phases_.has_value())
        phases_->Finished(now, progress->generation, progress->finished);
      continue;
    }
    const auto& for_lead = std::get<ForLead>(next);
    if (lead_.has_value() && for_lead.number == leads_) WorkLead(now, for_lead.event);
  }
  working_ = false;
  Arm();
}

void Agent::WorkLead(absl::Time now, const Coordinator::Event& event) {
  Coordinator::Effects effects;
  lead_->Step(now, event, effects);
  if (lead_->phase() != Coordinator::Phase::kClaiming &&
      lead_->phase() != Coordinator::Phase::kResigned && !std::exchange(leads_now_, true))
    checkpoints_->Leads();
  Watch(now, event, effects);
  for (const Coordinator::Effect& effect : effects) {
    if (!lead_.has_value()) break;  // It has resigned.
    std::visit([this](const auto& e) { DoLead(e); }, effect);
  }
}

void Agent::Watch(absl::Time now, const Coordinator::Event& event,
                  const Coordinator::Effects& effects) {
  const PhaseSight sight = SightOf(*lead_, options_.job);
  phases_->See(now, sight, FailuresIn(event, effects, sight));
  for (const Coordinator::Effect& effect : effects)
    if (const auto* present = std::get_if<Coordinator::AllPresent>(&effect))
      phases_->Made(now, present->generation);
}

void Agent::RanksConnected(Generation generation) {
  if (phases_.has_value()) phases_->Connected(MonotonicNow(), generation);
}

void Agent::Arm() {
  if (exited_) return;
  absl::Time next = member_->NextDeadline();
  if (lead_.has_value()) next = std::min(next, lead_->NextDeadline());
  if (next == timer_.when && timer_.number != 0) return;
  loop_->CancelTimer(timer_);
  timer_ = {};
  if (next == absl::InfiniteFuture()) return;
  timer_ = loop_->AddTimer(next, [this] {
    timer_ = {};
    working_ = true;  // Both, before anything is armed.
    Post(Member::Event(Member::Tick{}));
    (void)TellLead(Coordinator::Tick{});
    Work();
  });
}

void Agent::OnMessage(const Endpoint& from, ControlMessage message) {
  if (ForCoordinator(message))
    (void)TellLead(Coordinator::Received{from, std::move(message)});
  else
    Post(Member::Event(Member::Received{from, std::move(message)}));
}

void Agent::Send(const Endpoint& to, const ControlMessage& message) {
  if (to == Me().at)
    OnMessage(to, message);
  else
    peers_->Send(to, message);
}

// ---- the member's effects

void Agent::Do(const Member::ReadLog& effect) {
  if (member_reads_)
    member_next_ = effect;
  else
    ReadForMember(effect);
}

void Agent::ReadForMember(const Read& read) {
  member_reads_ = true;
  log_->Read(read.from, [this, alive = alive_, read](const ControlLog::Entries& reading) {
    if (!*alive) return;
    member_reads_ = false;
    if (auto next = std::exchange(member_next_, std::nullopt)) ReadForMember(*next);
    Member::LogRead event{.asked = read.asked, .from = read.from, .entries = {}, .pulse = {}};
    if (reading.ok()) {
      if (reading->leader) peers_->LearnLeader(reading->leader->author, reading->leader->record);
      event.entries = reading->entries;
      event.pulse = reading->pulse;
    }
    LogTrouble(reading.status());
    Post(Member::Event(std::move(event)));
  });
}

void Agent::Do(const Member::TakeLead&) {
  EndLead();
  lead_.emplace(options_.control, options_.rule,
                Coordinator::Identity{.me = Me(), .nodes = options_.nodes, .number = ++leads_},
                member_->view(), MonotonicNow());
  phases_.emplace(options_.node, began_, hooks_.phase);
  lead_reads_ = false;
  lead_next_.reset();
  (void)TellLead(Coordinator::Tick{});
}

void Agent::EndLead() {
  lead_.reset();
  phases_.reset();
  if (std::exchange(leads_now_, false)) checkpoints_->LeadEnds();
}

void Agent::Do(const Member::Exit& effect) {
  if (exit_code_.has_value()) return;
  exit_code_ = effect.code;
  const bool stays =
      options_.nodes > 1 && lead_.has_value() && lead_->phase() == Coordinator::Phase::kEnded;
  const absl::Time when = MonotonicNow() + (stays ? kGoodbye : absl::ZeroDuration());
  loop_->AddTimer(when, [this, alive = alive_] {
    if (*alive) Exit(*exit_code_);
  });
}

// ---- the coordinator's effects

void Agent::DoLead(const Coordinator::Send& effect) {
  // Who hands the table on must know to whom.
  if (const auto* prepare = std::get_if<msg::Prepare>(&effect.message))
    if (effect.to != Me().at) peers_->SendDirectory(effect.to.node, prepare->children);
  Send(effect.to, effect.message);
}

ControlLog::Body Agent::BodyOf(const Coordinator::Append& append) const {
  const LogEntry& entry = append.entry;
  switch (entry.kind) {
    case EntryKind::kLead: {
      const LeadRecord lead{.address = WireAddressText(peers_->address())};
      return [lead] { return SerializeLead(lead); };
    }
    case EntryKind::kStart: {
      return [entry] {
        return SerializeStart({.shape = entry.layout->shape,
                               .seats = entry.layout->seats,
                               .domains = entry.layout->domains,
                               .layout = LayoutText(entry.layout->shape),
                               .step = entry.step,
                               .from_checkpoint = entry.from_checkpoint,
                               .failure = entry.failure,
                               .gaps = entry.gaps});
      };
    }
    case EntryKind::kCommit:
      return [entry, term = lead_->term(), attempt = append.attempt,
              checkpoints = checkpoints_]() -> absl::StatusOr<std::string> {
        ASSIGN_OR_RETURN(const CommitRecord commit, checkpoints->Publish(entry, term, attempt));
        return SerializeCommit(commit);
      };
    case EntryKind::kEnd:
      return [entry] {
        return SerializeEnd({.reason = entry.exit_code == 0 ? "complete" : "stopped",
                             .exit_code = entry.exit_code,
                             .step = entry.step});
      };
    case EntryKind::kNote:
      break;
  }
  PERDURE_CHECK(false);  // The store's.
  return {};
}

void Agent::DoLead(const Coordinator::Append& effect) {
  const bool is_note = effect.entry.kind == EntryKind::kNote;
  const auto then = [this, alive = alive_, number = leads_,
                     is_note](const ControlLog::Filled& filled) {
    if (!*alive) return;
    if (filled.no_body) {
      if (!is_note || !absl::IsNotFound(filled.status))
        Remark((is_note ? "a note in the run log: " : "the checkpoint's manifest: ") +
               Message(filled.status));
      Post(ForLead{number, Coordinator::Unpublished{}});
      return;
    }
    LogTrouble(filled.status);
    Post(ForLead{number, Coordinator::Appended{filled.entry}});
  };
  if (!is_note) {
    log_->Append(effect.entry, BodyOf(effect), then);
    return;
  }
  log_->AppendNote(
      effect.entry,
      [checkpoints = checkpoints_, tag = effect.entry.note] { return checkpoints->NoteBody(tag); },
      then);
}

void Agent::DoLead(const Coordinator::ReadLog& effect) {
  const Read read{.from = effect.from, .asked = effect.asked};
  if (lead_reads_)
    lead_next_ = read;
  else
    ReadForLead(read, leads_);
}

void Agent::ReadForLead(const Read& read, uint32_t number) {
  lead_reads_ = true;
  log_->Read(read.from, [this, alive = alive_, read, number](const ControlLog::Entries& reading) {
    if (!*alive || number != leads_) return;
    lead_reads_ = false;
    if (auto next = std::exchange(lead_next_, std::nullopt)) ReadForLead(*next, number);
    LogTrouble(reading.status());
    Post(ForLead{number,
                 Coordinator::LogRead{
                     read.asked, reading.ok() ? std::optional(reading->entries) : std::nullopt}});
  });
}

void Agent::DoLead(const Coordinator::LeavePulse& effect) {
  log_->Leave(effect.pulse, [this, alive = alive_](const absl::Status& status) {
    if (!*alive) return;
    const std::string text = status.ok() ? "" : Message(status);
    if (std::exchange(pulse_trouble_, text) != text && !text.empty())
      Remark("no sign of life could be left for agents that are cut off: " + text);
  });
}

void Agent::DoLead(const Coordinator::MeasureRoom& effect) {
  checkpoints_->Do(effect, [this, alive = alive_, number = leads_](Coordinator::Measured event) {
    if (*alive) Post(ForLead{number, event});
  });
}

void Agent::DoLead(const Coordinator::JoinParts& effect) {
  checkpoints_->Do(effect, [this, alive = alive_, number = leads_](Coordinator::PartsJoined event) {
    if (*alive) Post(ForLead{number, std::move(event)});
  });
}

void Agent::DoLead(const Coordinator::ChooseCheckpoint& effect) {
  checkpoints_->Do(effect,
                   [this, alive = alive_, number = leads_](Coordinator::CheckpointChosen event) {
                     if (*alive) Post(ForLead{number, std::move(event)});
                   });
}

void Agent::DoLead(const Coordinator::WindUp& effect) {
  checkpoints_->Do(effect, [this, alive = alive_, number = leads_](Coordinator::WoundUp event) {
    if (*alive) Post(ForLead{number, event});
  });
}

void Agent::DoLead(const Coordinator::AllPresent& effect) {
  checkpoints_->Do(effect);
  if (hooks_.formed) hooks_.formed(effect);
}

void Agent::DoLead(const Coordinator::Evidence& effect) {
  if (hooks_.evidence) hooks_.evidence(effect);
}

void Agent::DoLead(const Coordinator::WentBack& effect) {
  if (hooks_.went_back) hooks_.went_back(effect);
}

void Agent::DoLead(const Coordinator::Resign& effect) {
  Remark("this agent does not lead any more: " + effect.reason);
  EndLead();
  Post(Member::Event(Member::LeadLost{}));
}

void Agent::DoLead(const Coordinator::Finished& effect) {
  Remark(fmt::format("the job is over, exit code {}", effect.exit_code));
}

// ---- all else

// A damaged log is a person's to look at; who has read what is gone must begin anew; other trouble
// may pass.
void Agent::LogTrouble(const absl::Status& status) {
  const std::string text = status.ok() ? "" : Message(status);
  if (text == log_trouble_) return;
  log_trouble_ = text;
  Remark(status.ok() ? "the run log can be read again" : "the run log: " + text);
  if (absl::IsDataLoss(status)) Do(Member::Exit{kExitBadLog});
  if (absl::IsFailedPrecondition(status)) Do(Member::Exit{kExitAgain});
}

void Agent::Remark(const std::string& text) {
  if (hooks_.remark) hooks_.remark(text);
}

// The last to leave need not stay.
void Agent::Closed(NodeId node) {
  if (!exit_code_.has_value() || node == options_.node) return;
  left_.insert(node);
  if (left_.size() + 1 < options_.nodes) return;
  loop_->Defer([this, alive = alive_] {
    if (*alive) Exit(*exit_code_);
  });
}

void Agent::Exit(int exit_code) {
  if (exited_) return;
  exited_ = true;
  loop_->CancelTimer(timer_);
  waiting_.clear();
  if (hooks_.ended) hooks_.ended(exit_code);
}

}  // namespace perdure
