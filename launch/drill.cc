#include "launch/drill.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <utility>

#include "absl/time/clock.h"
#include "launch/agent_record.h"
#include "launch/drill_flip.h"
#include "launch/node_book.h"
#include "runtime/base/random.h"
#include "runtime/base/status.h"
#include "runtime/control/evidence.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

// Steps between two injuries: a job that is hurt again and again without getting on ends itself.
constexpr int64_t kSettle = 3;
constexpr absl::Duration kLook = absl::Milliseconds(20);
// Of a slow rank: so long it stands, so long it runs; a third of its pace.
constexpr absl::Duration kStands = absl::Milliseconds(100), kRunsOn = absl::Milliseconds(50);
// How long the pace of a job is taken: that part of `wait`, and no longer than
constexpr int64_t kPacePart = 12;
constexpr absl::Duration kPaceMax = absl::Seconds(5);
// From naming a rank until what is done about it has begun, if anything is.
constexpr absl::Duration kActs = absl::Seconds(3);
// Of the journal: enough for the steps that may be told again.
constexpr uint64_t kTail = uint64_t{1} << 20;
// How long what each node runs may lag behind what the job is.
constexpr absl::Duration kLag = absl::Seconds(5);
// How long nodes that died may take until the job has ranks on them again.
constexpr absl::Duration kReturn = absl::Seconds(20);
constexpr size_t kReadBytesMax = size_t{16} << 20;  // At a time.

double Clock() { return absl::ToDoubleSeconds(MonotonicNow() - absl::UnixEpoch()); }

// A clock is worth microseconds.
double Round(double seconds) { return std::round(seconds * 1e6) / 1e6; }

bool Live(const std::string& state) {
  return state == "starting" || state == "running" || state == "recovering" || state == "stopping";
}

Json JsonOf(const Flip& flip) {
  return {{"place", NameOf(flip.place)}, {"element", flip.element}, {"bit", flip.bit}};
}

bool NamesCulprit(const Injury& injury) {
  return injury.recovery.has_value() &&
         injury.recovery->kind == NameOf(EvidenceKind::kSilentCorruption) &&
         injury.recovery->node == injury.node && injury.recovery->rank == injury.rank;
}

std::string StateOf(const Json& status) { return status.value("state", std::string()); }

}  // namespace

// ---- the journal

absl::StatusOr<std::vector<std::string>> GrowingFile::Lines() {
  std::vector<std::string> lines;
  const UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.open()) {
    if (errno == ENOENT) return lines;
    return ErrnoStatus(errno, "open " + path_);
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path_);
  const auto size = static_cast<uint64_t>(info.st_size);
  bool torn = false;  // What comes first is the rest of a line.
  if (tail_.has_value()) {
    torn = size > *tail_;
    offset_ = torn ? size - *tail_ : 0;
    tail_.reset();
  }
  if (size < offset_) offset_ = 0;
  std::string bytes(std::min<uint64_t>(size - offset_, kReadBytesMax), '\0');
  const ssize_t got = ::pread(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset_));
  if (got < 0) return ErrnoStatus(errno, "read " + path_);
  bytes.resize(static_cast<size_t>(got));
  size_t begin = 0;
  for (size_t end = bytes.find('\n'); end != std::string::npos; end = bytes.find('\n', begin)) {
    if (!std::exchange(torn, false)) lines.push_back(bytes.substr(begin, end - begin));
    begin = end + 1;
  }
  // One line that long is none.
  offset_ += begin == 0 && bytes.size() == kReadBytesMax ? bytes.size() : begin;
  return lines;
}

absl::Status Drill::Read() {
  ASSIGN_OR_RETURN(const std::vector<std::string> lines, lines_.Lines());
  for (const std::string& line : lines) (void)story_.Read(line);
  return absl::OkStatus();
}

// ---- before an injury

Drill::Drill(const DrillOptions& options)
    : options_(options), lines_(options.run_directory + "/journal.jsonl", kTail) {}

