#include "launch/local_job.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "ckpt/checkpoint.h"
#include "launch/config.h"
#include "launch/job_health.h"
#include "launch/job_record.h"
#include "launch/local_checkpoint.h"
#include "launch/local_ranks.h"
#include "launch/run_data.h"
#include "launch/run_directory.h"
#include "model/parameters.h"
#include "monitoring/journal.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/agent/worker.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/train/plan.h"

namespace perdure {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

// After a rank has failed, how long others may take to tell what they saw before all are ended.
constexpr auto kGrace = std::chrono::milliseconds(1000);
// Steps behind a load that prove the checkpoint good.
constexpr int64_t kGoodSteps = 2;

class LocalJob {
 public:
  LocalJob(const LocalJobOptions& options, OpenedRun run)
      : options_(options),
        run_(std::move(run)),
        config_(run_.config),
        table_(ModelTensors(config_.model, config_.numerics.tensor_shards),
               config_.numerics.atom_elements),
        schedule_(config_) {}

  // The exit code; DataLoss: the checkpoint that the run resumes is bad, nothing was trained.
  absl::StatusOr<int> Run();

 private:
  absl::Status Begin();
  StartRecord Start() const;
  absl::Status SendInit();
  absl::Status Loop();
  absl::Status Poll();
  void OnSignal();
  void OnRank(LocalRank& rank, short socket_events, bool exited);
  absl::Status OnFrame(LocalRank& rank, const Json& frame);
  absl::Status OnHealth(const LocalRank& rank, const Json& frame);
  absl::Status OnAddress(LocalRank& rank, const Json& frame);
  absl::Status OnLoaded(LocalRank& rank, const Json& frame);
  absl::Status OnStep(const Json& frame);
  std::string StartName() const;
  void MakeCheckpoint();
  Manifest ManifestHead(int64_t step) const;
  void OnSettled(const LocalCheckpoint::Settled& settled);
  void RecordGoodSteps();
  absl::Status SendToAll(const Json& frame);
  void RequestCheckpoint();
  void RequestStop();
  void Fail(const LocalRank& rank, absl::StatusCode code, const std::string& why, bool primary);
  int Finish(const absl::Status& status);
  bool BadCheckpoint(const absl::Status& status) const;
  std::string LogTail(const LocalRank& rank) const;

