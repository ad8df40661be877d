#include "tests/sim/checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tests/prng.h"

namespace perdure::sim {

Checker::Checker(const Scenario& scenario) : scenario_(scenario) {
  lines_.push_back({.gaps = {}, .expected = {Mix(scenario.seed, 0)}});
  line_of_[0] = 0;
}

// ---- what steps see

int64_t Checker::FirstSample(const Gaps& gaps, StepIndex step) const {
  int64_t first = (step - 1) * scenario_.rule.leaves;
  for (const Gap& gap : gaps)
    if (gap.first_step <= step) first += gap.samples;
  return first;
}

bool Checker::IsBad(int64_t first) const {
  return !tolerates_ && Mix(Mix(scenario_.seed, 77), static_cast<uint64_t>(first)) % 1000 <
                            static_cast<uint64_t>(scenario_.bad_steps);
}

Gaps Checker::Behind(const Gaps& gaps, StepIndex bad) const {
  const StepIndex first = std::max<StepIndex>(1, bad - scenario_.rollback_steps);
  const int64_t end = FirstSample(gaps, bad) + scenario_.rule.leaves;
  Gaps behind;
  for (const Gap& gap : gaps)
    if (gap.first_step <= first) behind.push_back(gap);
  Gap gap{.first_step = first, .samples = 0, .bad_step = bad, .number = 1};
  gap.samples = end - FirstSample(behind, first);
  if (!gaps.empty() && bad - gaps.back().bad_step <= scenario_.rollback_steps)
    gap.number = 1 + gaps.back().number;
  behind.push_back(gap);
  return behind;
}

bool Checker::OneState(const Gaps& a, const Gaps& b, StepIndex step) {
  size_t i = 0, j = 0;
  for (;;) {
    while (i < a.size() && a[i].first_step > step) ++i;
    while (j < b.size() && b[j].first_step > step) ++j;
    if (i == a.size() || j == b.size()) return i == a.size() && j == b.size();
    if (a[i++] != b[j++]) return false;
  }
}

// A leaf's work at one (p, t) of the mesh; summed, because sums of whole numbers have no order.
uint64_t Checker::Leaves(const LayoutShape& shape, int32_t rank, int64_t first) const {
  const int32_t t = rank % shape.tensor;
  const int32_t d = rank / shape.tensor % shape.data;
  const int32_t p = rank / shape.tensor / shape.data;
  uint64_t sum = 0;
  for (int32_t leaf = d; leaf < scenario_.rule.leaves; leaf += shape.data)
    sum += Mix(static_cast<uint64_t>(first + leaf), static_cast<uint64_t>(p * 64 + t));
  return sum;
}

uint64_t Checker::Expected(Generation generation, StepIndex step) {
  const auto of = line_of_.find(generation);
  Line& line = of == line_of_.end() ? lines_.back() : lines_[of->second];
  const LayoutShape one{
      .tensor = scenario_.rule.tensor, .pipeline = scenario_.rule.pipeline, .data = 1};
  while (line.expected.size() <= static_cast<size_t>(step)) {
    const auto next = static_cast<StepIndex>(line.expected.size());
    const int64_t first = FirstSample(line.gaps, next);
    uint64_t sum = 0;
    for (int32_t rank = 0; rank < one.ranks(); ++rank) sum += Leaves(one, rank, first);
    line.expected.push_back(Mix(line.expected.back(), sum));
  }
  return line.expected[static_cast<size_t>(step)];
}

StepIndex Checker::GoodStep() const {
  for (auto commit = commits_.rbegin(); commit != commits_.rend(); ++commit)
    if (!commit->bad && OneState(lines_[commit->line].gaps, lines_.back().gaps, commit->step))
      return commit->step;
  return -1;
}

// The run goes back only for a step that ranks have found bad, and to where the rule says.
Checker::Problem Checker::OnGaps(const LogEntry& e) {
  const Gaps& now = lines_.back().gaps;
  if (e.gaps != now) {
    if (e.gaps.empty()) return fmt::format("START {} forgets all gaps", e.generation);
    const StepIndex bad = e.gaps.back().bad_step;
    if (e.gaps != Behind(now, bad))
      return fmt::format("START {}: its gaps are not those for step {}", e.generation, bad);
    if (e.gaps.back().number > scenario_.rollbacks_max)
      return fmt::format("START {} goes back {} times in a row", e.generation,
                         e.gaps.back().number);
    const bool found = std::any_of(found_bad_.begin(), found_bad_.end(), [&](const auto& f) {
      return f.second == bad && line_of_.at(f.first) == lines_.size() - 1;
    });
    if (!found) return fmt::format("START {}: nobody has found step {} bad", e.generation, bad);
    lines_.push_back({.gaps = e.gaps, .expected = {Mix(scenario_.seed, 0)}});
  }
  line_of_[e.generation] = lines_.size() - 1;
  return std::nullopt;
}

StepIndex Checker::StepsOf(Generation generation) const {
  StepIndex steps = starts_.at(generation).step;
  for (auto at = steps_.lower_bound({generation, 0});
       at != steps_.end() && at->first.first == generation; ++at)
    steps = std::max(steps, at->second);
  return steps;
}

Checker::Problem Checker::OnStart(const LogEntry& e) {
  if (!lead_ || ended_ || lead_->author != e.author)
    return fmt::format("START {} by who does not lead", e.generation);
  if (!starts_.empty() && e.generation <= starts_.rbegin()->first)
    return fmt::format("START {} after START {}", e.generation, starts_.rbegin()->first);
  const size_t lines = lines_.size();
  if (Problem problem = OnGaps(e)) return problem;
  goes_back_ = lines_.size() > lines;
  if (e.step < GoodStep())
    return fmt::format("START {} resumes at {}, the newest good checkpoint is of {}", e.generation,
                       e.step, GoodStep());
  std::set<Seat> seats(e.layout->seats.begin(), e.layout->seats.end());
  if (seats.size() != e.layout->seats.size() ||
      e.layout->seats.size() != static_cast<size_t>(e.layout->shape.ranks()) || seats.empty())
    return fmt::format("START {}: seats are not one per rank", e.generation);
  if (Problem problem = OnChange(e)) return problem;
  if (Problem problem = OnStartAfter(e)) return problem;
  starts_[e.generation] = e;
  return std::nullopt;
}

// Where memory keeps nothing, a change that nothing forced takes no step again: its coordinator had
// the state saved. (Who takes over may find a generation that somebody else has stopped.)
Checker::Problem Checker::OnChange(const LogEntry& e) {
  if (scenario_.no_snapshots == 0 || starts_.empty() || job_ != e.author.at.job) return {};
  const auto& [before, start] = *starts_.rbegin();
  const bool planned = !e.failure.kind.has_value() || e.failure.kind == EvidenceKind::kSlow;
  const bool good = commits_.empty() || !commits_.back().bad;
  if (goes_back_ || !planned || !good || lead_->slot > start.slot || e.step < start.step) return {};
  const StepIndex steps = StepsOf(before);
  if (e.step < steps)
    return fmt::format("START {} changes a layout and takes up to step {} again from {}",
                       e.generation, steps, e.step);
  if (steps > start.step) ++saved_first_;
  return {};
}

// What a START says of the generation before it, and what follows from it.
Checker::Problem Checker::OnStartAfter(const LogEntry& e) {
  const Failure& f = e.failure;
  if (std::exchange(job_, e.author.at.job) != e.author.at.job)
    return f == Failure{} ? std::nullopt
                          : Problem(fmt::format("START {} is its job's first", e.generation));
  const Generation before = starts_.rbegin()->first;
  if (f.step < starts_[before].step || f.step > StepsOf(before))
    return fmt::format("START {} says that generation {} ended with step {}, it was {} at most",
                       e.generation, before, f.step, StepsOf(before));
  failures_.erase(failures_.begin(), failures_.lower_bound(f.step));
  // What failed in steps that are left, says nothing of those that are taken in their place.
  const StepIndex left_from = goes_back_ ? e.gaps.back().first_step - 1 : f.step + 1;
  if (goes_back_) failures_.erase(failures_.lower_bound(left_from), failures_.end());
  using Kind = EvidenceKind;
  const bool ranks = f.kind == Kind::kRankKilled || f.kind == Kind::kRankCrashed ||
                     f.kind == Kind::kOutOfMemory || f.kind == Kind::kBadSnapshot;
  const bool told = ranks || f.kind == Kind::kDeviceError || f.kind == Kind::kBadCheckpoint;
  if (told && (!f.node.has_value() || failed_.count({before, *f.node, *f.kind}) == 0))
    return fmt::format("START {} says that generation {} ended by what did not happen: {}",
                       e.generation, before, NameOf(*f.kind));
  if (f.kind == Kind::kTrainingFailed)
    return fmt::format("START {} although training failed", e.generation);
  if ((ranks || f.kind == Kind::kHung) && f.step < left_from) {
    Failed& failed = failures_[f.step];
    if (++failed.times == 2) failed.second = before;
    failures_max_ = std::max<int64_t>(failures_max_, failed.times);
    if (failed.times > 2)
      return fmt::format("START {} although the job has failed {} times after step {}",
                         e.generation, failed.times, f.step);
  }
  for (const auto& [step, failed] : failures_)
    older_memory_[e.generation] = std::max(older_memory_[e.generation], failed.second);
  return std::nullopt;
}

Checker::Problem Checker::OnEnd(const LogEntry& e) {
  if (!lead_ || ended_ || lead_->author != e.author) return "END by who does not lead";
  ended_ = true;
  job_.reset();
  const bool failed_twice = std::any_of(failures_.begin(), failures_.end(), [](const auto& failed) {
    return failed.second.times >= 2;
  });
  failures_.clear();
  if (e.exit_code == scenario_.control.done_code) {
    if (scenario_.steps_max == 0 || GoodStep() != scenario_.steps_max)
      return "END of a run that is not complete";
  } else if (e.exit_code == 93) {
    const bool trained =
        starts_.empty() || std::none_of(failed_.begin(), failed_.end(), [&](const auto& failed) {
          return std::get<0>(failed) + 1 >= starts_.rbegin()->first &&
                 std::get<2>(failed) == EvidenceKind::kTrainingFailed;
        });
    const bool fits = scenario_.rule.data_min <= scenario_.nodes * scenario_.slots;
    if (!failed_twice && trained && !none_can_be_loaded_ && !no_slots_ && fits)
      return "END with 93 without a reason";
    none_can_be_loaded_ = no_slots_ = false;
  } else if (e.exit_code == kExitUnsaved) {
    if (starts_.empty() || StepsOf(starts_.rbegin()->first) <= std::max(GoodStep(), StepIndex{0}))
      return "END of a job that lost nothing says that it did";
  } else if (e.exit_code != 75) {
    return fmt::format("END with {}", e.exit_code);
  }
  return std::nullopt;
}

Checker::Problem Checker::OnAppend(const LogEntry& e) {
  switch (e.kind) {
    case EntryKind::kLead:
      if (lead_ && lead_->author.at.job != e.author.at.job) failures_.clear();
      lead_ = e;
      ended_ = false;
      ++leads_;
      return std::nullopt;
    case EntryKind::kStart:
      return OnStart(e);
    case EntryKind::kCommit: {
      if (!lead_ || ended_ || lead_->author != e.author)
        return fmt::format("COMMIT of step {} by who does not lead", e.step);
      if (starts_.empty() || starts_.rbegin()->first != e.generation)
        return fmt::format("COMMIT of generation {} which is not the newest", e.generation);
      if (e.step <= GoodStep())
        return fmt::format("COMMIT of step {} after step {}", e.step, GoodStep());
      const PlacedLayout& layout = *starts_.rbegin()->second.layout;
      for (const Seat& seat : layout.seats) {
        bool good = false;
        for (int32_t attempt = 1; attempt <= 2 && !good; ++attempt) {
          const auto part = parts_.find({e.generation, e.step, attempt, seat.node});
          good = part != parts_.end() && part->second.good && part->second.verified &&
                 part->second.value == Expected(e.generation, e.step);
        }
        if (!good)
          return fmt::format("COMMIT of step {}: node {}'s part is not there, verified and right",
                             e.step, seat.node);
      }
      commits_.push_back({.step = e.step, .line = line_of_.at(e.generation)});
      committed_.insert(e.step);
      by_generation_.emplace(e.generation, e.step);
      failures_.erase(failures_.begin(), failures_.lower_bound(e.step));
      return std::nullopt;
    }
    case EntryKind::kEnd:
      return OnEnd(e);
    case EntryKind::kNote:
      if (!lead_ || ended_ || lead_->author != e.author) return "a note by who does not lead";
      if (e.generation != (starts_.empty() ? 0 : starts_.rbegin()->first))
        return fmt::format("a note of generation {}, which is not the newest", e.generation);
      return std::nullopt;
  }
  return std::nullopt;
}

Checker::Problem Checker::OnApply(Generation generation, NodeId node, StepIndex step,
                                  uint64_t value) {
  if (generation < stepping_)
    return fmt::format("node {} took step {} in generation {} after generation {} had stepped",
                       node, step, generation, stepping_);
  stepping_ = generation;
  const auto start = starts_.find(generation);
  if (start == starts_.end()) return fmt::format("generation {} steps without a START", generation);
  if (ended_) return fmt::format("node {} took step {} after the job's END", node, step);
  const bool member =
      std::any_of(start->second.layout->seats.begin(), start->second.layout->seats.end(),
                  [&](const Seat& seat) { return seat.node == node; });
  if (!member)
    return fmt::format("node {} steps in generation {}, where it has no seat", node, generation);
  const auto [last, first] = steps_.try_emplace({generation, node}, start->second.step);
  if (step != last->second + 1)
    return fmt::format("node {} took step {} after step {}", node, step, last->second);
  last->second = step;
  if (IsBad(FirstSample(lines_[line_of_.at(generation)].gaps, step)))
    return fmt::format("node {} took step {}, which is bad", node, step);
  if (value != Expected(generation, step))
    return fmt::format("node {} holds another state than the undisturbed run at step {}", node,
                       step);
  return std::nullopt;
}

Checker::Problem Checker::OnLoad(Generation generation, const Resume& resume, uint64_t value) {
  const StepIndex step = resume.step;
  const auto start = starts_.find(generation);
  if (start == starts_.end() || start->second.step != step)
    return fmt::format("generation {} loads step {}, its START says otherwise", generation, step);
  if (start->second.from_checkpoint != !resume.checkpoint.empty())
    return fmt::format("START {} does not say whether it resumes from a checkpoint", generation);
  if (resume.from_checkpoint && step != 0 && committed_.count(step) == 0)
    return fmt::format("generation {} loads a checkpoint of step {}, which was never committed",
                       generation, step);
  if (!resume.from_checkpoint && resume.generation <= older_memory_[generation])
    return fmt::format("generation {} begins with memory of {}, with which it failed twice",
                       generation, resume.generation);
  if (value != Expected(generation, step))
    return fmt::format("generation {} loads a wrong state for step {}", generation, step);
  return std::nullopt;
}

void Checker::OnWritten(Generation generation, StepIndex step, int32_t attempt, NodeId node,
                        bool good, uint64_t value) {
  parts_[{generation, step, attempt, node}] = {
      .good = good,
      .verified = false,
      .value = value,
      .packed = fmt::format("{:x} of {}.{}.{}.{}", value, generation, step, attempt, node)};
}

std::string Checker::Written(Generation generation, StepIndex step, int32_t attempt,
                             NodeId node) const {
  const auto part = parts_.find({generation, step, attempt, node});
  return part == parts_.end() ? "nothing" : part->second.packed;
}

void Checker::OnVerified(Generation generation, StepIndex step, int32_t attempt, NodeId node) {
  const auto part = parts_.find({generation, step, attempt, node});
  if (part != parts_.end()) part->second.verified = true;
}

bool Checker::PartIsGood(Generation generation, StepIndex step, int32_t attempt,
                         NodeId node) const {
  const auto part = parts_.find({generation, step, attempt, node});
  return part != parts_.end() && part->second.good;
}

const PlacedLayout* Checker::LayoutOf(Generation generation) const {
  const auto start = starts_.find(generation);
  return start == starts_.end() ? nullptr : &*start->second.layout;
}

}  // namespace perdure::sim