absl::StatusOr<std::unique_ptr<Drill>> Drill::Open(const DrillOptions& options) {
  std::unique_ptr<Drill> drill(new Drill(options));
  ASSIGN_OR_RETURN(const Json status, ReadStatus(options.run_directory));
  const std::string state = StateOf(status);
  if (state == "lost")
    return FailedPrecondition(
        "whoever started the job of {} is not on this machine, or gone: a drill is for a job that "
        "runs here",
        options.run_directory);
  if (!Live(state))
    return FailedPrecondition("no job of {} is running (state {}); a drill is for one that is",
                              options.run_directory, state);
  ASSIGN_OR_RETURN(drill->journal_, Journal::Open(options.run_directory + "/journal.jsonl"));
  RETURN_IF_ERROR(drill->Read());
  return drill;
}

// Steps are being made by a generation that has made one, and enough since the last injury.
absl::StatusOr<Json> Drill::AwaitWhole(const DrillKind& kind) {
  const absl::Time deadline = MonotonicNow() + options_.wait;
  for (;;) {
    if (Interrupted()) return absl::CancelledError("interrupted");
    RETURN_IF_ERROR(Read());
    ASSIGN_OR_RETURN(Json status, ReadStatus(options_.run_directory));
    const std::string state = StateOf(status);
    if (!Live(state) || state == "stopping")
      return FailedPrecondition("the job is {}: there is nothing left to drill", state);
    const bool stepped =
        (story_.generation() == 0 || story_.stepped()) && story_.step() >= settled_;
    const auto nodes = status.value("nodes", int64_t{0});
    nodes_most_ = std::max(nodes_most_, nodes);
    const bool late = MonotonicNow() >= deadline;
    if (state == "running" && stepped) {
      if (nodes >= kind.nodes_min && (late || !Grows(nodes))) return status;
      // Nodes that it had may come back.
      if (nodes < kind.nodes_min && (late || TooSmallFor(kind))) return TooFewNodes(kind, nodes);
    }
    if (late)
      return absl::DeadlineExceededError(fmt::format(
          "the job is {} and has made {} in {}; --wait longer, or look at it", state,
          settled_ > 0 ? fmt::format("no {} steps since the last injury", kSettle) : "no step",
          absl::FormatDuration(options_.wait)));
    absl::SleepFor(kLook);
  }
}

// Nodes that it had come back, and the job grows with them: in the middle of that nobody could say
// what an injury did. Not for ever: they may stay away.
bool Drill::Grows(int64_t nodes) {
  if (nodes >= nodes_most_) {
    grows_until_ = absl::InfiniteFuture();
    return false;
  }
  if (grows_until_ == absl::InfiniteFuture()) grows_until_ = MonotonicNow() + kReturn;
  return MonotonicNow() < grows_until_;
}

// What nodes say that they run may be a moment old.
absl::StatusOr<DrillTarget> Drill::AwaitTarget(const DrillKind& kind) {
  const uint32_t random = RandomBits(options_.seed, RandomPurpose::kDrill, 0, injuries_)[0];
  const absl::Time deadline = MonotonicNow() + std::min(kLag, options_.wait);
  for (;;) {
    ASSIGN_OR_RETURN(const Json status, AwaitWhole(kind));
    const auto generation = status.find("generation");
    runs_ = story_.generation();
    if (generation != status.end() && generation->is_number_unsigned())
      runs_ = std::max(runs_, generation->get<uint64_t>());
    absl::StatusOr<DrillTarget> target = ChooseTarget(kind, status, random);
    if (target.ok() || !absl::IsFailedPrecondition(target.status()) || MonotonicNow() >= deadline)
      return target;
    absl::SleepFor(kLook);
  }
}

// ---- an injury

