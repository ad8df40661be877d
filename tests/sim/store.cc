// What the world knows of checkpoints and of notes in the log: which is chosen, which are bad, what
// is joined, what gets written down.
#include <fmt/format.h>

#include <algorithm>

#include "tests/sim/world.h"

namespace perdure::sim {

std::string PartOf(const std::string& packed) { return "part with " + packed; }

// ---- which checkpoint

void World::OnCommit(const LogEntry& commit) {
  Checkpoint checkpoint{
      .step = commit.step,
      .generation = commit.generation,
      .name = fmt::format("s{}.g{}.{}", commit.step, commit.generation, store_.size()),
      .gaps = generations_[commit.generation].gaps,
      .value = checker_.Expected(commit.generation, commit.step)};
  if (!healed_ && scenario_.bad_checkpoints > 0 && shell_.PerMille(scenario_.bad_checkpoints))
    checkpoint.bad =
        shell_.PerMille(500) ? Checkpoint::Bad::kSeenByStore : Checkpoint::Bad::kSeenByRanks;
  store_.push_back(std::move(checkpoint));
}

void World::FindBad(Checkpoint& checkpoint) {
  if (checkpoint.known) return;
  if (trace_) Trace(fmt::format("checkpoint {} is bad", checkpoint.name));
  ++outcome_.bad;
  checkpoint.known = true;
  checker_.OnStoreSays(static_cast<size_t>(&checkpoint - store_.data()), true);
}

void World::Choose(Index index, const Coordinator::ChooseCheckpoint& order) {
  if (!checker_.InOffice(order.term)) return;
  if (order.last_is_bad) {
    const auto last = std::find_if(store_.begin(), store_.end(), [&](const Checkpoint& checkpoint) {
      return checkpoint.name == order.last;
    });
    if (last == store_.end() || last->bad != Checkpoint::Bad::kSeenByRanks) {
      Violate(fmt::format("checkpoint \"{}\" is said to be bad", order.last));
      return;
    }
    FindBad(*last);
  }
  asked_[{index, Of(index).lead_id, order.question}] = order.gaps;
  // Late, sometimes later than it is asked again, or never.
  if (scenario_.store_silent > 0 && shell_.PerMille(scenario_.store_silent)) return;
  const Nanos takes =
      shell_.PerMille(50) ? shell_.Between(0, 8 * kSecond) : shell_.Between(kMs, 50 * kMs);
  At(now_ + takes, {.what = What::kChosen,
                    .agent = index,
                    .version = Of(index).lead_id,
                    .a = static_cast<int64_t>(order.question)});
}

// Its state is of a step that a run with these gaps takes.
bool World::MayLoad(const Checkpoint& checkpoint, const Gaps& gaps) const {
  return Checker::OneState(checkpoint.gaps, gaps, checkpoint.step);
}

// The newest that is not known to be bad, unless that is seen now.
void World::AnswerChosen(Index index, uint64_t question) {
  Coordinator::CheckpointChosen chosen{.question = question, .ok = true};
  const Gaps gaps = asked_[{index, Of(index).lead_id, question}];
  bool any = false;
  for (size_t i = store_.size(); i-- > 0;) {
    Checkpoint& checkpoint = store_[i];
    if (!MayLoad(checkpoint, gaps)) continue;
    any = true;
    if (!checkpoint.known && checkpoint.bad == Checkpoint::Bad::kSeenByStore) FindBad(checkpoint);
    if (checkpoint.known) continue;
    chosen.step = checkpoint.step;
    chosen.packed = checkpoint.name;
    break;
  }
  if (any && !chosen.step.has_value()) {
    none_for_ = gaps;
    chosen.ok = false;
    chosen.words = "no checkpoint can be loaded";
    checker_.OnStoreHasNone();
  }
  StepLead(index, chosen);
}

// After 93: what makes ranks fail, whether bad steps are to be taken after all, and the newest
// checkpoint where none can be loaded.
void World::PersonLooks() {
  looked_ = true;
  if (outcome_.exhausted > 0) checker_.OnTolerates();
  const auto newest = std::find_if(store_.rbegin(), store_.rend(),
                                   [&](const Checkpoint& c) { return MayLoad(c, none_for_); });
  if (newest == store_.rend() ||
      std::any_of(store_.begin(), store_.end(),
                  [&](const Checkpoint& c) { return MayLoad(c, none_for_) && !c.known; }))
    return;
  newest->known = false;
  newest->bad = Checkpoint::Bad::kNo;
  checker_.OnStoreSays(static_cast<size_t>(&*newest - store_.data()), false);
}

// False: they fail, or something is wrong.
bool World::LoadsCheckpoint(Index index, const Resume& resume) {
  RankGroup& ranks = Of(index).ranks;
  if (resume.checkpoint.empty()) {
    const bool any = std::any_of(store_.begin(), store_.end(), [&](const Checkpoint& c) {
      return c.generation < ranks.prepare.generation && MayLoad(c, ranks.prepare.gaps);
    });
    if (resume.step != 0 || any) {
      Violate(fmt::format("the run begins again at step {}", resume.step));
      return false;
    }
    return true;
  }
  const auto checkpoint = std::find_if(store_.begin(), store_.end(), [&](const Checkpoint& c) {
    return c.name == resume.checkpoint;
  });
  if (checkpoint == store_.end() || checkpoint->step != resume.step) {
    Violate(fmt::format("\"{}\" is no checkpoint of step {}", resume.checkpoint, resume.step));
    return false;
  }
  ranks.value = checkpoint->value;
  if (checkpoint->bad == Checkpoint::Bad::kNo) return true;
  FailRank(index, ranks.prepare.ranks.front().local_rank, EvidenceKind::kBadCheckpoint, false);
  return false;
}

// ---- what is joined

void World::Join(Index index, const Coordinator::JoinParts& order) {
  const std::vector<NodeId>& members = Of(index).lead->members();
  bool right = order.packed.size() == members.size();
  for (size_t i = 0; i < members.size() && right; ++i)
    right = order.packed[i] ==
            checker_.Written(order.generation, order.step, order.attempt, members[i]);
  if (!right)
    Violate(fmt::format("attempt {} at step {} of generation {} is joined of what was not written",
                        order.attempt, order.step, order.generation));
}

// ---- notes

// The shell has something to write down, once or several times, now and a little later.
void World::WantNotes(Index index) {
  if (scenario_.notes == 0 || !shell_.PerMille(scenario_.notes)) return;
  for (int64_t left = shell_.Between(1, 3); left > 0; --left)
    At(now_ + shell_.Between(0, shell_.PerMille(500) ? 20 * kMs : 2 * kSecond),
       {.what = What::kNote, .agent = index, .version = Of(index).lead_id});
}

bool World::NoteHasBody(uint64_t tag, Index index) {
  if (tag >= notes_.size() || notes_[tag].agent != index ||
      notes_[tag].lead_id != Of(index).lead_id) {
    Violate(fmt::format("note {} was not asked for here", tag));
    return true;
  }
  if (scenario_.note_fails == 0 || !shell_.PerMille(scenario_.note_fails)) return true;
  notes_[tag].dropped = true;
  return false;
}

void World::OnNoted(Index index, uint64_t tag) {
  if (tag >= notes_.size() || notes_[tag].in_log != 1 || notes_[tag].agent != index ||
      ++notes_[tag].noted > 1)
    Violate(fmt::format("note {} is said to be in the log", tag));
  ++outcome_.noted;
}

// Where nothing fails every note gets there.
void World::CheckNotes() {
  for (size_t tag = 0; tag < notes_.size(); ++tag) {
    const NoteBooks& note = notes_[tag];
    const Agent& agent = Of(note.agent);
    if (calm_ && agent.lead.has_value() && agent.lead_id == note.lead_id && !note.dropped &&
        agent.lead->phase() != Coordinator::Phase::kEnded && note.told_at + 10 * kSecond < now_ &&
        note.noted == 0)
      Violate(fmt::format("note {} got lost", tag));
  }
}

void World::OnGoodSteps(Index index, Generation generation) {
  ++outcome_.good;
  const StepIndex steps = checker_.StepsOf(generation);
  if (!told_good_.emplace(index, Of(index).lead_id, generation).second ||
      steps < checker_.StartOf(generation) + Coordinator::kGoodSteps)
    Violate(fmt::format("generation {} is said to have made good steps at {}", generation, steps));
}

}  // namespace perdure::sim
