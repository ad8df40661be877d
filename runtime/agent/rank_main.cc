#include "runtime/agent/rank_main.h"

#include <unistd.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "ckpt/packed_report.h"
#include "runtime/agent/rank_line.h"
#include "runtime/agent/rank_page.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/train/corruption.h"
#include "runtime/train/health.h"
#include "runtime/train/step_report.h"
#include "runtime/train/trainer.h"
#include "runtime/train/writers.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

constexpr absl::Duration kConnectTime = absl::Seconds(60);

std::string HostName() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

// ---- the agent, as the trainer of one generation sees it

class LineHost final : public RankHost {
 public:
  LineHost(RankLine* line, RankPage* page, const to_rank::Prepare& prepare, const RunConfig& config)
      : line_(line),
        page_(page),
        generation_(prepare.generation),
        first_(prepare.rank == 0),
        schedule_(config, prepare.gaps) {}

  bool went() const { return went_; }

  // Steps that may not have been heard of: whoever was told then may be gone.
  void TellAgain(const SnapshotStamp& stamp) {
    const auto count = static_cast<int64_t>(stamp.history.steps.size());
    for (int64_t i = 0; i < count; ++i) {
      const StepNumbers& numbers = stamp.history.steps[static_cast<size_t>(i)];
      const int64_t step = stamp.step - count + i + 1;
      StepReport report = PlannedReport(schedule_, step);
      report.loss = numbers.loss;
      report.grad_norm = numbers.grad_norm;
      if (i + 1 == count) report.sample_chain = stamp.history.trail.sample_chain;
      (void)line_->Send(from_rank::Step{generation_, report});
    }
  }

  void Remark(const std::string& text) override { (void)line_->Send(from_rank::Remark{text}); }
  void Certificate(const Digest& certificate) override {
    (void)line_->Send(from_rank::Certificate{generation_, certificate});
  }
  absl::Status Loaded(std::span<const int64_t>, std::span<const Digest>) override {
    RETURN_IF_ERROR(line_->Send(from_rank::Loaded{generation_}));
    RETURN_IF_ERROR(line_->AwaitGo());
    went_ = true;
    return absl::OkStatus();
  }
  Command StepFinished(const StepReport& report) override {
    (void)line_->Send(from_rank::Step{generation_, report});
    return line_->CommandAfter(report.step);
  }
  absl::StatusOr<std::vector<std::string>> FindHeld(std::span<const HeldNeed> needs) override {
    RETURN_IF_ERROR(
        line_->Send(from_rank::Need{generation_, std::vector(needs.begin(), needs.end())}));
    ASSIGN_OR_RETURN(std::vector<std::string> paths, line_->AwaitFetched());
    if (paths.size() != needs.size())
      return Internal("the agent found {} snapshots of {}", paths.size(), needs.size());
    // What rank 0 had to say stands in its snapshot.
    for (size_t i = 0; first_ && i < needs.size(); ++i)
      if (needs[i].rank == 0) {
        ASSIGN_OR_RETURN(const SnapshotStamp stamp, ReadSnapshotStamp(paths[i]));
        TellAgain(stamp);
      }
    return paths;
  }
  absl::Status AwaitLease(int64_t) override {
    line_->WaitsAtBoundary(false);
    return line_->AwaitPermission([this] { return MonotonicNow() < page_->LeaseOf(generation_); });
  }
  std::vector<Flip> Planted(int64_t step) override { return line_->TakeFlips(step); }
  void Progress(int64_t step, const WorkDone& work) override {
    (void)line_->Send(from_rank::Progress{.generation = generation_, .step = step, .work = work});
  }
  void Doing(const Activity& activity) override { page_->Doing(activity); }
  void OlderMayGo() override { (void)line_->Send(from_rank::OlderMayGo{generation_}); }
  void NoSnapshots() override { (void)line_->Send(from_rank::NoSnapshots{generation_}); }
  void FoundBad(const Gap& gap, const std::string& why) override {
    (void)line_->Send(from_rank::FoundBad{.generation = generation_, .gap = gap, .why = why});
  }
  void Waiting(int64_t step) override {
    (void)line_->Send(from_rank::Waiting{.generation = generation_, .step = step});
    line_->WaitsAtBoundary(true);
  }