absl::StatusOr<Injury> Drill::Injure(const DrillKind& kind) {
  ASSIGN_OR_RETURN(const DrillTarget target, AwaitTarget(kind));
  ++injuries_;
  const bool slow = kind.act == DrillAct::kSlowRank;
  const absl::Duration pace_time = std::min(options_.wait / kPacePart, kPaceMax);
  const double pace = slow ? Watch(pace_time, nullptr, {}) : 0;
  story_.Forget();
  Injury injury{.kind = &kind,
                .node = target.node,
                .rank = target.rank,
                .process = target.processes.front().pid(),
                .generation = runs_};
  injury.clock = Clock();
  nlohmann::json told_before = {{"kind", kind.name},
                                {"node", injury.node},
                                {"rank", injury.rank},
                                {"process", injury.process},
                                {"clock", Round(injury.clock)}};
  if (kind.act == DrillAct::kCorruptRank) {
    injury.flip = RandomFlip();
    told_before["flip"] = JsonOf(*injury.flip);
  }
  RETURN_IF_ERROR(journal_->Append("drill", told_before));
  RETURN_IF_ERROR(Mark(target));
  RETURN_IF_ERROR(Strike(target, injury));
  Follow(target, injury);
  if (injury.recovered) settled_ = story_.step() + kSettle;
  if (slow) {
    injury.pace->before = pace;
    injury.pace->after = Watch(pace_time, nullptr, {});
  }
  const nlohmann::json told = ToJson(injury);
  (void)journal_->Append("drill_over", told);
  return injury;
}

// In the book of nodes, which outlives the job: the next ones are not to do without a good node.
absl::Status Drill::Mark(const DrillTarget& target) const {
  if (target.node_name.empty() || target.slurm_job == 0 || options_.hold_against)
    return absl::OkStatus();
  return NodeBook(options_.run_directory)
      .Append(fmt::format("drill-{}-{}", target.slurm_job, ::getpid()),
              {.node = target.node_name,
               .time = absl::Now(),
               .kind = EvidenceKind::kDrilled,
               .generation = runs_,
               .job = std::to_string(target.slurm_job)});
}

// Any bit anywhere.
Flip Drill::RandomFlip() const {
  const auto bits = RandomBits(options_.seed, RandomPurpose::kDrill, 1, injuries_);
  return {.place = static_cast<FlipPlace>(bits[0] % kFlipPlaces),
          .element = static_cast<int64_t>(bits[1]),
          .bit = static_cast<int>(bits[2] % 32)};
}

// Those that were to be hit after another one may have died with it.
absl::Status Drill::Strike(const DrillTarget& target, Injury& injury) {
  injury.clock = Clock();
  switch (injury.kind->act) {
    case DrillAct::kKillRank:
    case DrillAct::kKillNode:
    case DrillAct::kKillAgent:
    case DrillAct::kKillCoordinator:
      RETURN_IF_ERROR(target.processes.front().Signal(SIGKILL));
      for (const HeldProcess& process : target.processes) (void)process.Signal(SIGKILL);
      return absl::OkStatus();
    case DrillAct::kStopRank:
      return target.processes.front().Signal(SIGSTOP);
    case DrillAct::kSlowRank:
      Slow(target.processes.front(), injury);
      return absl::OkStatus();
    case DrillAct::kCorruptRank:
      RETURN_IF_ERROR(LeaveDrillFlip(options_.run_directory, target.node,
                                     {.local_rank = target.local_rank, .flip = *injury.flip}));
      return target.processes.front().Signal(kDrillFlipSignal);
  }
  return absl::OkStatus();
}

// Reads the journal for so long or until something is seen, while `slow` runs in turns; neither may
// be. The steps a second that were told meanwhile.
double Drill::Watch(absl::Duration most, const HeldProcess* slow,
                    const std::function<bool()>& seen) {
  const absl::Time begin = MonotonicNow();
  if (!Read().ok()) return 0;
  int64_t last = story_.step(), steps = 0;
  while (MonotonicNow() < begin + most && !Interrupted() && !(seen && seen())) {
    // One that has ended needs no turns.
    if (slow != nullptr && slow->Signal(SIGSTOP).ok()) {
      absl::SleepFor(kStands);
      (void)slow->Signal(SIGCONT);
      absl::SleepFor(kRunsOn);
    } else {
      absl::SleepFor(kLook);
    }
    if (!Read().ok()) break;
    steps += std::max<int64_t>(story_.step() - std::exchange(last, story_.step()), 0);
  }
  return static_cast<double>(steps) / absl::ToDoubleSeconds(MonotonicNow() - begin);
}

