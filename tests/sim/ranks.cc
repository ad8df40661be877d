// The ranks of the world: they are made, load, step together, keep snapshots for each other, freeze
// and write checkpoints, stop or do not.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tests/sim/world.h"

namespace perdure::sim {
namespace {

int64_t Signed(Generation generation) { return static_cast<int64_t>(generation); }

}  // namespace

std::string Address(Generation generation, const Seat& seat) {
  return fmt::format("{}.{}.{}", generation, seat.node, seat.local_rank);
}

void World::MakeRanks(Index index, const msg::Prepare& prepare) {
  Agent& agent = Of(index);
  if (agent.ranks.state != Ranks::kNone) {
    Violate(fmt::format("ranks of generation {} are made beside those of {}", prepare.generation,
                        agent.ranks.prepare.generation));
    return;
  }
  const uint64_t version = agent.ranks.version + 1;
  agent.ranks = {
      .state = Ranks::kMade, .version = version, .prepare = prepare, .guard = agent.ranks.guard};
  // Those that a seat of before was left with are used again, the others are new processes.
  At(now_ + work_.Between(2 * kMs, 60 * kMs),
     {.what = What::kRanksMade, .agent = index, .version = version});
}

void World::Connect(Index index, const msg::Table& table) {
  Agent& agent = Of(index);
  const PlacedLayout* layout = checker_.LayoutOf(table.generation);
  if (layout == nullptr || layout->seats.size() != static_cast<size_t>(table.ranks)) {
    Violate(fmt::format("a table of generation {} with {} ranks", table.generation, table.ranks));
    return;
  }
  agent.ranks.connected += table.count;
  if (scenario_.nodes > kNodesLookedAt) return;
  const auto addresses = UnpackAddresses(table.packed, table.count);
  if (!addresses.ok()) {
    Violate("a table cannot be read");
    return;
  }
  for (size_t i = 0; i < addresses->size(); ++i) {
    const Seat& seat = layout->seats[static_cast<size_t>(table.first) + i];
    if ((*addresses)[i] == Address(table.generation, seat)) continue;
    Violate(fmt::format("rank {} of generation {} has address {}",
                        static_cast<size_t>(table.first) + i, table.generation, (*addresses)[i]));
    return;
  }
}

void World::Load(Index index) {
  RankGroup& ranks = Of(index).ranks;
  if (ranks.connected != ranks.prepare.shape.ranks()) {
    Violate(fmt::format("ranks load with {} of {} addresses", ranks.connected,
                        ranks.prepare.shape.ranks()));
    return;
  }
  ranks.state = Ranks::kLoading;
  At(now_ + work_.Between(5 * kMs, 300 * kMs),
     {.what = What::kRanksLoaded, .agent = index, .version = ranks.version});
}

// Each atom from where Prepare says that it is; all must be there, of one step.
void World::FinishLoad(Index index) {
  Agent& agent = Of(index);
  if (!agent.alive) return;
  RankGroup& ranks = agent.ranks;
  const Resume& resume = ranks.prepare.resume;
  ranks.value = checker_.Expected(ranks.prepare.generation, 0);
  if (resume.from_checkpoint) {
    if (!LoadsCheckpoint(index, resume)) return;
  } else {
    const auto from = generations_.find(resume.generation);
    if (from == generations_.end() || from->second.layout.shape != resume.shape) {
      Violate(fmt::format("state of generation {} is asked for", resume.generation));
      return;
    }
    if (!healed_ && scenario_.bad_snapshots > 0 && shell_.PerMille(scenario_.bad_snapshots)) {
      FailRank(index, ranks.prepare.ranks.front().local_rank, EvidenceKind::kBadSnapshot, false);
      return;
    }
    const std::vector<Seat>& seats = from->second.layout.seats;
    const size_t stride = scenario_.nodes > kNodesLookedAt ? seats.size() / 64 : 1;
    for (size_t rank = 0; rank < seats.size(); rank += stride) {
      NodeId holder = seats[rank].node;
      for (const Resume::Held& held : resume.elsewhere)
        if (held.rank == static_cast<int32_t>(rank)) holder = held.node;
      const Index at = IndexOf({agent.job, holder});
      const Agent& source = Of(at);
      const auto held =
          std::find_if(source.memory.begin(), source.memory.end(), [&](const Held& m) {
            return m.what.generation == resume.generation && m.what.step == resume.step &&
                   m.what.rank == static_cast<int32_t>(rank);
          });
      if (held == source.memory.end() || !source.alive || Cut(at, index)) {
        FailRank(index, ranks.prepare.ranks.front().local_rank, EvidenceKind::kNetworkError, false);
        return;
      }
      ranks.value = held->value;
    }
    ++outcome_.resumed_from_memory;
  }
  if (Checker::Problem problem = checker_.OnLoad(ranks.prepare.generation, resume, ranks.value)) {
    Violate(*problem);
    return;
  }
  ranks.state = Ranks::kLoaded;
  ranks.finished = resume.step;
  for (const auto& rank : ranks.prepare.ranks)
    Remember(agent, {{ranks.prepare.generation, resume.step, rank.rank}, ranks.value, true});
  if (scenario_.no_snapshots != 0) SayProgress(index);
  StepMember(index, Member::RanksLoaded{ranks.prepare.generation});
}

// A rank's own state is of one step; of others' the two newest are kept. What an older generation
// left goes when this one has stepped.
void World::Remember(Agent& agent, const Held& held) {
  if (scenario_.no_snapshots != 0) return;
  size_t newer = 0;
  for (const Held& m : agent.memory)
    if (m.what.generation == held.what.generation && m.what.rank == held.what.rank &&
        m.what.step > held.what.step)
      ++newer;
  if (newer > 0 && held.own) return;
  std::erase_if(agent.memory, [&](const Held& m) {
    if (m.what.rank != held.what.rank || m.what.generation != held.what.generation) return false;
    return m.own || held.own ? m.own == held.own
                             : m.what.step < held.what.step - 1 || m.what.step == held.what.step;
  });
  agent.memory.push_back(held);
  if (agent.memory.size() > 4096) Violate("snapshots pile up");
}

void World::DropOwn(Agent& agent, int32_t rank) {
  std::erase_if(agent.memory,
                [&](const Held& m) { return m.own && (rank < 0 || m.what.rank == rank); });
}

// ---- steps

void World::StartStep(Index index) {
  RankGroup& ranks = Of(index).ranks;
  ranks.contributed = false;
  ranks.waits = RankGroup::Waits::kNo;
  if (ranks.stop_at_boundary) {
    FinishStop(index, ranks.prepare.generation, false);
    return;
  }
  // Nothing is left to train; but what memory held is not saved.
  if (scenario_.steps_max > 0 && ranks.finished >= scenario_.steps_max) {
    if (ranks.prepare.resume.from_checkpoint) {
      FinishTraining(index);
      return;
    }
    ranks.waits = RankGroup::Waits::kForLast;
    Freeze(index);
    SayProgress(index);
    return;
  }
  const Nanos work = DrawWork(Of(index));
  At(std::max(now_ + work, stalled_),
     {.what = What::kContribute, .agent = index, .version = ranks.version});
}

void World::Contribute(Index index) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  if (ranks.state != Ranks::kRunning || ranks.failed_local_rank >= 0 || ranks.contributed) return;
  if (ranks.hung) return;
  if (!ranks.guard.MayStep(Local(agent, now_))) {
    ranks.waits = RankGroup::Waits::kToContribute;
    return;
  }
  // Not only that no older generation steps any more: none could.
  for (const Agent& other : agents_)
    if (other.ranks.state == Ranks::kRunning &&
        other.ranks.prepare.generation < ranks.prepare.generation &&
        other.ranks.guard.MayStep(Local(other, now_))) {
      Violate(fmt::format(
          "node {} works in generation {} while node {} of job {} has a lease of {}", agent.node,
          ranks.prepare.generation, other.node, other.job, other.ranks.prepare.generation));
      return;
    }
  if (!ranks.leased) {
    Violate(fmt::format("node {} works in generation {} without a lease of it", agent.node,
                        ranks.prepare.generation));
    return;
  }
  ranks.waits = RankGroup::Waits::kNo;
  if (FailsByItself(index)) return;
  ranks.contributed = true;
  GenerationBooks& books = generations_[ranks.prepare.generation];
  StepBooks& step = books.steps[ranks.finished];
  for (const auto& rank : ranks.prepare.ranks)
    step.leaves += checker_.Leaves(ranks.prepare.shape, rank.rank,
                                   checker_.FirstSample(ranks.prepare.gaps, ranks.finished + 1));
  step.ranks += static_cast<int32_t>(ranks.prepare.ranks.size());
  step.agents.emplace_back(index, ranks.version);
  if (step.ranks > books.layout.shape.ranks()) {
    Violate(fmt::format("{} ranks work on step {} of generation {}", step.ranks, ranks.finished,
                        ranks.prepare.generation));
    return;
  }
  if (step.ranks == books.layout.shape.ranks())
    At(now_ + kMs,
       {.what = What::kComplete, .a = Signed(ranks.prepare.generation), .b = ranks.finished});
}