  absl::StatusOr<SaveOrder> Frozen(int64_t step, const std::string& file, uint32_t) override {
    RETURN_IF_ERROR(line_->BeginSave(step, file));
    // Where nothing runs behind training, training waits here.
    if (std::this_thread::get_id() == trains_) Waiting(step);
    return NextOrder(step);
  }
  absl::StatusOr<SaveOrder> NextOrder(int64_t) override {
    ASSIGN_OR_RETURN(const RankLine::Order order, line_->NextOrder());
    if (const auto* write = std::get_if<to_rank::Write>(&order)) {
      attempt_ = write->attempt;
      return SaveOrder{.kind = SaveOrder::Kind::kWrite, .nonce = Nonce(*write), .part = {}};
    }
    if (std::holds_alternative<to_rank::Settle>(order))
      return SaveOrder{.kind = SaveOrder::Kind::kSettled, .nonce = 0, .part = {}};
    const auto& verify = std::get<to_rank::Verify>(order);
    attempt_ = verify.attempt;
    file_ = verify.file;
    SaveOrder save{.kind = SaveOrder::Kind::kVerify, .nonce = Nonce(verify), .part = {}};
    ASSIGN_OR_RETURN(save.part, UnpackPart(verify.part));
    return save;
  }
  absl::Status Saved(const SavedRun& saved) override {
    from_rank::Written written{.generation = generation_,
                               .step = saved.step,
                               .attempt = attempt_,
                               .error = Words(saved.status),
                               .run = {},
                               .trail = saved.trail,
                               .wait_seconds = saved.wait_seconds,
                               .freeze_seconds = saved.freeze_seconds,
                               .copy_seconds = saved.copy_seconds,
                               .write_seconds = saved.write_seconds};
    if (saved.run.has_value()) written.run = SerializeRun(*saved.run);
    return line_->Answer(written);
  }
  absl::Status Verified(int64_t step, const std::string&, const absl::Status& vote) override {
    return line_->Answer(from_rank::Voted{.generation = generation_,
                                          .step = step,
                                          .attempt = attempt_,
                                          .file = file_,
                                          .error = Words(vote)});
  }

 private:
  static std::string Words(const absl::Status& status) {
    if (status.ok()) return "";
    return status.message().empty() ? "it failed without a word" : Message(status);
  }
  static uint32_t Nonce(const auto& order) {
    return AttemptNonce(order.term, static_cast<int32_t>(order.attempt));
  }

  RankLine* const line_;
  RankPage* const page_;
  const Generation generation_;
  const bool first_;  // This is rank 0.
  const StepSchedule schedule_;
  const std::thread::id trains_ = std::this_thread::get_id();
  bool went_ = false;  // Go was said.
  // What the saver does; its thread's alone.
  int64_t attempt_ = 0, file_ = 0;
};

// ---- the process

// How far a generation has come when it fails.
enum class At { kDevice, kConnecting, kLoading, kSteps };

class RankMain {
 public:
  RankMain(FrameSocket* socket, RankPage* page, const RankMainOptions& options)
      : options_(options), page_(page), line_(socket) {}

  int Run();

 private:
  absl::StatusOr<Outcome> RunGeneration(const to_rank::Prepare& prepare);
  absl::StatusOr<Outcome> Train(const to_rank::Prepare& prepare, const TrainerOptions& options,
                                const StartPoint& start, Transport* transport);
  absl::Status OpenDevice(const RunConfig& config, const to_rank::Prepare& prepare);
  absl::Status TellHealth(bool check);
  void Watch();
  // False: the process must end.
  bool Ended(const to_rank::Prepare& prepare, const absl::StatusOr<Outcome>& outcome);
  from_rank::Error Failure(const to_rank::Prepare& prepare, const absl::Status& status);

  const RankMainOptions& options_;
  RankPage* const page_;
  RankLine line_;
  std::optional<RankDevice> device_;  // Its ops are in ops_.
  std::shared_ptr<Ops> ops_;
  std::string no_watch_;  // Why there is no watch; empty: none is needed.
  std::atomic<int64_t> xid_ = 0;
  At at_ = At::kDevice;
  std::unique_ptr<DeviceWatch> watch_;  // Last: its thread uses the above.
};

absl::StatusOr<StartPoint> StartOf(const to_rank::Prepare& prepare) {
  StartPoint start;
  if (prepare.checkpoint.has_value()) {
    start.checkpoint = prepare.checkpoint->path;
    ASSIGN_OR_RETURN(start.manifest, ReadManifest(start.checkpoint, &prepare.checkpoint->manifest));
    start.step = start.manifest->step;
    start.trail = start.manifest->trail;
  } else if (prepare.held.has_value()) {
    start.step = prepare.held->step;
    start.held = HeldStart{.generation = prepare.held->generation,
                           .step = prepare.held->step,
                           .tensor = prepare.held->tensor,
                           .pipeline = prepare.held->pipeline,
                           .data = prepare.held->data};
  }
  return start;
}