// Until the job has named it and has done about it what it does, if anything.
void Drill::Slow(const HeldProcess& process, Injury& injury) {
  const auto named = [&] {
    for (const SlowRank& rank : story_.slow())
      if (!injury.named.has_value() && rank.node == injury.node) injury.named = rank;
    return injury.named.has_value();
  };
  const auto acts = [&] { return !story_.recoveries().empty() || !JobIsOver().empty(); };
  injury.pace = Pace{.during = Watch(options_.wait, &process, named)};
  if (!injury.named.has_value()) return;
  (void)Watch(kActs, &process, acts);
  if (acts())
    (void)Watch(options_.wait, &process, [&] {
      return story_.recoveries().empty() || story_.recoveries().front().stepped.has_value() ||
             !JobIsOver().empty();
    });
}

// Empty: it goes on.
std::string Drill::JobIsOver() const {
  const absl::StatusOr<Json> status = ReadStatus(options_.run_directory);
  if (!status.ok()) return Message(status.status());
  const std::string state = StateOf(*status);
  return Live(state) ? "" : fmt::format("the job is {}", state);
}

// What is to be seen has been.
bool Drill::Over(const Injury& injury, int64_t step_then) const {
  const std::vector<Recovery>& recoveries = story_.recoveries();
  // Rank 0 tells a step a moment after the coordinator has seen it: those that were taken again
  // must be compared.
  if (!recoveries.empty()) {
    const Recovery& first = recoveries.front();
    return first.stepped.has_value() &&
           story_.Told(first.next, first.resumed + std::max<int64_t>(first.redone, 1));
  }
  // It was stopping anyway, and nobody had to notice.
  if (story_.generation() > injury.generation && story_.stepped()) return true;
  if (!injury.kind->tolerable || story_.step() <= step_then) return false;
  return injury.kind->act == DrillAct::kSlowRank || story_.taken_over();
}

void Drill::Follow(const DrillTarget& target, Injury& injury) {
  const absl::Time deadline = MonotonicNow() + options_.wait;
  absl::Status read = Read();
  int64_t step_then = story_.step();
  bool took_over = story_.taken_over();
  std::string over;
  bool seen = false;
  while (read.ok() && MonotonicNow() < deadline && over.empty() && !Interrupted()) {
    seen = Over(injury, step_then);
    if (seen) break;
    over = JobIsOver();
    absl::SleepFor(kLook);
    read = Read();  // Also when it is over: what it said last counts.
    // A step counts that was made under the new coordinator.
    if (story_.taken_over() && !std::exchange(took_over, true)) step_then = story_.step();
    if (!over.empty()) seen = Over(injury, step_then);
  }
  const HeldProcess& hit = target.processes.front();
  const bool remains = injury.kind->act == DrillAct::kStopRank && hit.Lives();
  if (remains) (void)hit.Signal(SIGCONT);
  if (!story_.recoveries().empty()) injury.recovery = story_.recoveries().front();
  injury.tolerated = seen && !injury.recovery.has_value();
  injury.told_twice = story_.told_twice();
  injury.disagreements = story_.disagreements();
  const bool named = injury.kind->act != DrillAct::kCorruptRank || NamesCulprit(injury);
  const bool unnamed = injury.pace.has_value() && !injury.named.has_value();
  injury.recovered = seen && !remains && named && !unnamed && injury.disagreements.empty();
  if (!injury.disagreements.empty()) {
    const LossDisagreement& first = injury.disagreements.front();
    injury.words = fmt::format("step {} gave loss {} in generation {} and {} in generation {}",
                               first.step, first.loss_bits, first.generation, first.other_loss_bits,
                               first.other_generation);
  } else if (!read.ok()) {
    injury.words = Message(read);
  } else if (unnamed && over.empty() && !Interrupted()) {
    injury.words = fmt::format(
        "it was a third as fast for {} and nobody named it: a job of one replica compares nobody, "
        "and job.slow_window says for how long others do",
        absl::FormatDuration(options_.wait));
  } else if (!seen) {
    injury.words = !over.empty()   ? over
                   : Interrupted() ? "interrupted"
                                   : fmt::format("no recovery in {}: look at journal.jsonl",
                                                 absl::FormatDuration(options_.wait));
  } else if (remains) {
    injury.words = "the rank that was stopped was not replaced; it goes on now";
  } else if (!named) {
    injury.words = fmt::format("rank {}, whose memory was changed, was not found out", injury.rank);
  } else if (injury.tolerated) {
    injury.words = story_.generation() > injury.generation
                       ? fmt::format("generation {} was to come anyway", story_.generation())
                   : story_.taken_over() ? std::string("went on under another coordinator")
                                         : std::string("went on");
  } else {
    const Recovery& recovery = *injury.recovery;
    injury.words = fmt::format("from {} at step {}; {}{}", recovery.from, recovery.resumed,
                               recovery.kind.empty() ? "cause not known" : recovery.kind,
                               recovery.noticed.empty() ? "" : ", " + recovery.noticed);
  }
  if (injury.named.has_value())
    injury.words +=
        fmt::format("; rank {} on node {} was named after {:.1f} s: {}", injury.named->rank,
                    injury.named->node, injury.named->named.clock - injury.clock,
                    WordsOf(EvidenceKind::kSlow, injury.named->percent));
}