bool World::AnyCut(const std::vector<std::pair<Index, uint64_t>>& agents) const {
  if (cuts_.empty() && isolations_ == 0) return false;
  for (const auto& [a, _a] : agents)
    for (const auto& [b, _b] : agents)
      if (Cut(a, b)) return true;
  return false;
}

// All have given their gradients; they get there when the network lets them.
void World::Complete(Generation generation, StepIndex step) {
  GenerationBooks& books = generations_[generation];
  const auto found = books.steps.find(step);
  if (found == books.steps.end()) return;
  const auto& agents = found->second.agents;
  if (AnyCut(agents)) {
    At(now_ + 100 * kMs, {.what = What::kComplete, .a = Signed(generation), .b = step});
    return;
  }
  if (books.freeze_after.has_value() && step + 1 > *books.freeze_after) {
    books.freeze_step = step + 1;
    if (books.freeze_last) books.last_step = step + 1;
    if (books.freeze_pause) books.pause_step = step + 1;
    books.freeze_after.reset();
  }
  // By themselves.
  if ((scenario_.freeze_every > 0 && (step + 1) % scenario_.freeze_every == 0) ||
      step + 1 == scenario_.steps_max)
    books.freeze_step = step + 1;
  for (const auto& [a, version] : agents)
    At(now_ + work_.Between(0, 4 * kMs), {.what = What::kApply, .agent = a, .version = version});
}

