#include "launch/node_agent.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "launch/agent_record.h"
#include "launch/backend.h"
#include "launch/chain.h"
#include "launch/config.h"
#include "launch/device_comparison.h"
#include "launch/drill_flip.h"
#include "launch/exec_options.h"
#include "launch/exit_codes.h"
#include "launch/job_clock.h"
#include "launch/job_evidence.h"
#include "launch/job_health.h"
#include "launch/layout_rule.h"
#include "launch/live_facts.h"
#include "launch/run_data.h"
#include "launch/run_export.h"
#include "launch/run_exporter.h"
#include "launch/slurm/scheduler.h"
#include "launch/triggers.h"
#include "runtime/agent/agent.h"
#include "runtime/agent/command_ranks.h"
#include "runtime/agent/job_start.h"
#include "runtime/agent/log_layouts.h"
#include "runtime/agent/process.h"
#include "runtime/agent/process_ranks.h"
#include "runtime/agent/run_checkpoints.h"
#include "runtime/agent/snapshot_shelf.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/agent/worker.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"
#include "runtime/train/schedule_math.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// How often what people read is brought up to date.
constexpr absl::Duration kTell = absl::Milliseconds(200);
// Each look is two calls to a file system that others share.
constexpr absl::Duration kTriggers = absl::Seconds(2);

Json Described(const std::vector<SaveWatch::Stall>& stalls) {
  Json list = Json::array();
  for (const SaveWatch::Stall& stall : stalls)
    list.push_back({{"what", stall.what}, {"seconds", absl::ToDoubleSeconds(stall.waited)}});
  return list;
}

class NodeAgent {
 public:
  NodeAgent(const NodeAgentOptions& options, RunConfig config)
      : options_(options),
        config_(std::move(config)),
        oom_(OomKills::OfThisProcess()),
        asked_(options.stops) {}

  absl::Status Begin();
  int Run();

 private:
  absl::Status OpenClock();
  absl::Status OpenExporter();
  absl::Status OpenRecords();
  absl::Status OpenCheckpoints();
  void OpenRanks(const std::string& run_id);
  absl::Status OpenCommand(const std::string& run_id);
  AgentOptions OptionsOfAgent(int64_t step) const;
  int64_t Cores() const;
  void OnFailure(const RankFailure& failure);
  void OnDrillFlip();
  void OnEvidence(const Coordinator::Evidence& evidence);
  void OnWentBack(const Coordinator::WentBack& went);
  void OnStep(Generation generation, const StepReport& report);
  void OnWaiting(StepIndex step, StepIndex unsettled,
                 const std::vector<SaveWatch::Stall>& under_way);
  void OnStalls(StepIndex step, const std::vector<SaveWatch::Stall>& stalls);
  void OnFormed(const Coordinator::AllPresent& said);
  void LeaveInTime();
  void LookForTriggers();
  void OnTriggers(const Triggers& asked);
  Json OfRanks(const std::vector<SaveWatch::Stall>& stalls) const;
  void Tell();
  Json State() const;
  uint64_t StartOf(pid_t pid);
  LiveFacts Live(const std::string& state) const;
  void End(int exit_code);

  const NodeAgentOptions options_;
  const RunConfig config_;
  OomKills oom_;
  std::string logs_;  // RUN/jobs/<job>.
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<AgentRecord> record_;
  std::unique_ptr<JobHealth> health_;
  std::unique_ptr<JobEvidence> evidence_;
  std::unique_ptr<JobClock> clock_;
  std::unique_ptr<RunExporter> exporter_;
  std::unique_ptr<SnapshotShelf> shelf_;
  std::unique_ptr<RunCheckpoints> checkpoints_;
  std::unique_ptr<ControlLog> log_;
  std::unique_ptr<ProcessRanks> ranks_;
  // In place of checkpoints_ and ranks_ where the trainer is not ours.
  std::unique_ptr<ForeignCheckpoints> no_checkpoints_;
  std::unique_ptr<CommandRanks> command_;
  std::unique_ptr<Agent> agent_;
  const uint64_t start_ = ProcessStart(::getpid());
  std::map<pid_t, uint64_t> starts_;  // Of ranks' processes.
  std::unique_ptr<Worker> worker_;    // Reads what nodes say for people.
  bool asked_ = false;                // To stop.
  std::unique_ptr<DeviceComparison> devices_;
  absl::Time triggers_at_ = absl::InfinitePast();  // When they are looked for again.
  std::optional<int> exit_code_;
};