  LocalJobOptions options_;
  OpenedRun run_;
  RunConfig config_;
  AtomTable table_;
  StepSchedule schedule_;
  uint64_t generation_ = 0;
  uint32_t nonce_ = 0;
  std::unique_ptr<JobRecord> record_;
  std::unique_ptr<JobHealth> health_;
  std::unique_ptr<LocalRanks> ranks_;
  std::unique_ptr<LocalCheckpoint> checkpoint_;
  std::unique_ptr<Worker> worker_, exporter_;  // Use checkpoint_ and the log: go first.
  int signal_fd_ = -1;
  std::map<int, std::string> addresses_;
  std::vector<Digest> loaded_;
  std::vector<bool> loaded_seen_;
  std::set<int> loaded_ranks_, done_ranks_;
  std::map<int64_t, StepReport> reports_;  // Of steps since the last commit: for manifests.
  Clock::time_point checkpointed_;
  bool checkpoint_asked_ = false;
  bool stop_asked_ = false;
  bool healthy_ = false;     // All devices are, so the ranks may load.
  bool loaded_all_ = false;  // The ranks train.
  int64_t saved_step_ = -1;  // Of the newest checkpoint that counts,
  absl::Status unsaved_;     // and why the one after it does not.
  bool complete_ = false;
  int64_t step_ = 0;
  std::string certificate_;
  // The first failure is the cause; what follows from it (lost peers) is not told unless nothing
  // better is known.
  std::optional<absl::Status> failure_;
  bool failure_primary_ = false;
  Clock::time_point failed_at_;
};

absl::Status LocalJob::Begin() {
  generation_ = run_.log.generation() + 1;
  nonce_ = std::random_device()();
  step_ = run_.start.step;
  const LayoutConfig& layout = config_.layout;
  RETURN_IF_ERROR(run_.log.Append(RecordType::kStart, generation_, SerializeStart(Start())));
  ASSIGN_OR_RETURN(record_, JobRecord::Open(options_.run_directory, config_, generation_,
                                            run_.start.step, options_.nodes, options_.quiet));
  const std::string logs = fmt::format("{}/jobs/g{:05}", options_.run_directory, generation_);
  RETURN_IF_ERROR(MakeDirectories(logs));
  RETURN_IF_ERROR(MakeDirectories(options_.run_directory + "/ckpt"));
  record_->Event("generation", {{"generation", generation_},
                                {"layout", LayoutWords(layout)},
                                {"ranks", layout.ranks()},
                                {"nodes", options_.nodes},
                                {"transport", layout.transport},
                                {"backend", config_.numerics.backend},
                                {"resumes", run_.start.step},
                                {"checkpoint", run_.start.checkpoint}});
  record_->Say(fmt::format("generation {}: {} ranks on {} ({}), {}", generation_, layout.ranks(),
                           config_.numerics.backend, LayoutWords(layout),
                           run_.start.manifest.has_value()
                               ? fmt::format("resuming at step {}, certificate {}", run_.start.step,
                                             run_.start.manifest->certificate.Hex())
                               : "from the beginning"));
  health_ = std::make_unique<JobHealth>(
      static_cast<int>(layout.ranks()),
      JobHealth::Hooks{.event =
                           [this](const std::string& event, Json fields) {
                             fields["generation"] = generation_;
                             record_->Event(event, fields);
                           },
                       .warn = [this](const std::string& line) { record_->Say(line); }});
  ASSIGN_OR_RETURN(
      ranks_,
      LocalRanks::Start({.ranks = static_cast<int>(layout.ranks()),
                         .ranks_per_node = static_cast<int>(options_.ranks_per_node),
                         .threads = layout.transport == "local",
                         .cuda = config_.numerics.backend == "cuda",
                         .gpu_messages = layout.ranks() > 1 && layout.device_transport != "staged",
                         .log_directory = logs}));
  record_->State("starting", ranks_->all());
  saved_step_ = run_.start.manifest.has_value() ? run_.start.step : -1;
  ASSIGN_OR_RETURN(worker_, Worker::Start());
  ASSIGN_OR_RETURN(exporter_, Worker::Start(Worker::Priority::kLow));
  MakeCheckpoint();
  loaded_.resize(table_.atoms().size());
  loaded_seen_.resize(table_.atoms().size(), false);
  checkpointed_ = Clock::now();
  return SendInit();
}

StartRecord LocalJob::Start() const {
  const LayoutConfig& layout = config_.layout;
  StartRecord start{.shape = {.tensor = static_cast<int32_t>(layout.tensor),
                              .pipeline = static_cast<int32_t>(layout.pipeline),
                              .data = static_cast<int32_t>(layout.data)},
                    .seats = {},
                    .layout = LayoutWords(layout),
                    .step = run_.start.step,
                    .from_checkpoint = !run_.start.checkpoint.empty()};
  for (int64_t rank = 0; rank < layout.ranks(); ++rank)
    start.seats.push_back({.node = static_cast<NodeId>(rank / options_.ranks_per_node),
                           .local_rank = static_cast<int32_t>(rank % options_.ranks_per_node)});
  return start;
}

absl::Status LocalJob::SendInit() {
  for (LocalRank& rank : ranks_->all()) {
    const Json init = {
        {"type", "init"},
        {"rank", rank.rank},
        {"local_rank", rank.rank % options_.ranks_per_node},
        {"config", PrintConfig(config_)},
        {"data_directory", options_.data_directory},
        {"run_directory", options_.run_directory},
        {"generation", generation_},
        {"nonce", nonce_},
        {"ranks_per_file", RanksPerFile(config_.checkpoint, options_.ranks_per_node)},
        {"host_threads",
         std::max(int64_t{1}, static_cast<int64_t>(std::thread::hardware_concurrency()) /
                                  config_.layout.ranks())},
        {"run_id", run_.log.run_id()},
        {"until_step", options_.until_step},
        {"spin", config_.layout.ranks() * config_.numerics.threads <=
                     static_cast<int64_t>(std::thread::hardware_concurrency())},
        {"start_step", run_.start.step},
        {"sample_chain", run_.start.sample_chain.Hex()},
        {"checkpoint", run_.start.checkpoint},
        {"manifest_digest", run_.manifest_digest.value_or(Digest()).Hex()}};
    // A rank that is gone already is noticed by its pidfd, with the reason.
    (void)rank.socket->Send(init);
  }
  return absl::OkStatus();
}

absl::Status LocalJob::SendToAll(const Json& frame) {
  for (LocalRank& rank : ranks_->all())
    if (rank.socket.has_value()) (void)rank.socket->Send(frame);
  return absl::OkStatus();
}

// ---- frames

absl::Status LocalJob::OnFrame(LocalRank& rank, const Json& frame) {
  const std::string type = frame.at("type").get<std::string>();
  if (type == "health") return OnHealth(rank, frame);
  if (type == "evidence") {
    health_->OnEvidence(rank.rank, rank.node, frame);
    return absl::OkStatus();
  }
  if (type == "address") return OnAddress(rank, frame);
  if (type == "loaded") return OnLoaded(rank, frame);
  if (type == "step") return OnStep(frame);
  if (type == "remark") {
    const auto line = frame.at("line").get<std::string>();
    record_->Event("remark", {{"generation", generation_}, {"rank", rank.rank}, {"line", line}});
    record_->Say(line);
    return absl::OkStatus();
  }
  if (type == "frozen") return checkpoint_->OnFrozen(rank.rank, frame);
  if (type == "waiting") return checkpoint_->OnWaiting(frame);
  if (type == "saved") return checkpoint_->OnSaved(rank.rank, frame);
  if (type == "voted") return checkpoint_->OnVoted(frame);
  if (type == "done") {
    done_ranks_.insert(rank.rank);
    complete_ = frame.at("complete").get<bool>();
    return absl::OkStatus();
  }
  if (type == "error") {
    const auto code = static_cast<absl::StatusCode>(frame.at("code").get<int>());
    // A lost peer is what a failure looks like to the others.
    Fail(rank, code, frame.at("message").get<std::string>(),
         code != absl::StatusCode::kUnavailable);
    return absl::OkStatus();
  }
  return DataLoss("rank {} sent a frame of unknown type '{}'", rank.rank, type);
}

// What is wrong with a device is the cause of what follows, whatever its code.
absl::Status LocalJob::OnHealth(const LocalRank& rank, const Json& frame) {
  health_->OnHealth(rank.rank, rank.node, frame);
  if (const auto error = frame.find("error"); error != frame.end())
    Fail(rank, static_cast<absl::StatusCode>(frame.at("code").get<int>()),
         error->get<std::string>(), true);
  return absl::OkStatus();
}

// Every rank has an address, hence a healthy device: they may meet and load.
absl::Status LocalJob::OnAddress(LocalRank& rank, const Json& frame) {
  addresses_[rank.rank] = frame.at("address").get<std::string>();
  if (addresses_.size() < ranks_->all().size()) return absl::OkStatus();
  healthy_ = true;
  // Without good steps behind it this counts against the checkpoint; so would not a bad device.
  if (run_.start.manifest.has_value())
    RETURN_IF_ERROR(run_.log.Append(RecordType::kAttempt, generation_,
                                    SerializeAttempt({.name = StartName()})));
  checkpoint_->Begin();
  Json table = {{"type", "table"}, {"addresses", Json::array()}};
  for (const auto& [_, address] : addresses_) table["addresses"].push_back(address);
  return SendToAll(table);
}

// Training starts only when the state in memory has the certificate that the checkpoint promised.
absl::Status LocalJob::OnLoaded(LocalRank& rank, const Json& frame) {
  const Json& atoms = frame.at("atoms");
  for (size_t i = 0; i < atoms.size(); ++i) {
    const auto atom = atoms[i].get<size_t>();
    if (atom >= loaded_.size())
      return DataLoss("rank {} loaded atom {} of {}", rank.rank, atom, loaded_.size());
    ASSIGN_OR_RETURN(loaded_[atom], Digest::FromHex(frame.at("digests").at(i).get<std::string>()));
    loaded_seen_[atom] = true;
  }
  loaded_ranks_.insert(rank.rank);
  if (loaded_ranks_.size() < ranks_->all().size()) return absl::OkStatus();
  for (size_t atom = 0; atom < loaded_seen_.size(); ++atom)
    if (!loaded_seen_[atom]) return Internal("no rank answers for atom {}", atom);
  const int64_t samples = run_.start.manifest.has_value() ? run_.start.manifest->samples : 0;
  const Digest certificate = Certificate(table_, loaded_, run_.start.step, samples);
  if (run_.start.manifest.has_value() && certificate != run_.start.manifest->certificate)
    return DataLoss("certificate after loading {} is {}, its manifest says {}: nothing was trained",
                    run_.start.checkpoint, certificate.Hex(),
                    run_.start.manifest->certificate.Hex());
  record_->Event(
      "loaded", {{"generation", generation_}, {"step", step_}, {"certificate", certificate.Hex()}});
  certificate_ = certificate.Hex();
  loaded_all_ = true;
  record_->State("running", ranks_->all());
  return SendToAll({{"type", "go"}});
}

absl::Status LocalJob::OnStep(const Json& f) {
  StepReport r;
  r.step = f.at("step").get<int64_t>();
  r.phase = f.at("phase").get<int>();
  r.samples = f.at("samples").get<int64_t>();
  r.tokens = f.at("tokens").get<int64_t>();
  r.step_tokens = f.at("step_tokens").get<int64_t>();
  r.loss = std::bit_cast<double>(f.at("loss_bits").get<uint64_t>());
  r.grad_norm = f.at("grad_norm").get<double>();
  r.rate = f.at("rate").get<double>();
  r.batch = f.at("batch").get<int64_t>();
  r.context = f.at("context").get<int64_t>();
  r.seconds = f.at("seconds").get<double>();
  r.wait_seconds = f.at("wait_seconds").get<double>();
  r.first_sample = f.at("first_sample").get<int64_t>();
  ASSIGN_OR_RETURN(r.sample_chain, Digest::FromHex(f.at("sample_chain").get<std::string>()));
  step_ = r.step;
  reports_[r.step] = r;
  record_->Step(r);
  RecordGoodSteps();
  const auto every = std::chrono::nanoseconds(absl::ToInt64Nanoseconds(config_.checkpoint.every));
  if (every.count() > 0 && Clock::now() - checkpointed_ > every) RequestCheckpoint();
  return absl::OkStatus();
}

// ---- checkpoints

std::string LocalJob::StartName() const {
  return std::filesystem::path(run_.start.checkpoint).filename();
}

void LocalJob::MakeCheckpoint() {
  LocalCheckpoint::Options options{.run_directory = options_.run_directory,
                                   .generation = generation_,
                                   .nonce = nonce_,
                                   .nodes = options_.nodes,
                                   .ranks_per_node = options_.ranks_per_node,
                                   .phase_end_steps = {},
                                   .data_files = DataFiles(config_, options_.data_directory)};
  for (const PhasePlan& phase : schedule_.phases())
    options.phase_end_steps.push_back(phase.first_step + phase.steps);
  LocalCheckpoint::Hooks hooks{
      .send =
          [this](int rank, const Json& frame) {
            LocalRank& to = ranks_->all()[static_cast<size_t>(rank)];
            if (to.socket.has_value()) (void)to.socket->Send(frame);
          },
      .head = [this](int64_t step) { return ManifestHead(step); },
      .settled = [this](const auto& settled) { OnSettled(settled); },
      .event = [this](const auto& what, const auto& fields) { record_->Event(what, fields); },
      .warn = [this](const auto& line) { record_->Say(line); },
      .lost =
          [this](const absl::Status& status) {
            Fail(ranks_->all().front(), absl::StatusCode::kCancelled,
                 fmt::format("the run log: {}", Message(status)), true);
          }};
  checkpoint_ = std::make_unique<LocalCheckpoint>(options, &config_, &table_, &run_.log,
                                                  worker_.get(), exporter_.get(), std::move(hooks));
}

Manifest LocalJob::ManifestHead(int64_t step) const {
  Manifest manifest;
  manifest.step = step;
  manifest.sample_chain = run_.start.sample_chain;
  const Consumed consumed = schedule_.After(step);
  manifest.samples = consumed.samples;
  manifest.tokens = consumed.tokens;
  manifest.phase = consumed.phase;
  if (const auto report = reports_.find(step); report != reports_.end())
    manifest.sample_chain = report->second.sample_chain;
  manifest.phase_name = config_.phases[static_cast<size_t>(manifest.phase)].name;
  manifest.generation = generation_;
  manifest.run_id = run_.log.run_id();
  manifest.config = PrintConfig(config_);
  manifest.layout = LayoutWords(config_.layout);
  manifest.created = TimeNow();
  return manifest;
}

// A checkpoint that fails costs a warning, not the run: training went on meanwhile.
void LocalJob::OnSettled(const LocalCheckpoint::Settled& settled) {
  checkpointed_ = Clock::now();
  checkpoint_asked_ = false;
  unsaved_ = settled.status;
  if (!settled.status.ok()) {
    record_->Say(fmt::format("warning: no checkpoint of step {}: {}; training goes on",
                             settled.step, Message(settled.status)));
    record_->Event(
        "checkpoint_failed",
        {{"step", settled.step}, {"generation", generation_}, {"why", Message(settled.status)}});
    return;
  }
  saved_step_ = settled.step;
  certificate_ = settled.certificate.Hex();
  reports_.erase(reports_.begin(), reports_.upper_bound(settled.step));
  record_->Event("checkpoint", {{"step", settled.step},
                                {"generation", generation_},
                                {"checkpoint", settled.name},
                                {"certificate", certificate_},
                                {"bytes", settled.bytes},
                                {"wait_seconds", settled.wait_seconds},
                                {"freeze_seconds", settled.freeze_seconds},
                                {"copy_seconds", settled.copy_seconds},
                                {"write_seconds", settled.write_seconds}});
}

// The checkpoint that this job resumed is good: what was tried with it has worked.
void LocalJob::RecordGoodSteps() {
  if (!run_.start.manifest.has_value() || step_ != run_.start.step + kGoodSteps) return;
  worker_->Post([this]() -> Worker::Then {
    const absl::Status status =
        run_.log.Append(RecordType::kVerified, generation_,
                        SerializeVerified({.name = StartName(), .kind = "ran"}));
    if (status.ok()) return nullptr;
    return [this, status] {
      Fail(ranks_->all().front(), absl::StatusCode::kCancelled,
           fmt::format("the run log: {}", Message(status)), true);
    };
  });
}

void LocalJob::RequestCheckpoint() {
  // One at a time: the next is due so long after the last one was settled.
  if (checkpoint_asked_ || stop_asked_ || !checkpoint_->idle()) return;
  checkpoint_asked_ = true;
  LocalRank& first = ranks_->all().front();
  if (first.socket.has_value())
    (void)first.socket->Send(
        {{"type", "command"}, {"command", static_cast<int>(Command::kCheckpoint)}});
}

void LocalJob::RequestStop() {
  stop_asked_ = true;
  record_->State("stopping", ranks_->all());
  LocalRank& first = ranks_->all().front();
  if (first.socket.has_value())
    (void)first.socket->Send({{"type", "command"}, {"command", static_cast<int>(Command::kStop)}});
}

// ---- events

void LocalJob::OnSignal() {
  signalfd_siginfo info{};
  if (::read(signal_fd_, &info, sizeof info) != static_cast<ssize_t>(sizeof info)) return;
  if (stop_asked_ || info.ssi_signo == SIGQUIT) {
    Fail(ranks_->all().front(), absl::StatusCode::kCancelled, "stopped at once on request", true);
    return;
  }
  record_->Say(fmt::format("signal {}: stopping after this step with a checkpoint (again: at once)",
                           info.ssi_signo));
  RequestStop();
}

void LocalJob::Fail(const LocalRank& rank, absl::StatusCode code, const std::string& why,
                    bool primary) {
  if (!failure_.has_value()) failed_at_ = Clock::now();
  if (failure_.has_value() && (failure_primary_ || !primary)) return;
  failure_primary_ = primary;
  failure_ = code == absl::StatusCode::kCancelled
                 ? ErrorStatus(code, "{}", why)
                 : ErrorStatus(code, "rank {} (node {}, process {}): {}{}", rank.rank, rank.node,
                               rank.pid, why, health_->EvidenceOf(rank.rank));
}

std::string LocalJob::LogTail(const LocalRank& rank) const {
  const absl::StatusOr<std::string> text =
      rank.log_path.empty() ? absl::StatusOr<std::string>("") : ReadFile(rank.log_path);
  if (!text.ok() || text->empty()) return "";
  std::string tail = text->size() > 800 ? "..." + text->substr(text->size() - 800) : *text;
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  return fmt::format("\n  its last output ({}):\n  {}", rank.log_path, tail);
}

void LocalJob::OnRank(LocalRank& rank, short socket_events, bool exited) {
  bool closed = false;
  // Also at its exit: what it said before counts.
  while (rank.socket.has_value() && (socket_events != 0 || exited)) {
    absl::StatusOr<std::optional<Json>> frame = rank.socket->TryReceive();
    if (!frame.ok()) {
      closed = true;
      rank.socket.reset();
      break;
    }
    if (!frame->has_value()) break;
    absl::Status status;
    try {
      status = OnFrame(rank, **frame);
    } catch (const Json::exception& error) {
      status = DataLoss("rank {} sent a malformed frame: {}", rank.rank, error.what());
    }
    if (!status.ok()) Fail(rank, status.code(), Message(status), true);
  }
  if (!exited && !(closed && rank.pidfd < 0)) return;
  ranks_->Reap(rank);
  if (done_ranks_.contains(rank.rank)) return;
  const bool told = failure_.has_value() && rank.how == "exited with code 1";
  if (!told)
    Fail(rank, absl::StatusCode::kUnavailable, rank.how + LogTail(rank),
         rank.pidfd < 0 && rank.how != "ended");
}

absl::Status LocalJob::Poll() {
  std::vector<pollfd> fds = {{.fd = signal_fd_, .events = POLLIN, .revents = 0},
                             {.fd = worker_->fd(), .events = POLLIN, .revents = 0},
                             {.fd = exporter_->fd(), .events = POLLIN, .revents = 0}};
  const size_t first = fds.size();
  std::vector<LocalRank>& ranks = ranks_->all();
  for (const LocalRank& rank : ranks) {
    fds.push_back(
        {.fd = rank.socket.has_value() ? rank.socket->fd() : -1, .events = POLLIN, .revents = 0});
    fds.push_back({.fd = rank.ended ? -1 : rank.pidfd, .events = POLLIN, .revents = 0});
  }
  if (::poll(fds.data(), fds.size(), failure_.has_value() ? 50 : 1000) < 0 && errno != EINTR)
    return ErrnoStatus(errno, "poll");
  if (fds[0].revents != 0) OnSignal();
  if (fds[1].revents != 0) worker_->Drain();
  if (fds[2].revents != 0) exporter_->Drain();
  checkpoint_->Tick();
  for (size_t i = 0; i < ranks.size(); ++i)
    if (fds[first + 2 * i].revents != 0 || fds[first + 2 * i + 1].revents != 0)
      OnRank(ranks[i], fds[first + 2 * i].revents, fds[first + 2 * i + 1].revents != 0);
  return absl::OkStatus();
}

absl::Status LocalJob::Loop() {
  const auto all_ended = [&] {
    return std::all_of(ranks_->all().begin(), ranks_->all().end(),
                       [](const LocalRank& rank) { return rank.ended; });
  };
  while (!all_ended()) {
    RETURN_IF_ERROR(Poll());
    if (failure_.has_value() &&
        (Clock::now() - failed_at_ > kGrace || failure_->code() == absl::StatusCode::kCancelled)) {
      ranks_->EndAll();
      return *failure_;
    }
  }
  if (failure_.has_value()) return *failure_;
  if (!checkpoint_->idle()) return Internal("the ranks ended in the middle of a checkpoint");
  if (saved_step_ != step_)
    return ErrorStatus(unsaved_.ok() ? absl::StatusCode::kInternal : unsaved_.code(),
                       "the ranks ended at step {}, but the newest checkpoint is of step {}: {}; "
                       "what lies between will be done again",
                       step_, saved_step_, Message(unsaved_));
  return absl::OkStatus();
}

bool LocalJob::BadCheckpoint(const absl::Status& status) const {
  return absl::IsDataLoss(status) && healthy_ && !loaded_all_ && run_.start.manifest.has_value();
}

int LocalJob::Finish(const absl::Status& status) {
  // What one finds the other does, and retires then. From here on the log is ours again.
  for (Worker* worker : {worker_.get(), exporter_.get(), worker_.get()})
    if (worker != nullptr) worker->Finish();
  int exit_code = complete_ ? kExitComplete : kExitStopped;
  std::string state = complete_ ? "complete" : "stopped";
  if (!status.ok()) {
    exit_code = status.code() == absl::StatusCode::kDataLoss ? kExitNoRestart : kExitFailed;
    state = "failed";
    record_->Say("perdure run: " + Message(status));
  } else {
    record_->Say(fmt::format("{} at step {}/{}, certificate {}", complete_ ? "complete" : "stopped",
                             step_, schedule_.steps(), certificate_));
  }
  record_->Event("end", {{"generation", generation_},
                         {"state", state},
                         {"step", step_},
                         {"exit_code", exit_code},
                         {"why", Message(status)}});
  const absl::Status end = run_.log.Append(
      RecordType::kEnd, generation_,
      SerializeEnd(EndRecord{
          .reason = status.ok() ? state : Message(status), .exit_code = exit_code, .step = step_}));
  if (!end.ok()) record_->Say("warning: " + Message(end));
  record_->State(state, {});  // Nobody is left.
  return exit_code;
}

absl::StatusOr<int> LocalJob::Run() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGQUIT}) sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal_fd_ = ::signalfd(-1, &signals, SFD_CLOEXEC);
  if (signal_fd_ < 0) return ErrnoStatus(errno, "signalfd");
  absl::Status status = Begin();
  if (record_ == nullptr) return status;
  if (status.ok()) status = Loop();
  const int exit_code = Finish(status);
  ::close(signal_fd_);
  if (BadCheckpoint(status)) return status;
  return exit_code;
}

}  // namespace