void World::Apply(Index index) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  if (ranks.state != Ranks::kRunning || ranks.failed_local_rank >= 0 || !ranks.contributed) return;
  if (FindsBad(index)) return;
  if (!ranks.guard.MayStep(Local(agent, now_))) {
    ranks.waits = RankGroup::Waits::kToApply;
    return;
  }
  const Generation generation = ranks.prepare.generation;
  GenerationBooks& books = generations_[generation];
  const StepBooks& step = books.steps[ranks.finished];
  if (trace_)
    Trace(fmt::format("job {} node {} takes step {} of generation {} ({} ranks)", agent.job,
                      agent.node, ranks.finished + 1, generation, step.ranks));
  ranks.value = Mix(ranks.value, step.leaves);
  ++ranks.finished;
  CountWork(ranks);
  ++outcome_.steps;
  newest_step_ = std::max(newest_step_, ranks.finished);
  stepping_ = std::max(stepping_, generation);
  if (Checker::Problem problem =
          checker_.OnApply(generation, agent.node, ranks.finished, ranks.value)) {
    Violate(*problem);
    return;
  }
  books.steps.erase(books.steps.begin(), books.steps.lower_bound(ranks.finished - 2));
  std::erase_if(agent.memory, [&](const Held& m) { return m.what.generation < generation; });
  // The snapshot of each rank goes to the next node.
  const auto me = std::lower_bound(books.nodes.begin(), books.nodes.end(), agent.node);
  const NodeId next = me + 1 == books.nodes.end() ? books.nodes.front() : *(me + 1);
  for (const auto& rank : ranks.prepare.ranks) {
    Remember(agent, {{generation, ranks.finished, rank.rank}, ranks.value, true});
    if (next != agent.node)
      At(now_ + work_.Between(kMs, scenario_.step / 2 + kMs), {.what = What::kSnapshot,
                                                               .agent = IndexOf({agent.job, next}),
                                                               .from = index,
                                                               .version = ranks.value,
                                                               .a = Signed(generation),
                                                               .b = ranks.finished,
                                                               .c = rank.rank});
  }
  // One frozen state at a time: who still has another waits.
  const bool freezes = books.freeze_step == ranks.finished;
  if (freezes && ranks.frozen >= 0) {
    ranks.waits = RankGroup::Waits::kToFreeze;
  } else if (freezes) {
    Freeze(index);
    Hold(index);
  }
  // It stands at a boundary: a stop finds it there.
  if (ranks.AwaitsSettle()) ranks.contributed = false;
  SayProgress(index);
  if (agent.ranks.state == Ranks::kRunning && !ranks.AwaitsSettle()) StartStep(index);
}