absl::Status NodeAgent::OpenRecords() {
  logs_ = fmt::format("{}/jobs/{}", options_.run_directory, options_.job);
  RETURN_IF_ERROR(MakeDirectories(logs_));
  RETURN_IF_ERROR(MakeDirectories(options_.run_directory + "/triggers"));
  ASSIGN_OR_RETURN(record_, AgentRecord::Open(options_.run_directory, config_, options_.quiet));
  health_ = std::make_unique<JobHealth>(
      static_cast<int>(options_.node),
      JobHealth::Hooks{.event = [this](const std::string& event,
                                       const Json& fields) { record_->Event(event, fields); },
                       .warn = [this](const std::string& line) { record_->Say(line); }});
  evidence_ =
      std::make_unique<JobEvidence>(JobEvidence::Options{.run_directory = options_.run_directory,
                                                         .job = options_.job,
                                                         .node = options_.node,
                                                         .names = options_.names},
                                    [this](const std::string& line) { record_->Say(line); });
  return absl::OkStatus();
}

absl::Status NodeAgent::OpenCheckpoints() {
  ASSIGN_OR_RETURN(
      checkpoints_,
      RunCheckpoints::New(
          loop_.get(),
          {.run_directory = options_.run_directory,
           .job = options_.job,
           .config = config_,
           .ranks_per_node = options_.ranks_per_node,
           .retry = options_.retry,
           .data_files = DataFiles(config_, options_.data_directory)},
          {.event = [this](const std::string& what,
                           const Json& fields) { record_->Event(what, fields); },
           .warn = [this](const std::string& line) { record_->Say(line); },
           .note = [this](uint64_t tag) { return agent_->TellLead(Coordinator::Note{tag}); },
           .print = PrintConfig,
           .missing_exports =
               [directory = options_.run_directory, config = config_.checkpoint](
                   const RunLog& log) { return MissingExports(log, directory, config); },
           .export_checkpoint =
               [directory = options_.run_directory,
                config = config_](const CheckpointEntry& entry) {
                 return ExportFromRun(directory, entry, config);
               }}));
  return absl::OkStatus();
}

// That the ranks of this node share.
int64_t NodeAgent::Cores() const {
  return options_.cores > 0 ? options_.cores
                            : static_cast<int64_t>(std::thread::hardware_concurrency());
}

void NodeAgent::OpenRanks(const std::string& run_id) {
  ProcessRanksOptions options{
      .node = options_.node,
      .argv = {"/proc/self/exe", "rank"},
      .environment = RankEnvironment(config_),
      .log_directory = logs_,
      .config = PrintConfig(config_),
      .data_directory = options_.data_directory,
      .run_directory = options_.run_directory,
      .run_id = run_id,
      .ranks_per_file = RanksPerFile(config_.checkpoint, options_.ranks_per_node),
      .cores = Cores(),
      .threads_per_rank = config_.numerics.threads,
      .until_step = options_.until_step};
  ProcessRanksHooks hooks{.tell = [this](Member::Event event) { agent_->Tell(std::move(event)); },
                          .layouts =
                              [this](std::vector<Generation> generations, auto then) {
                                ReadLayouts(loop_.get(), log_.get(), std::move(generations),
                                            std::move(then));
                              }};
  hooks.send_snapshot = [this](NodeId to, const SnapshotFrame& frame) {
    return agent_->SendSnapshot(to, frame);
  };
  hooks.failed = [this](const RankFailure& failure) { OnFailure(failure); };
  hooks.step = [this](Generation generation, const StepReport& report) {
    OnStep(generation, report);
  };
  hooks.waiting = [this](auto... waits) { OnWaiting(waits...); };
  hooks.stalls = [this](auto... stalls) { OnStalls(stalls...); };
  hooks.connected = [this](Generation generation) { agent_->RanksConnected(generation); };
  hooks.certificate = [this](Generation generation, StepIndex step, const Digest& certificate) {
    record_->Event(
        "loaded", {{"generation", generation}, {"step", step}, {"certificate", certificate.Hex()}});
    record_->Say(fmt::format("generation {} goes on from step {}, certificate {}", generation, step,
                             certificate.Hex()));
  };
  hooks.health = [this](int32_t local_rank, int32_t rank, const Json& report) {
    health_->OnHealth(local_rank, rank, report);
  };
  hooks.evidence = [this](int32_t local_rank, int32_t rank, const Json& evidence) {
    health_->OnEvidence(local_rank, rank, evidence);
    evidence_->HearDevice(absl::Now(), ranks_->generation(), evidence);
  };
  hooks.remark = [this](const std::string& line) {
    record_->Event("remark", {{"node", options_.node}, {"line", line}});
    record_->Say(line);
  };
  ranks_ =
      std::make_unique<ProcessRanks>(loop_.get(), &oom_, shelf_.get(), options, std::move(hooks));
}