TrainerOptions OptionsOf(const to_rank::Prepare& prepare, RunConfig config) {
  TrainerOptions options;
  options.config = std::move(config);
  options.data_directory = prepare.data_directory;
  options.run_directory = prepare.run_directory;
  options.generation = prepare.generation;
  options.ranks_per_file = prepare.ranks_per_file;
  options.host_threads = static_cast<int>(prepare.host_threads);
  options.run_id = prepare.run_id;
  options.until_step = prepare.until_step;
  options.gaps = prepare.gaps;
  options.begins = prepare.begins;
  options.snapshot_directory = prepare.snapshot_directory;
  for (const int64_t peer : prepare.snapshot_peers)
    options.snapshot_peers.push_back(static_cast<int32_t>(peer));
  return options;
}

absl::Status RankMain::OpenDevice(const RunConfig& config, const to_rank::Prepare& prepare) {
  if (device_.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(device_, options_.devices.make(config, static_cast<int>(prepare.local_rank)));
  ops_ = std::move(device_->ops);
  if (!device_->pci_bus_id.empty()) {
    absl::StatusOr<std::unique_ptr<DeviceWatch>> watch =
        DeviceWatch::Open(options_.devices.nvml, device_->pci_bus_id);
    if (watch.ok())
      watch_ = *std::move(watch);
    else
      no_watch_ = Message(watch.status());
  }
  return TellHealth(config.job.health_check);
}

void RankMain::Watch() {
  if (watch_ == nullptr) return;
  watch_->Start([this](const Json& evidence) {
    if (const auto xid = evidence.find("xid"); xid != evidence.end() && xid->is_number_unsigned())
      xid_ = xid->get<int64_t>();
    (void)line_.Send(from_rank::Evidence{evidence});
  });
}

// Tries the device, where the configuration wants it, and tells how that went.
absl::Status RankMain::TellHealth(bool check) {
  const HealthOptions options = HealthOptionsOf(*device_, HostName());
  HealthReport report;
  if (check) report = CheckHealth(*ops_, options);
  Json health = {{"device", options.device}, {"checked", check}};
  if (check) {
    health["seconds"] = report.seconds;
    health["rates"] = {{"matmul_bf16", report.matmul_bf16},
                       {"matmul_fp32", report.matmul_fp32},
                       {"memory", report.memory},
                       {"upload", report.upload},
                       {"download", report.download}};
  }
  // Behind the load, which says more than idling.
  if (watch_ != nullptr) health["facts"] = watch_->Facts();
  if (!no_watch_.empty()) health["no_nvml"] = no_watch_;
  Watch();
  if (!report.status.ok()) {
    // What explains the failure is told before it.
    if (watch_ != nullptr) watch_->Stop();
    health["code"] = static_cast<int>(report.status.code());
    health["error"] = Message(report.status);
  }
  RETURN_IF_ERROR(line_.Send(from_rank::Health{std::move(health)}));
  return report.status;
}

absl::StatusOr<Outcome> RankMain::Train(const to_rank::Prepare& prepare,
                                        const TrainerOptions& options, const StartPoint& start,
                                        Transport* transport) {
  LineHost host(&line_, page_, prepare, options.config);
  absl::StatusOr<std::unique_ptr<Trainer>> trainer =
      Trainer::Create(options, start, ops_, transport, &host);
  if (host.went()) at_ = At::kSteps;
  RETURN_IF_ERROR(trainer.status());
  line_.OnStop([&trainer] { (*trainer)->Stop(); });
  const absl::StatusOr<Outcome> outcome = (*trainer)->Run();
  line_.OnStop(nullptr);
  // The saver may wait for an order that will not come.
  if (!outcome.ok() || *outcome == Outcome::kLeft || *outcome == Outcome::kFoundBad)
    line_.DropOrders();
  return outcome;
}

absl::StatusOr<Outcome> RankMain::RunGeneration(const to_rank::Prepare& prepare) {
  ASSIGN_OR_RETURN(RunConfig config, options_.parse_config(prepare.config));
  config.layout.tensor = prepare.tensor;
  config.layout.pipeline = prepare.pipeline;
  config.layout.data = prepare.data;
  RETURN_IF_ERROR(OpenDevice(config, prepare));
  at_ = At::kConnecting;
  const int64_t ranks = config.layout.ranks();
  if (prepare.rank >= ranks) return InvalidArgument("rank {} of {}", prepare.rank, ranks);
  const TransportOptions transport_options{.rank = prepare.rank,
                                           .size = static_cast<int>(ranks),
                                           .spin = prepare.spin,
                                           .network = config.layout.network};
  ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                   NewTransport(config.layout.transport, transport_options,
                                options_.hub ? options_.hub(prepare.generation) : nullptr));
  line_.OnStop([&transport] { transport->Cancel("told to stop"); });
  const absl::Cleanup no_more = [this] { line_.OnStop(nullptr); };
  ASSIGN_OR_RETURN(const std::string address, transport->LocalAddress());
  RETURN_IF_ERROR(
      line_.Send(from_rank::Present{.generation = prepare.generation, .address = address}));
  ASSIGN_OR_RETURN(const std::vector<std::string> addresses, line_.AwaitTable(ranks));
  RETURN_IF_ERROR(transport->Connect(addresses, kConnectTime));
  RETURN_IF_ERROR(line_.Send(from_rank::Connected{prepare.generation}));
  at_ = At::kLoading;
  ASSIGN_OR_RETURN(const StartPoint start, StartOf(prepare));
  return Train(prepare, OptionsOf(prepare, std::move(config)), start, transport.get());
}

