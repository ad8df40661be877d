#include "tests/agent/job_stage.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "runtime/agent/log_layouts.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/train/trainer_harness.h"

namespace perdure {
namespace {

std::string LinkedTransport() {
  for (const std::string& kind : LinkedTransports())
    if (kind != "local") return kind;
  return "";
}

}  // namespace

absl::StatusOr<RunConfig> StageConfig(const std::string& text) {
  RunConfig config = TinyConfig();
  std::istringstream words(text);
  if (!(words >> config.phases[0].samples >> config.layout.transport))
    return InvalidArgument("'{}' is no configuration of a stage", text);
  config.job.health_check = false;
  if (std::string memory; words >> memory && memory == "forgets") config.snapshot.every = 0;
  return config;
}

JobStage::JobStage(int samples)
    : shelves_(MemoryDirectory()), loop_(*EventLoop::New()), oom_(OomKills::OfThisProcess()) {
  WriteTinyData(directory_.path());
  PERDURE_CHECK(MakeDirectories(run() + "/ckpt").ok());
  PERDURE_CHECK(MakeDirectories(directory_.path() + "/logs").ok());
  log_ = *ControlLog::New(loop_.get(), *RunLog::Open(run()));
  run_id_ = log_->run_id();
  options.run_directory = run();
  options.job = 1;
  options.nodes = 4;
  options.control.gather = absl::Seconds(1);
  options.control.save_every = absl::Hours(1);
  // The machine may be busy with other tests.
  options.control.node_silence = absl::Seconds(4);
  options.control.stop_max = absl::Seconds(10);
  options.control.stall_min = absl::Seconds(30);
  options.rule = {.data = 0,
                  .data_min = 1,
                  .leaves = 1 << 20,
                  .grow_after = absl::Milliseconds(200),
                  .wait_max = absl::Minutes(5)};
  ranks.argv = {PERDURE_BINARY_DIR "/tests/tiny_rank"};
  ranks.environment = {"UCX_HANDLE_ERRORS=none", "OMP_WAIT_POLICY=passive"};
  ranks.log_directory = directory_.path() + "/logs";
  ranks.config = fmt::format("{} {}", samples, LinkedTransport());
  ranks.data_directory = directory_.path();
  ranks.run_directory = run();
  ranks.run_id = run_id_;
}

JobStage::~JobStage() {
  for (auto& [_, node] : nodes_) node.agent.reset();
  for (auto& [_, node] : nodes_) node.ranks.reset();
  log_.reset();
  for (auto& [_, node] : nodes_)
    if (node.shelf != nullptr) node.shelf->Remove();
}

bool JobStage::Possible() { return !LinkedTransport().empty(); }

JobNode& JobStage::Start(NodeId id) {
  Kill(id);
  JobNode* const node = &nodes_[id];
  node->shelf = *SnapshotShelf::Open(
      {.directory = shelves_.path(), .run_id = run_id_, .job = options.job, .node = id});
  node->store = *RunCheckpoints::New(
      loop_.get(),
      {.run_directory = run(),
       .job = options.job,
       .config = *StageConfig(ranks.config),
       .ranks_per_node = 1},
      {.event = [](const std::string&, const Json&) {},
       .warn =
           [this, id](const std::string& line) {
             story_.push_back(fmt::format("node {}'s store: {}", id, line));
           },
       .note = [node](uint64_t tag) { return node->agent->TellLead(Coordinator::Note{tag}); },
       .print = [text = ranks.config](const RunConfig&) { return text; },
       .missing_exports = [](const RunLog&) { return std::vector<CheckpointEntry>(); },
       .export_checkpoint = [](const CheckpointEntry&) { return absl::OkStatus(); }});
  ProcessRanksOptions mine = ranks;
  mine.node = id;
  node->ranks = std::make_unique<ProcessRanks>(
      loop_.get(), &oom_, node->shelf.get(), mine,
      ProcessRanksHooks{
          .tell = [node](Member::Event event) { node->agent->Tell(std::move(event)); },
          .layouts =
              [this](std::vector<Generation> generations, auto then) {
                ReadLayouts(loop_.get(), log_.get(), std::move(generations), std::move(then));
              },
          .send_snapshot =
              [node](NodeId to, const SnapshotFrame& frame) {
                return node->agent->SendSnapshot(to, frame);
              },
          .failed =
              [this, id](const RankFailure& failure) {
                story_.push_back(fmt::format("node {} rank {}: {}: {}", id, failure.rank,
                                             WordsOf(failure.kind, failure.number), failure.words));
                failures.emplace_back(id, failure);
              },
          .step = [this](Generation generation,
                         const StepReport& report) { OnStep(generation, report); },
          .remark =
              [this, id](const std::string& line) {
                story_.push_back(fmt::format("node {}'s ranks: {}", id, line));
              }});
  AgentOptions agent = options;
  agent.node = id;
  node->agent = *Agent::New(loop_.get(), log_.get(), agent, node->ranks.get(), node->store.get(),
                            {.remark =
                                 [this, id](const std::string& text) {
                                   story_.push_back(fmt::format("node {}: {}", id, text));
                                 },
                             .evidence = [](const Coordinator::Evidence&) {},
                             .ended =
                                 [node](int code) {
                                   node->exit_code = code;
                                   node->ranks->End([node] {
                                     node->ended = true;
                                     node->shelf->Remove();
                                   });
                                 }});
  return *node;
}

void JobStage::Kill(NodeId id) {
  const auto at = nodes_.find(id);
  if (at == nodes_.end()) return;
  at->second.agent.reset();
  at->second.ranks.reset();
  stores_.push_back(std::move(at->second.store));
  nodes_.erase(at);
}

pid_t JobStage::PidOf(NodeId node, int32_t local_rank) {
  for (const ProcessRanks::Running& rank : at(node).ranks->running())
    if (rank.local_rank == local_rank) return rank.pid;
  return 0;
}

void JobStage::OnStep(Generation generation, const StepReport& report) {
  if (!pids.contains(generation)) {
    std::map<int32_t, pid_t> by_rank;
    for (const auto& [_, node] : nodes_)
      for (const ProcessRanks::Running& rank : node.ranks->running())
        if (rank.rank >= 0) by_rank[rank.rank] = rank.pid;
    for (const auto& [_, pid] : by_rank) pids[generation].push_back(pid);
  }
  if (report.seconds == 0) return;  // Told again.
  steps.push_back({generation, report});
  if (on_step) on_step(steps.back());
}

bool JobStage::Until(const std::function<bool()>& done, absl::Duration within) {
  const absl::Time end = MonotonicNow() + within;
  while (!done()) {
    if (MonotonicNow() > end) return false;
    loop_->RunOnce(MonotonicNow() + absl::Milliseconds(10));
  }
  return true;
}

int JobStage::Completed() {
  const bool ended = Until([this] {
    return std::all_of(nodes_.begin(), nodes_.end(),
                       [](const auto& entry) { return entry.second.ended; });
  });
  if (!ended) return -1;
  int code = 0;
  for (const auto& [_, node] : nodes_) code = std::max(code, *node.exit_code);
  return code;
}

std::vector<StartRecord> JobStage::Starts() const {
  std::vector<StartRecord> starts;
  for (const Record& record : Records())
    if (record.type == RecordType::kStart) starts.push_back(*ParseStart(record.body));
  return starts;
}

CommitRecord JobStage::LastCommit() const {
  CommitRecord last;
  for (const Record& record : Records())
    if (record.type == RecordType::kCommit) last = *ParseCommit(record.body);
  return last;
}

std::string JobStage::Story() const {
  std::string story;
  for (const std::string& line : story_) story += line + "\n";
  for (const Step& step : steps)
    story += fmt::format("g{} s{} {:.6f}\n", step.generation, step.report.step, step.report.loss);
  return story;
}

}  // namespace perdure