// The trainer is not ours.
absl::Status NodeAgent::OpenCommand(const std::string& run_id) {
  ASSIGN_OR_RETURN(CommandRanksOptions options, CommandOptionsOf(config_.exec, options_, run_id));
  options.log_directory = logs_;
  CommandRanks::Hooks hooks{
      .tell = [this](Member::Event event) { agent_->Tell(std::move(event)); }};
  hooks.failed = [this](const RankFailure& failure) { OnFailure(failure); };
  hooks.connected = [this](Generation generation) { agent_->RanksConnected(generation); };
  hooks.left = [this](Generation generation, absl::Duration took, int killed) {
    const double seconds = absl::ToDoubleSeconds(took);
    record_->Event("trainer_left", {{"generation", generation},
                                    {"node", options_.node},
                                    {"seconds", seconds},
                                    {"killed", killed}});
    if (killed > 0)
      record_->Say(fmt::format(
          "node {}: {} ranks had not left {:.0f} s after SIG{} and were killed: does the trainer "
          "save and leave when it gets it? (exec.signal, exec.leave)",
          options_.node, killed, seconds, config_.exec.signal));
  };
  no_checkpoints_ = std::make_unique<ForeignCheckpoints>();
  command_ = std::make_unique<CommandRanks>(loop_.get(), &oom_, std::move(options), hooks);
  return absl::OkStatus();
}

AgentOptions NodeAgent::OptionsOfAgent(int64_t step) const {
  const StepSchedule schedule(config_);
  AgentOptions options{.run_directory = options_.run_directory,
                       .job = options_.job,
                       .node = options_.node,
                       .nodes = options_.nodes,
                       .slots = options_.ranks_per_node >= 64
                                    ? ~uint64_t{0}
                                    : (uint64_t{1} << options_.ranks_per_node) - 1,
                       .domain = options_.domain,
                       .interface = options_.interface};
  options.control.save_every = config_.checkpoint.every > absl::ZeroDuration()
                                   ? config_.checkpoint.every
                                   : absl::InfiniteDuration();
  options.control.slow_window = config_.job.slow_window;
  options.control.slow_percent = config_.job.slow_percent;
  options.control.slow_clear_percent = 100 + (config_.job.slow_percent - 100) / 2;
  options.control.slow_retry = config_.job.slow_retry;
  if (config_.foreign()) SetControlFor(config_.exec, options.control);
  const bool stops = options_.until_step >= 0 && options_.until_step < schedule.steps();
  options.control.done_code = stops ? kExitStopped : kExitComplete;
  options.rule = LayoutRuleOf(config_, step, options_.nodes, options_.ranks_per_node);
  return options;
}