// ---- what it came to

std::optional<InjuryTimes> TimesOf(const Injury& injury) {
  if (!injury.recovery.has_value()) return std::nullopt;
  const Recovery& r = *injury.recovery;
  if (!r.formed.has_value() || !r.restored.has_value() || !r.stepped.has_value())
    return std::nullopt;
  // All processes are of one machine.
  return InjuryTimes{.detect = r.detected.clock - injury.clock,
                     .re_form = SecondsBetween(r.detected, *r.formed, true),
                     .restore = SecondsBetween(*r.formed, *r.restored, true),
                     .first_step = SecondsBetween(*r.restored, *r.stepped, true),
                     .total = r.stepped->clock - injury.clock};
}

Json ToJson(const Injury& injury) {
  Json json = {{"kind", injury.kind->name},     {"node", injury.node},
               {"rank", injury.rank},           {"process", injury.process},
               {"clock", Round(injury.clock)},  {"generation", injury.generation},
               {"recovered", injury.recovered}, {"tolerated", injury.tolerated}};
  if (injury.flip.has_value()) json["flip"] = JsonOf(*injury.flip);
  if (injury.recovery.has_value()) {
    const Recovery& r = *injury.recovery;
    json["next"] = r.next;
    json["failure"] = r.kind;
    json["noticed"] = r.noticed;
    json["from"] = r.from;
    json["step"] = r.step;
    json["resumed"] = r.resumed;
    json["redone"] = r.redone;
  }
  if (const std::optional<InjuryTimes> times = TimesOf(injury); times.has_value()) {
    json["detect"] = Round(times->detect);
    json["re_form"] = Round(times->re_form);
    json["restore"] = Round(times->restore);
    json["first_step"] = Round(times->first_step);
    json["total"] = Round(times->total);
  }
  if (injury.named.has_value()) {
    json["named"] = Round(injury.named->named.clock - injury.clock);
    json["percent"] = injury.named->percent;
  }
  if (injury.pace.has_value())
    json["steps_per_second"] = {{"before", Round(injury.pace->before)},
                                {"during", Round(injury.pace->during)},
                                {"after", Round(injury.pace->after)}};
  json["told_twice"] = injury.told_twice;
  json["disagreements"] = Json::array();
  for (const LossDisagreement& d : injury.disagreements)
    json["disagreements"].push_back({{"step", d.step},
                                     {"generations", {d.generation, d.other_generation}},
                                     {"loss_bits", {d.loss_bits, d.other_loss_bits}}});
  json["words"] = injury.words;
  return json;
}

}  // namespace perdure
