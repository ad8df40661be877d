#include "launch/run_exporter.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "launch/exec_options.h"
#include "runtime/agent/progress_file.h"
#include "runtime/base/files.h"
#include "runtime/base/space.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire_sockets.h"

namespace perdure {
namespace {

constexpr char kMetricsType[] = "text/plain; version=0.0.4; charset=utf-8";

// "10.0.0.5", "fd00::5".
absl::StatusOr<std::string> AddressOf(const std::string& interface) {
  ASSIGN_OR_RETURN(const WireAddress address, InterfaceAddress(interface));
  return HostText(address);
}

// As file_sd and http_sd want it. The instance is the run: its series go on where another job, on
// other nodes, goes on.
std::string Targets(const std::string& run, const std::string& address, int port, bool tls) {
  const bool six = address.find(':') != std::string::npos;
  nlohmann::json labels = {{"instance", run}};
  if (tls) labels["__scheme__"] = "https";
  return nlohmann::json::array(
             {{{"targets", {fmt::format("{}:{}", six ? "[" + address + "]" : address, port)}},
               {"labels", labels}}})
             .dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

void FillDisk(const std::string& run_directory, LiveFacts& live) {
  for (const SpaceLimit& limit : ReadSpace(run_directory))
    if (limit.of == "the file system") {
      live.disk_available_bytes = limit.bytes;
      live.disk_available_files = limit.files;
    }
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(run_directory, error);
  if (!error) live.disk_size_bytes = space.capacity;
}

// A trainer that is not ours is heard by its own lines.
void FillTold(const std::string& run_directory, LiveFacts& live) {
  const std::optional<nlohmann::json> line = ProgressFile::Last(ProgressPath(run_directory));
  if (!line.has_value()) return;
  live.told_step = (*line)["step"].get<int64_t>();
  if (const auto loss = line->find("loss"); loss != line->end() && loss->is_number())
    live.told_loss = loss->get<double>();
}

// The collector reads what ends so in its directory, from all runs of this machine.
std::string TextfilePath(const MonitoringConfig& config, const std::string& run) {
  return fmt::format("{}/perdure_{}.prom", config.textfile, run);
}

}  // namespace

std::string TargetsPath(const std::string& run_directory) {
  return run_directory + "/targets/perdure.json";
}

RunExporter::RunExporter(EventLoop* loop, RunExporterOptions options)
    : loop_(loop), options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<RunExporter>> RunExporter::New(EventLoop* loop,
                                                              RunExporterOptions options) {
  std::unique_ptr<RunExporter> exporter(new RunExporter(loop, std::move(options)));
  ASSIGN_OR_RETURN(exporter->worker_, Worker::Start(Worker::Priority::kLow));
  RETURN_IF_ERROR(loop->AddFd(exporter->worker_->fd(), EventLoop::kReadable,
                              [worker = exporter->worker_.get()](uint32_t) { worker->Drain(); }));
  return exporter;
}

RunExporter::~RunExporter() { loop_->RemoveFd(worker_->fd()); }

void RunExporter::Warn(const absl::Status& status) {
  if (status.ok() || std::exchange(warned_, true)) return;
  options_.warn(fmt::format("warning: metrics: {}; training goes on", Message(status)));
}

absl::Status RunExporter::Serve() {
  const MonitoringConfig& config = options_.config.monitoring;
  HttpEndpointOptions options{.address = options_.address,
                              .port = static_cast<int>(config.port),
                              .token = {},
                              .certificate = config.certificate};
  if (!config.interface.empty()) {
    ASSIGN_OR_RETURN(options.address, AddressOf(config.interface));
  }
  if (!config.token_file.empty()) {
    ASSIGN_OR_RETURN(options.token, ReadFile(config.token_file));
    options.token = std::string(absl::StripTrailingAsciiWhitespace(options.token));
    if (options.token.empty())
      return InvalidArgument("monitoring.token_file = \"{}\" holds no token", config.token_file);
  }
  ASSIGN_OR_RETURN(endpoint_, HttpEndpoint::Start(options));
  targets_ = Targets(options_.config.name, options.address, endpoint_->port(),
                     !config.certificate.empty());
  endpoint_->Serve("/sd", "application/json", targets_);
  endpoint_->Serve("/healthz", "text/plain; charset=utf-8", "ok\n");
  endpoint_->Serve("/metrics", kMetricsType, "");
  return MakeDirectories(options_.run_directory + "/targets");
}

void RunExporter::Update(LiveFacts live) {
  const MonitoringConfig& config = options_.config.monitoring;
  if (!config.endpoint && config.textfile.empty()) return;
  if (!std::exchange(serves_, true)) {
    if (config.endpoint) Warn(Serve());
    refreshed_ = absl::InfinitePast();
  }
  live_ = std::move(live);
  if (refreshing_ || MonotonicNow() < refreshed_ + kEvery) return;
  Refresh(live_);
}

void RunExporter::Refresh(LiveFacts live) {
  refreshing_ = true;
  refreshed_ = MonotonicNow();
  live.refresh_seconds = took_;
  worker_->Post([this, live = std::move(live),
                 targets = endpoint_ == nullptr ? "" : targets_]() mutable -> Worker::Then {
    const absl::Time began = MonotonicNow();
    if (history_ == nullptr) history_ = std::make_unique<RunHistory>(options_.run_directory);
    absl::Status read = history_->Refresh();
    // Who led before may have written his own after we did.
    const std::string path = TargetsPath(options_.run_directory);
    if (!targets.empty() && ReadFile(path).value_or("") != targets)
      read.Update(ReplaceFileFast(path, targets));
    FillDisk(options_.run_directory, live);
    if (options_.config.foreign()) FillTold(options_.run_directory, live);
    std::string text = MetricsText(*history_, live);
    const MonitoringConfig& config = options_.config.monitoring;
    if (!config.textfile.empty())
      read.Update(ReplaceFileFast(TextfilePath(config, options_.config.name), text));
    return [this, read, text = std::move(text),
            took = absl::ToDoubleSeconds(MonotonicNow() - began)]() mutable {
      refreshing_ = false;
      took_ = took;
      Warn(read);
      if (endpoint_ != nullptr) endpoint_->Serve("/metrics", kMetricsType, std::move(text));
    };
  });
}

void RunExporter::Cease() {
  serves_ = false;
  endpoint_.reset();
}

void RunExporter::End(bool complete) {
  const std::string path = TargetsPath(options_.run_directory);
  const bool last = !targets_.empty() && ReadFile(path).value_or("") == targets_;
  if (serves_ || last) {
    live_.state = "stopping";
    live_.complete = complete;
    live_.now = absl::Now();
    worker_->Finish();
    Refresh(live_);
  }
  worker_->Finish();
  Cease();
  std::error_code none;
  if (last) std::filesystem::remove(path, none);
}

}  // namespace perdure