absl::Status NodeAgent::Begin() {
  RETURN_IF_ERROR(OpenRecords());
  ASSIGN_OR_RETURN(loop_, EventLoop::New());
  const int signals[] = {SIGTERM, SIGINT, SIGUSR1, kDrillFlipSignal};
  RETURN_IF_ERROR(loop_->AddSignals(signals, [this](int signal) {
    asked_ |= signal == SIGTERM;
    if (signal == SIGUSR1) clock_->AskNow();
    if (signal == kDrillFlipSignal) OnDrillFlip();
  }));
  // Threads, which inherit that signals are blocked, come behind.
  RETURN_IF_ERROR(OpenClock());
  RETURN_IF_ERROR(OpenExporter());
  ASSIGN_OR_RETURN(worker_, Worker::Start());
  RETURN_IF_ERROR(
      loop_->AddFd(worker_->fd(), EventLoop::kReadable, [this](uint32_t) { worker_->Drain(); }));
  devices_ = std::make_unique<DeviceComparison>(
      worker_.get(), logs_, [this](const std::string& line) { record_->Say(line); });
  ASSIGN_OR_RETURN(RunLog log, RunLog::Open(options_.run_directory));
  const std::string run_id = log.run_id();
  int64_t step = 0;
  for (const CheckpointEntry& entry : ListCheckpoints(log, options_.run_directory))
    step = std::max(step, entry.commit.step);
  if (config_.snapshot.every > 0 && !config_.foreign()) {
    ASSIGN_OR_RETURN(shelf_, SnapshotShelf::Open({.directory = config_.snapshot.directory,
                                                  .run_id = run_id,
                                                  .job = options_.job,
                                                  .node = options_.node}));
  }
  if (!config_.foreign()) RETURN_IF_ERROR(OpenCheckpoints());
  ASSIGN_OR_RETURN(log_, ControlLog::New(loop_.get(), std::move(log)));
  if (config_.foreign())
    RETURN_IF_ERROR(OpenCommand(run_id));
  else
    OpenRanks(run_id);
  NodeRanks* const ranks =
      config_.foreign() ? static_cast<NodeRanks*>(command_.get()) : ranks_.get();
  CheckpointStore* const checkpoints =
      config_.foreign() ? static_cast<CheckpointStore*>(no_checkpoints_.get()) : checkpoints_.get();
  ASSIGN_OR_RETURN(
      agent_,
      Agent::New(
          loop_.get(), log_.get(), OptionsOfAgent(step), ranks, checkpoints,
          {.remark =
               [this](const std::string& text) {
                 record_->Event("remark", {{"node", options_.node}, {"line", text}});
                 record_->Say(text);
               },
           .formed = [this](const Coordinator::AllPresent& said) { OnFormed(said); },
           .evidence = [this](const Coordinator::Evidence& evidence) { OnEvidence(evidence); },
           .went_back = [this](const Coordinator::WentBack& went) { OnWentBack(went); },
           .phase = [this](std::string_view event,
                           const Json& fields) { record_->Event(event, fields); },
           .ended = [this](int exit_code) { End(exit_code); }}));
  Tell();
  return absl::OkStatus();
}

absl::StatusOr<absl::Time> EndOfJob(const std::string& job) {
  Scheduler scheduler(RunCommand);
  ASSIGN_OR_RETURN(const JobView view, scheduler.Job(job));
  if (!view.end.has_value()) return Internal("Slurm does not say when job {} ends", job);
  return *view.end;
}

absl::Status NodeAgent::OpenExporter() {
  ASSIGN_OR_RETURN(const WireAddress address, InterfaceAddress(options_.interface));
  ASSIGN_OR_RETURN(exporter_,
                   RunExporter::New(loop_.get(), {.run_directory = options_.run_directory,
                                                  .config = config_,
                                                  .address = HostText(address),
                                                  .warn = [this](const std::string& line) {
                                                    record_->Say(line);
                                                  }}));
  return absl::OkStatus();
}

absl::Status NodeAgent::OpenClock() {
  JobClock::Options options{
      .end = options_.ends_at,
      .ask = nullptr,
      .leave = {.save = config_.foreign() ? config_.exec.leave : SaveGuess(config_, options_.nodes),
                .margin = config_.job.leave_margin},
      .warn = [this](const std::string& line) { record_->Say(line); }};
  if (options_.slurm)
    options.ask = [job = JobText(static_cast<int64_t>(JobOf(options_.job)))]() {
      return EndOfJob(job);
    };
  ASSIGN_OR_RETURN(clock_, JobClock::New(loop_.get(), std::move(options)));
  return absl::OkStatus();
}

// By whoever leads: before the job's time is over.
void NodeAgent::LeaveInTime() {
  const Coordinator& lead = *agent_->lead();
  const absl::Time now = MonotonicNow();
  clock_->See(now, {.generation = lead.layout().generation,
                    .finished = lead.finished(),
                    .saving = lead.saving(),
                    .committed = lead.view().commit_step});
  if (asked_ || !clock_->Leaves(now)) return;
  asked_ = true;
  const Json reason = clock_->Reason(now);
  record_->Event("leaves", reason);
  record_->Say(
      fmt::format("the job's time is over in {:.0f} s, and to leave takes {:.0f} s (a step {:.2f}, "
                  "a save {:.1f}, "
                  "the rest is margin): stopping after this step with a checkpoint",
                  reason["left"].get<double>(), reason["needs"].get<double>(),
                  reason["step"].get<double>(), reason["save"].get<double>()));
}