// All come to it alike; they stand until they are stopped. Too often in a row: they fail.
bool World::FindsBad(Index index) {
  RankGroup& ranks = Of(index).ranks;
  const StepIndex step = ranks.finished + 1;
  if (!checker_.IsBad(checker_.FirstSample(ranks.prepare.gaps, step))) return false;
  ranks.contributed = false;
  const Gap gap = checker_.Behind(ranks.prepare.gaps, step).back();
  const Generation generation = ranks.prepare.generation;
  if (trace_)
    Trace(fmt::format("job {} node {} finds step {} of generation {} bad", Of(index).job,
                      Of(index).node, step, generation));
  if (gap.number > scenario_.rollbacks_max) {
    ++outcome_.exhausted;
    FailRank(index, ranks.prepare.ranks.front().local_rank, EvidenceKind::kTrainingFailed, false);
    return true;
  }
  ranks.bad = {.gap = gap, .why = "it is"};
  checker_.OnFoundBad(generation, step);
  StepMember(index, Member::RanksFoundBad{generation, ranks.bad});
  if (Of(index).ranks.stop_at_boundary) FinishStop(index, generation, false);
  return true;
}

void World::SayProgress(Index index) {
  const RankGroup& ranks = Of(index).ranks;
  StepMember(index,
             Member::Progress{ranks.prepare.generation, ranks.finished, false, ranks.AwaitsSettle(),
                              ranks.works, scenario_.no_snapshots != 0});
}

// With the state that they have just frozen, if they are to.
void World::Hold(Index index) {
  RankGroup& ranks = Of(index).ranks;
  if (Last(ranks))
    ranks.waits = RankGroup::Waits::kForLast;
  else if (ranks.finished == generations_[ranks.prepare.generation].pause_step)
    ranks.waits = RankGroup::Waits::kPaused;
}

// What they have finished is the last step, of the run or because the job ends.
bool World::Last(const RankGroup& ranks) {
  return ranks.finished == scenario_.steps_max ||
         ranks.finished == generations_[ranks.prepare.generation].last_step;
}

// A bug: whoever has rank 0 cannot take the step.
bool World::FailsByItself(Index index) {
  RankGroup& ranks = Of(index).ranks;
  if (looked_ || scenario_.crash_step == 0 || ranks.finished != scenario_.crash_step) return false;
  for (const auto& rank : ranks.prepare.ranks)
    if (rank.rank == 0) {
      ++outcome_.crashes;
      FailRank(index, rank.local_rank, scenario_.crash_kind, false);
      return true;
    }
  return false;
}

// There is nothing more to do for them.
void World::FinishTraining(Index index) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  const Member::Progress done{ranks.prepare.generation, ranks.finished, true, false, {}};
  ranks = {.version = ranks.version + 1, .guard = ranks.guard};
  agent.memory.clear();
  StepMember(index, done);
}

void World::Freeze(Index index) {
  RankGroup& ranks = Of(index).ranks;
  ranks.frozen = ranks.finished;
  ranks.frozen_value = ranks.value;
  ranks.attempt = 0;
  At(now_ + kMs, {.what = What::kFrozen,
                  .agent = index,
                  .version = ranks.version,
                  .a = Signed(ranks.prepare.generation),
                  .b = ranks.finished});
}

void World::SettleState(Index index, const msg::Settle& settle) {
  RankGroup& ranks = Of(index).ranks;
  if (ranks.frozen != settle.step) return;
  ranks.frozen = -1;
  if (!ranks.AwaitsSettle()) return;
  const RankGroup::Waits waited = std::exchange(ranks.waits, RankGroup::Waits::kNo);
  if (ranks.state != Ranks::kRunning || ranks.failed_local_rank >= 0) return;
  if (waited == RankGroup::Waits::kPaused) {
    StartStep(index);
  } else if (waited == RankGroup::Waits::kToFreeze) {
    Freeze(index);
    // It may be one that they wait with, too.
    Hold(index);
    ranks.AwaitsSettle() ? SayProgress(index) : StartStep(index);
  } else if (settle.committed) {
    FinishTraining(index);
  } else {
    FailRank(index, ranks.prepare.ranks.front().local_rank, EvidenceKind::kStorageError, false);
  }
}

// ---- the end of a generation on a node

void World::StopRanks(Index index, const Member::StopRanks& stop) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  // Who hangs is seen and killed.
  if (stop.stalled && ranks.deaf) {
    KillRanks(index, stop.generation);
    return;
  }
  if (stop.at_boundary && ranks.state == Ranks::kRunning && ranks.contributed) {
    ranks.stop_at_boundary = true;
    return;
  }
  if ((ranks.deaf || agent.stubborn > now_) && ranks.state == Ranks::kRunning) return;
  At(now_ + work_.Between(kMs / 2, 30 * kMs), {.what = What::kRanksStopped,
                                               .agent = index,
                                               .version = ranks.version,
                                               .a = Signed(stop.generation),
                                               .b = 0});
}

