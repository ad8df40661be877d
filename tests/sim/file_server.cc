// The file server of the world: slots that are filled once. A request is executed when it gets
// there, also when who sent it has died; its reply may be lost; readings may be old.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tests/sim/world.h"

namespace perdure::sim {

void World::AskLog(LogRequest request) {
  Nanos at = now_ + disk_.Between(kMs / 2, scenario_.log_delay_max);
  // A request that got stuck on its way.
  if (!calm_ && disk_.PerMille(10)) at += disk_.Between(0, 4 * kSecond);
  at = std::max(at, log_stalled_);
  const Agent& agent = Of(request.agent);
  const bool blind = agent.log_blind > now_;
  const bool errors = blind || (log_errors_ > now_ && disk_.PerMille(500));
  request.failed = errors;
  const auto index = static_cast<uint32_t>(requests_.size());
  requests_.push_back(std::move(request));
  // Half of what fails has been done.
  const bool executed = !blind && (!errors || disk_.PerMille(500));
  if (!executed && requests_[index].kind == LogRequest::Kind::kPulse) return;
  At(at, {.what = executed ? What::kLogExecute : What::kLogReply,
          .agent = executed ? ~Index{0} : requests_[index].agent,
          .a = index});
}

void World::ExecuteLog(uint32_t index) {
  LogRequest& r = requests_[index];
  if (r.kind == LogRequest::Kind::kAppend) {
    if (r.entry.slot > log_.size()) {
      Violate("a record for a slot behind an empty one");
      return;
    }
    if (r.entry.slot == log_.size()) {
      if (Checker::Problem problem = checker_.OnAppend(r.entry)) {
        Violate(*problem);
        return;
      }
      log_.emplace_back(now_, r.entry);
      log_leads_.push_back(r.lead_id);
      const auto jobs = static_cast<int64_t>(job_ending_.size());
      if (calm_ && (checker_.leads() > jobs || checker_.generations() > jobs)) {
        Violate(fmt::format("{} coordinators and {} generations although nothing happened",
                            checker_.leads(), checker_.generations()));
        return;
      }
      CheckSlow(r.entry);
      if (r.entry.kind == EntryKind::kCommit) OnCommit(r.entry);
      if (r.entry.kind == EntryKind::kNote && ++notes_[r.entry.note].in_log > 1)
        Violate(fmt::format("note {} is in the log twice", r.entry.note));
      if (r.entry.kind == EntryKind::kEnd) {
        if (r.entry.exit_code == 93) PersonLooks();
        complete_ |= r.entry.exit_code == scenario_.control.done_code;
      }
      if (r.entry.kind == EntryKind::kStart) {
        GenerationBooks& books = generations_[r.entry.generation];
        books.job = static_cast<uint32_t>(r.entry.author.at.job);
        books.layout = *r.entry.layout;
        books.gaps = r.entry.gaps;
        books.nodes = NodesOf(*r.entry.layout);
      }
      if (trace_)
        Trace("log slot " + std::to_string(r.entry.slot) + ": kind " +
              std::to_string(static_cast<int>(r.entry.kind)) + " generation " +
              std::to_string(r.entry.generation) + " step " + std::to_string(r.entry.step) +
              " by job " + std::to_string(r.entry.author.at.job) + " node " +
              std::to_string(r.entry.author.at.node));
    }
    r.found = log_[r.entry.slot].second;
    r.found->note = 0;  // What its author calls it is not in the log.
  } else if (r.kind == LogRequest::Kind::kPulse) {
    pulses_.emplace_back(now_, *r.pulse);
    if (pulses_.size() > 64) pulses_.pop_front();
    return;  // Nobody asks whether it got there.
  } else {
    // Old by up to the staleness, but never with a hole.
    const Nanos as_of =
        now_ - (scenario_.log_stale_max > 0 ? disk_.Between(0, scenario_.log_stale_max) : 0);
    for (Slot slot = r.from; slot < log_.size() && log_[slot].first <= as_of; ++slot)
      r.read.push_back(log_[slot].second);
    for (const auto& [written, pulse] : pulses_)
      if (written <= as_of) r.pulse = pulse;
  }
  At(now_ + disk_.Between(kMs / 2, scenario_.log_delay_max),
     {.what = What::kLogReply, .agent = r.agent, .a = index});
}

void World::ReplyLog(uint32_t index) {
  LogRequest r = std::move(requests_[index]);
  const Agent& agent = Of(r.agent);
  if (!agent.alive || agent.incarnation != r.incarnation) return;
  if (r.kind == LogRequest::Kind::kMemberRead) {
    StepMember(r.agent, Member::LogRead{r.asked, r.from,
                                        r.failed ? std::nullopt : std::optional(std::move(r.read)),
                                        r.failed ? std::nullopt : r.pulse});
    return;
  }
  if (!agent.lead.has_value() || agent.lead_id != r.lead_id) return;
  if (r.kind == LogRequest::Kind::kLeadRead)
    StepLead(r.agent, Coordinator::LogRead{
                          r.asked, r.failed ? std::nullopt : std::optional(std::move(r.read))});
  else
    StepLead(r.agent, Coordinator::Appended{r.failed ? std::nullopt : std::move(r.found)});
}

}  // namespace perdure::sim