// By whoever leads: what people ask for by files.
void NodeAgent::LookForTriggers() {
  if (MonotonicNow() < triggers_at_) return;
  triggers_at_ = absl::InfiniteFuture();
  worker_->Post([this, run = options_.run_directory]() -> Worker::Then {
    return [this, asked = TakeTriggers(run)] { OnTriggers(asked); };
  });
}

void NodeAgent::OnTriggers(const Triggers& asked) {
  triggers_at_ = MonotonicNow() + kTriggers;
  const auto say = [this](const char* what) {
    record_->Event("trigger", {{"what", what}});
    record_->Say(fmt::format("asked by {}/triggers/{}", options_.run_directory, what));
  };
  if (asked.save) {
    say("save");
    (void)agent_->TellLead(Coordinator::SaveNow{});
  }
  if (!asked.stop) return;
  say("stop");
  asked_ = true;
  const absl::StatusOr<Chain> chain = Chain::Open(options_.run_directory);
  if (absl::IsNotFound(chain.status())) return;
  const absl::Status stopped =
      chain.ok() ? chain->StopFor({.why = kStopTrigger,
                                   .job = static_cast<int64_t>(JobOf(options_.job)),
                                   .time = absl::Now()})
                 : chain.status();
  if (!stopped.ok()) record_->Say("the chain is not stopped: " + Message(stopped));
}

// A drill wants a bit of a rank's memory to be wrong.
void NodeAgent::OnDrillFlip() {
  const absl::StatusOr<DrillFlip> flip =
      TakeDrillFlip(options_.run_directory, static_cast<int64_t>(options_.node));
  const absl::Status done =
      ranks_ == nullptr ? Unimplemented("what a trainer has in memory is not known here")
      : flip.ok()       ? ranks_->Corrupt(static_cast<int32_t>(flip->local_rank), 0, flip->flip)
                        : flip.status();
  if (!done.ok())
    record_->Say(
        fmt::format("node {}: the drill's flip is not made: {}", options_.node, Message(done)));
}

void NodeAgent::OnEvidence(const Coordinator::Evidence& evidence) {
  Json fields = {
      {"node", evidence.node}, {"kind", NameOf(evidence.kind)}, {"number", evidence.number}};
  if (evidence.rank >= 0) {
    fields["rank"] = evidence.rank;
    fields["generation"] = agent_->lead()->layout().generation;
    fields["coordinator"] = options_.node;
    fields["clock"] = absl::ToDoubleSeconds(MonotonicNow() - absl::UnixEpoch());
  }
  record_->Event("evidence", fields);
  // Whoever ends a job may end its nodes one by one.
  if (asked_ && evidence.kind == EvidenceKind::kNodeLost) return;
  evidence_->Hear(absl::Now(), agent_->lead()->layout().generation, evidence.node, evidence.kind,
                  evidence.number);
}

void NodeAgent::OnWentBack(const Coordinator::WentBack& went) {
  const Gap& gap = went.bad.gap;
  record_->Event("rolled_back", {{"generation", went.generation},
                                 {"step", gap.bad_step},
                                 {"first_step", gap.first_step},
                                 {"samples", gap.samples},
                                 {"number", gap.number},
                                 {"reason", went.bad.why}});
  record_->Say(
      fmt::format("step {} is bad ({}): steps from {} on are taken again, on the samples behind "
                  "it; {} are left "
                  "out",
                  gap.bad_step, went.bad.why, gap.first_step, gap.samples));
}

void NodeAgent::OnFailure(const RankFailure& failure) {
  const std::string rank = failure.rank < 0 ? fmt::format("slot {}", failure.local_rank)
                                            : fmt::format("rank {}", failure.rank);
  record_->Say(fmt::format("{} (node {}, process {}): {}{}", rank, options_.node, failure.pid,
                           failure.words, health_->EvidenceOf(failure.local_rank)));
  record_->Event("rank_failed", {{"generation", failure.generation},
                                 {"rank", failure.rank},
                                 {"node", options_.node},
                                 {"local_rank", failure.local_rank},
                                 {"process", failure.pid},
                                 {"kind", NameOf(failure.kind)},
                                 {"number", failure.number},
                                 {"why", failure.words}});
}