// Whose fault it is, as far as a rank can say.
from_rank::Error RankMain::Failure(const to_rank::Prepare& prepare, const absl::Status& status) {
  from_rank::Error error{.code = static_cast<int64_t>(status.code()),
                         .message = Message(status),
                         .kind = EvidenceKind::kRankCrashed,
                         .number = 1,
                         .slot_lost = false};
  const auto is = [&error](EvidenceKind kind, int64_t number = 0, bool slot_lost = false) {
    error.kind = kind;
    error.number = number;
    error.slot_lost = slot_lost;
  };
  const bool bad = absl::IsDataLoss(status);
  if (IsCorruption(status))
    is(EvidenceKind::kSilentCorruption);
  else if (IsSuspectedCorruption(status))
    is(EvidenceKind::kRankCrashed, 1);
  else if (at_ == At::kDevice && device_.has_value() && bad)
    is(EvidenceKind::kHealthCheckFailed, 0, true);
  else if (absl::IsUnavailable(status))
    is(EvidenceKind::kDeviceError, xid_, true);
  else if (at_ == At::kLoading && prepare.checkpoint && (bad || absl::IsNotFound(status)))
    is(EvidenceKind::kBadCheckpoint);
  else if (at_ == At::kLoading && prepare.held && (bad || absl::IsNotFound(status)))
    is(EvidenceKind::kBadSnapshot);
  else if (bad || absl::IsInvalidArgument(status))
    is(EvidenceKind::kTrainingFailed);
  return error;
}

bool RankMain::Ended(const to_rank::Prepare& prepare, const absl::StatusOr<Outcome>& outcome) {
  const absl::Status& status = outcome.status();
  // A transport that cannot reach somebody says so with either code; so does a device, which then
  // says it again.
  const bool lost_peer = (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) &&
                         at_ != At::kDevice && ops_->Sync().ok();
  if (!status.ok() && !absl::IsCancelled(status) && !lost_peer) {
    // What came in last is told before the error that it explains.
    if (watch_ != nullptr) watch_->Stop();
    if (!absl::IsUnavailable(line_.lost())) (void)line_.Send(Failure(prepare, status));
    return false;
  }
  // Before anything is said: the answer may be the next generation.
  const bool stopped = line_.End();
  if (outcome.ok() && (*outcome == Outcome::kComplete || *outcome == Outcome::kStopped))
    (void)line_.Send(from_rank::Done{.generation = prepare.generation,
                                     .complete = *outcome == Outcome::kComplete});
  if (stopped)
    (void)line_.Send(from_rank::Stopped{prepare.generation});
  else if (lost_peer)
    (void)line_.Send(
        from_rank::BrokenOff{.generation = prepare.generation, .reason = Message(status)});
  return line_.lost().ok();
}

int RankMain::Run() {
  for (;;) {
    const absl::StatusOr<std::optional<to_rank::Prepare>> next = line_.NextGeneration();
    if (!next.ok()) {
      // Its own agent: nobody listens any more, unless it is the one that makes no sense.
      if (absl::IsInternal(next.status()))
        (void)line_.Send(from_rank::Error{.code = static_cast<int64_t>(next.status().code()),
                                          .message = Message(next.status()),
                                          .kind = EvidenceKind::kRankCrashed,
                                          .number = 1});
      return 1;
    }
    if (!next->has_value()) return 0;
    if (device_.has_value()) at_ = At::kConnecting;
    if (!Ended(**next, RunGeneration(**next))) return 1;
  }
}

}  // namespace

int RunRankMain(FrameSocket socket, int page_fd, const RankMainOptions& options) {
  const absl::StatusOr<std::unique_ptr<RankPage>> page = RankPage::Open(page_fd);
  if (!page.ok()) {
    (void)socket.Send(
        ToJson(from_rank::Frame(from_rank::Error{.code = static_cast<int64_t>(page.status().code()),
                                                 .message = Message(page.status()),
                                                 .kind = EvidenceKind::kRankCrashed,
                                                 .number = 1})));
    return 1;
  }
  RankMain rank(&socket, page->get(), options);
  return rank.Run();
}

}  // namespace perdure