void World::KillRanks(Index index, Generation generation) {
  Agent& agent = Of(index);
  if (agent.unkillable > now_) return;
  FinishStop(index, generation, true);
}

void World::FinishStop(Index index, Generation generation, bool killed) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  if (killed) DropOwn(agent, -1);
  if (ranks.failed_local_rank >= 0)
    for (const auto& rank : ranks.prepare.ranks)
      if (rank.local_rank == ranks.failed_local_rank) DropOwn(agent, rank.rank);
  ranks = {.version = ranks.version + 1, .guard = ranks.guard};
  if (!agent.alive) return;
  Member::RanksStopped stopped{generation, {}};
  for (const Held& held : agent.memory) stopped.holdings.push_back(held.what);
  std::sort(stopped.holdings.begin(), stopped.holdings.end());
  stopped.holdings.erase(std::unique(stopped.holdings.begin(), stopped.holdings.end()),
                         stopped.holdings.end());
  StepMember(index, stopped);
}

void World::Renew(Index index, Generation generation, absl::Time until) {
  RankGroup& ranks = Of(index).ranks;
  if (ranks.state == Ranks::kRunning && generation == ranks.prepare.generation) ranks.leased = true;
  ranks.guard.Renew(generation, until);
  if (ranks.waits == RankGroup::Waits::kToContribute)
    Contribute(index);
  else if (ranks.waits == RankGroup::Waits::kToApply)
    Apply(index);
}

void World::FailRank(Index index, int32_t local_rank, EvidenceKind kind, bool slot_lost) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  if (slot_lost) agent.slots &= ~(uint64_t{1} << local_rank);
  if (ranks.failed_local_rank < 0) ranks.failed_local_rank = local_rank;
  checker_.OnFailed(ranks.prepare.generation, agent.node, kind);
  At(now_ + work_.Between(kMs / 2, 100 * kMs), {.what = What::kRankFailed,
                                                .agent = index,
                                                .version = ranks.version,
                                                .a = local_rank,
                                                .b = static_cast<int64_t>(kind),
                                                .c = slot_lost ? 1 : 0});
}

// ---- checkpoints

void World::WriteState(Index index, const msg::Write& write) {
  Agent& agent = Of(index);
  RankGroup& ranks = agent.ranks;
  if (ranks.frozen != write.step || write.attempt < ranks.attempt) return;
  const auto tell = [&](Nanos at) {
    At(at, {.what = What::kWritten,
            .agent = index,
            .version = ranks.version,
            .a = Signed(write.generation),
            .b = write.step,
            .c = write.attempt,
            .d = ranks.written_told ? 1 : 0});
  };
  // No file is written twice, whoever asks again.
  if (write.attempt == ranks.attempt) {
    if (ranks.written) tell(now_ + kMs);
    return;
  }
  bool good = true, told = true;
  if (agent.write_errors > now_) {
    // It fails, or claims not to.
    good = false;
    told = disk_.PerMille(500);
  }
  if (log_stalled_ > now_ && disk_.PerMille(300)) good = told = false;
  checker_.OnWritten(write.generation, write.step, write.attempt, agent.node, good,
                     ranks.frozen_value);
  ranks.attempt = write.attempt;
  ranks.written = false;
  ranks.written_told = told;
  tell(std::max(now_ + disk_.Between(10 * kMs, 500 * kMs), log_stalled_));
}

void World::VerifyFile(Index index, const msg::Verify& verify) {
  const GenerationBooks& books = generations_[verify.generation];
  const NodeId of = books.nodes[static_cast<size_t>(verify.file)];
  if (verify.packed !=
      PartOf(checker_.Written(verify.generation, verify.step, verify.attempt, of))) {
    Violate(fmt::format("file {} of step {} is read as if it were \"{}\"", verify.file, verify.step,
                        verify.packed));
    return;
  }
  const bool good = checker_.PartIsGood(verify.generation, verify.step, verify.attempt, of);
  if (good) checker_.OnVerified(verify.generation, verify.step, verify.attempt, of);
  At(std::max(now_ + disk_.Between(5 * kMs, 100 * kMs), log_stalled_),
     {.what = What::kVerified,
      .agent = index,
      .version = Of(index).ranks.version,
      .a = Signed(verify.generation),
      .b = verify.step,
      .c = int64_t{verify.attempt} << 32 | verify.file,
      .d = good ? 1 : 0});
}

}  // namespace perdure::sim