void NodeAgent::OnStep(Generation generation, const StepReport& report) {
  const LayoutShape& shape = ranks_->shape();
  record_->Step(generation, shape.ranks(), report);
}

// ---- saves that take long

Json NodeAgent::OfRanks(const std::vector<SaveWatch::Stall>& stalls) const {
  Json list = Described(stalls);
  for (size_t i = 0; i < stalls.size(); ++i) {
    list[i]["rank"] = stalls[i].rank;
    list[i]["node"] = options_.node;
  }
  return list;
}

// Until now what took long cost nothing. Each node says what it does; where rank 0 is it is said in
// any case.
void NodeAgent::OnWaiting(StepIndex step, StepIndex unsettled,
                          const std::vector<SaveWatch::Stall>& under_way) {
  Json list = OfRanks(under_way);
  for (Json& own : Described(checkpoints_->UnderWay())) list.push_back(std::move(own));
  const std::vector<ProcessRanks::Running> running = ranks_->running();
  const bool first = std::any_of(running.begin(), running.end(),
                                 [](const ProcessRanks::Running& rank) { return rank.rank == 0; });
  if (list.empty() && !first) return;
  record_->Event("back_pressure", {{"step", step},
                                   {"generation", ranks_->generation()},
                                   {"unsettled", unsettled},
                                   {"under_way", std::move(list)}});
}

void NodeAgent::OnStalls(StepIndex step, const std::vector<SaveWatch::Stall>& stalls) {
  record_->Event(
      "save_stalls",
      {{"step", step}, {"generation", ranks_->generation()}, {"under_way", OfRanks(stalls)}});
  const SaveWatch::Stall& first = stalls.front();
  record_->Say(fmt::format(
      "warning: checkpoint of step {}: rank {} (node {}) has been {} for {:.0f} s{}; training goes "
      "on until the next one is due: does the file system of {}/ckpt answer?",
      step, first.rank, options_.node, first.what, absl::ToDoubleSeconds(first.waited),
      stalls.size() > 1 ? fmt::format(" ({} more are named in the journal)", stalls.size() - 1)
                        : "",
      options_.run_directory));
}

// ---- what the coordinator's agent says of a generation

void NodeAgent::OnFormed(const Coordinator::AllPresent& said) {
  const LogView& view = agent_->lead()->view();
  std::vector<FailedGeneration> failures = view.failures;
  if (view.last_failure.has_value()) failures.push_back(*view.last_failure);
  evidence_->Form(absl::Now(), said.generation, agent_->lead()->members(),
                  asked_ ? std::vector<FailedGeneration>{} : failures);
  const PlacedLayout& placed = agent_->lead()->layout();
  if (config_.foreign()) {
    record_->Event("generation", {{"generation", said.generation},
                                  {"ranks", placed.shape.ranks()},
                                  {"nodes", agent_->lead()->members().size()},
                                  {"command", config_.exec.command}});
    return;
  }
  devices_->Formed(said.generation);
  LayoutConfig layout = config_.layout;
  layout.tensor = placed.shape.tensor;
  layout.pipeline = placed.shape.pipeline;
  layout.data = placed.shape.data;
  const absl::StatusOr<ChosenName> chosen = ParseChosen(said.checkpoint);
  record_->Event(
      "generation",
      {{"generation", said.generation},
       {"layout", LayoutWords(layout)},
       {"ranks", layout.ranks()},
       {"nodes", agent_->lead()->members().size()},
       {"transport", layout.transport},
       {"backend", config_.numerics.backend},
       {"resumes", said.step},
       {"checkpoint",
        chosen.ok() ? fmt::format("{}/ckpt/{}", options_.run_directory, chosen->name) : ""}});
}

// ---- what people read

Json LayoutJson(const LayoutShape& shape, const RunConfig& config) {
  if (config.foreign()) return {{"ranks", shape.ranks()}};
  return {{"tensor", shape.tensor},
          {"pipeline", shape.pipeline},
          {"data", shape.data},
          {"zero", config.layout.zero}};
}