int RefuseRun(const absl::Status& status) {
  std::fprintf(stderr, "perdure run: %s\n", Message(status).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

std::optional<int> NothingToDo(const LocalJobOptions& options, const OpenedRun& run) {
  const std::string& name = run.config.name;
  if (run.start.step >= StepSchedule(run.config).steps()) {
    std::fprintf(stderr, "perdure run: run %s is complete at step %ld\n", name.c_str(),
                 run.start.step);
    return kExitComplete;
  }
  if (options.until_step < 0 || !run.start.manifest.has_value() ||
      run.start.step < options.until_step)
    return std::nullopt;
  std::fprintf(
      stderr,
      "perdure run: run %s is at step %ld already; --until-step %ld asks for nothing more\n",
      name.c_str(), run.start.step, options.until_step);
  return kExitStopped;
}

int RunLocalJob(const LocalJobOptions& options) {
  RunConfig config = options.config;
  const absl::StatusOr<LayoutConfig> layout =
      ResolveLayout(config, options.nodes * options.ranks_per_node);
  if (!layout.ok()) return RefuseRun(layout.status());
  config.layout = *layout;
  if (const absl::Status data = CheckData(config, options.data_directory); !data.ok())
    return RefuseRun(data);
  // Once more with an older checkpoint for each that proves bad while it is loaded.
  for (;;) {
    absl::StatusOr<OpenedRun> run = OpenRun(options.run_directory, config, options.retry);
    if (!run.ok()) {
      RefuseRun(run.status());
      return absl::IsDataLoss(run.status())
                 ? kExitNoRestart
                 : kExitUsage;  // A damaged run is a person's to look at.
    }
    if (const std::optional<int> exit_code = NothingToDo(options, *run)) return *exit_code;
    const std::string checkpoint = run->start.checkpoint;
    LocalJob job(options, *std::move(run));
    const absl::StatusOr<int> exit_code = job.Run();
    if (exit_code.ok()) return *exit_code;
    if (!absl::IsDataLoss(exit_code.status()) || checkpoint.empty())
      return RefuseRun(exit_code.status());
    const std::string name = std::filesystem::path(checkpoint).filename();
    const absl::Status moved =
        QuarantineCheckpoint(options.run_directory, name, Message(exit_code.status()));
    if (!moved.ok()) return RefuseRun(moved);
    std::fprintf(stderr, "perdure run: %s is bad and now in quarantine/; trying the one before\n",
                 name.c_str());
  }
}

}  // namespace perdure