// Of the job, by whoever coordinates it.
Json NodeAgent::State() const {
  using Phase = Coordinator::Phase;
  const Coordinator& lead = *agent_->lead();
  const PlacedLayout& layout = lead.layout();
  const bool began = layout.generation != 0;
  std::string state = began ? "recovering" : "starting";
  if (lead.phase() == Phase::kRunning) state = "running";
  if (asked_ || lead.phase() == Phase::kEnding || lead.phase() == Phase::kEnded) state = "stopping";
  std::vector<NodeId> nodes = lead.members();
  Json slow = Json::array();
  for (const Coordinator::SlowNode& node : lead.slow())
    slow.push_back({{"node", node.node}, {"percent", node.percent}, {"left_out", node.avoided}});
  return {{"state", state},
          {"job", options_.job},
          {"slurm_job", options_.slurm ? JobOf(options_.job) : 0},
          {"coordinator", options_.node},
          {"generation", layout.generation},
          {"layout", LayoutJson(layout.shape, config_)},
          {"nodes", nodes},
          {"slow", slow},
          {"time_to_first_step", agent_->phases()->first_step()}};
}

// A number alone may be somebody else's by the time that it is read.
uint64_t NodeAgent::StartOf(pid_t pid) {
  uint64_t& start = starts_[pid];
  if (start == 0) start = ProcessStart(pid);
  return start;
}

void NodeAgent::Tell() {
  loop_->AddTimer(MonotonicNow() + kTell, [this] { Tell(); });
  Json ranks = Json::array();
  const std::vector<RankProcess> running =
      command_ != nullptr ? command_->processes() : ranks_->processes();
  for (const RankProcess& rank : running)
    if (rank.rank >= 0)
      ranks.push_back({{"rank", rank.rank},
                       {"local_rank", rank.local_rank},
                       {"pid", rank.pid},
                       {"start", StartOf(rank.pid)}});
  std::erase_if(starts_, [&](const auto& start) {
    return std::none_of(running.begin(), running.end(),
                        [&](const auto& rank) { return rank.pid == start.first; });
  });
  const bool named = options_.node < options_.names.size();
  record_->Node(logs_, {{"node", options_.node},
                        {"name", named ? options_.names[options_.node] : ""},
                        {"agent_pid", ::getpid()},
                        {"agent_start", start_},
                        {"ranks", ranks},
                        {"devices", health_->Devices()}});
  if (agent_->lead() == nullptr) {
    exporter_->Cease();
    return;
  }
  // A coordinator that came since does not know.
  LeaveInTime();
  LookForTriggers();
  if (asked_) (void)agent_->TellLead(Coordinator::EndJob{kExitStopped});
  const Json state = State();
  record_->Job(state);
  // Who still claims the lead may not get it.
  if (agent_->lead()->phase() != Coordinator::Phase::kClaiming)
    exporter_->Update(Live(state["state"]));
  devices_->Look(*agent_->lead());
}

LiveFacts NodeAgent::Live(const std::string& state) const {
  return LiveFactsOf(*agent_->lead(), config_, state, options_.names, options_.nodes,
                     clock_->EndsAt());
}

void NodeAgent::End(int exit_code) {
  if (exit_code_.has_value()) return;
  exit_code_ = exit_code;
  if (agent_->lead() != nullptr) evidence_->End(absl::Now());
  exporter_->End(exit_code == kExitComplete);
  const auto stop = [this] { loop_->Stop(); };
  if (command_ != nullptr)
    command_->End(stop);
  else
    ranks_->End(stop);
}

int NodeAgent::Run() {
  loop_->Run();
  worker_->Finish();
  loop_->RemoveFd(worker_->fd());
  agent_.reset();
  if (checkpoints_ != nullptr) checkpoints_->Finish();
  if (shelf_ != nullptr) shelf_->Remove();
  return *exit_code_;
}

}  // namespace

int RunNodeAgent(const NodeAgentOptions& options) {
  const auto refuse = [&](const absl::Status& status, int exit_code) {
    std::fprintf(stderr, "perdure agent: node %u: %s\n", options.node, Message(status).c_str());
    return exit_code;
  };
  const std::string path = options.run_directory + "/run.toml";
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return refuse(text.status(), kExitUsage);
  absl::StatusOr<RunConfig> config = ParseConfig(*text, path, {});
  if (!config.ok()) return refuse(config.status(), kExitUsage);
  NodeAgent agent(options, *std::move(config));
  if (const absl::Status begun = agent.Begin(); !begun.ok())
    return refuse(begun, absl::IsDataLoss(begun) ? kExitNoRestart : kExitFailed);
  return agent.Run();
}

}  // namespace perdure
