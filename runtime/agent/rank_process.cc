#include "runtime/agent/rank_process.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "runtime/base/status.h"
#include "runtime/train/health.h"
#include "runtime/train/trainer.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> Expect(FrameSocket& socket, const char* type) {
  ASSIGN_OR_RETURN(Json frame, socket.Receive());
  const std::string got = frame.value("type", "");
  if (got != type)
    return DataLoss("the supervisor sent a frame '{}' where '{}' was due", got, type);
  return frame;
}

std::string ToHex(const std::string& bytes) {
  std::string hex;
  for (char c : bytes) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return hex;
}

absl::StatusOr<std::string> FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    const std::string_view digits = std::string_view(hex).substr(i, 2);
    uint8_t byte = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
    if (digits.size() != 2 || parsed.ec != std::errc() || parsed.ptr != digits.data() + 2)
      return DataLoss("the supervisor sent address '{}', which is not hex", hex);
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

// The supervisor at the other end of a socket. Three threads meet here: the one that trains, the
// saver's, and one of its own that receives.
class SocketHost final : public RankHost {
 public:
  SocketHost(FrameSocket* socket, int rank)
      : socket_(socket), rank_(rank), receiver_([this] { Receive(); }) {}
  ~SocketHost() override {
    socket_->ShutdownRead();
    receiver_.join();
  }

  void Remark(const std::string& line) override {
    const absl::Status sent = Send({{"type", "remark"}, {"line", line}});
    const std::lock_guard lock(mutex_);
    lost_.Update(sent);
  }

  absl::Status Loaded(std::span<const int64_t> atoms, std::span<const Digest> digests) override {
    Json frame = {{"type", "loaded"}, {"atoms", Json::array()}, {"digests", Json::array()}};
    for (int64_t atom : atoms) frame["atoms"].push_back(atom);
    for (const Digest& digest : digests) frame["digests"].push_back(digest.Hex());
    RETURN_IF_ERROR(Send(frame));
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return go_ || !lost_.ok(); });
    return go_ ? absl::OkStatus() : lost_;
  }

  Command StepFinished(const StepReport& r) override {
    const absl::Status sent = Send({{"type", "step"},
                                    {"step", r.step},
                                    {"phase", r.phase},
                                    {"samples", r.samples},
                                    {"tokens", r.tokens},
                                    {"step_tokens", r.step_tokens},
                                    {"loss_bits", std::bit_cast<uint64_t>(r.loss)},
                                    {"grad_norm", r.grad_norm},
                                    {"rate", r.rate},
                                    {"batch", r.batch},
                                    {"context", r.context},
                                    {"seconds", r.seconds},
                                    {"wait_seconds", r.wait_seconds},
                                    {"first_sample", r.first_sample},
                                    {"sample_chain", r.sample_chain.Hex()}});
    const std::lock_guard lock(mutex_);
    lost_.Update(sent);
    // Without a supervisor there is nobody to commit what follows.
    return lost_.ok() ? std::exchange(command_, Command::kNone) : Command::kStop;
  }

  // All ranks wait for the same reason.
  void Waiting(int64_t step) override {
    if (rank_ == 0) (void)Send({{"type", "waiting"}, {"step", step}});
  }

  absl::StatusOr<SaveOrder> Frozen(int64_t step, const std::string& file, uint32_t) override {
    RETURN_IF_ERROR(Send({{"type", "frozen"}, {"step", step}, {"file", file}}));
    return NextOrder(step);
  }

  absl::Status Saved(const SavedRun& saved) override {
    Json frame = {{"type", "saved"},
                  {"step", saved.step},
                  {"nonce", saved.nonce},
                  {"wait_seconds", saved.wait_seconds},
                  {"freeze_seconds", saved.freeze_seconds},
                  {"copy_seconds", saved.copy_seconds},
                  {"write_seconds", saved.write_seconds}};
    if (!saved.status.ok()) frame["error"] = Message(saved.status);
    if (saved.run.has_value()) frame["run"] = SerializeRun(*saved.run);
    return Send(frame);
  }

  absl::StatusOr<SaveOrder> NextOrder(int64_t step) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !orders_.empty() || !lost_.ok(); });
    if (orders_.empty()) return lost_;
    const Json frame = std::move(orders_.front());
    orders_.pop_front();
    lock.unlock();
    try {
      return ParseOrder(frame, step);
    } catch (const Json::exception& error) {
      return Internal("an order from the supervisor: {}", error.what());
    }
  }

  absl::Status Verified(int64_t step, const std::string& file, const absl::Status& vote) override {
    Json frame = {{"type", "voted"}, {"step", step}, {"file", file}, {"rank", rank_}};
    if (!vote.ok()) frame["error"] = Message(vote);
    return Send(frame);
  }

  // Best effort: it is told for people.
  void Evidence(Json evidence) {
    evidence["type"] = "evidence";
    (void)Send(evidence);
  }

 private:
  static absl::StatusOr<SaveOrder> ParseOrder(const Json& frame, int64_t step) {
    if (const auto of = frame.at("step").get<int64_t>(); of != step)
      return Internal("the supervisor ordered something about step {} while {} is being saved", of,
                      step);
    SaveOrder order{.kind = static_cast<SaveOrder::Kind>(frame.at("kind").get<int>()),
                    .nonce = frame.at("nonce").get<uint32_t>()};
    if (order.kind == SaveOrder::Kind::kVerify) {
      ASSIGN_OR_RETURN(order.part, ParsePart(frame.at("part").get<std::string>()));
    }
    return order;
  }

  absl::Status Send(const Json& frame) {
    const std::lock_guard lock(send_mutex_);
    return socket_->Send(frame);
  }

  void Receive() {
    for (;;) {
      absl::StatusOr<Json> frame = socket_->Receive();
      const std::lock_guard lock(mutex_);
      changed_.notify_all();
      if (!frame.ok()) {
        lost_.Update(frame.status());
        return;
      }
      const std::string type = frame->value("type", "");
      if (type == "go") go_ = true;
      if (type == "command")
        command_ = std::max(command_, static_cast<Command>(frame->value("command", 0)));
      if (type == "order") orders_.push_back(*std::move(frame));
    }
  }

  FrameSocket* socket_;
  const int rank_;
  std::mutex send_mutex_;
  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  bool go_ = false;
  Command command_ = Command::kNone;
  std::deque<Json> orders_;
  absl::Status lost_;
  std::thread receiver_;  // Last: it uses all of the above.
};

absl::StatusOr<StartPoint> ReadStart(const Json& init) {
  StartPoint start;
  start.step = init.at("start_step").get<int64_t>();
  ASSIGN_OR_RETURN(start.sample_chain, Digest::FromHex(init.at("sample_chain").get<std::string>()));
  start.checkpoint = init.at("checkpoint").get<std::string>();
  if (!start.checkpoint.empty()) {
    ASSIGN_OR_RETURN(const Digest expected,
                     Digest::FromHex(init.at("manifest_digest").get<std::string>()));
    ASSIGN_OR_RETURN(start.manifest, ReadManifest(start.checkpoint, &expected));
  }
  return start;
}

std::string HostName() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

// Tries the device, where the configuration wants it, and tells the supervisor how that went.
absl::Status TellHealth(FrameSocket& socket, const RankDevice& device, bool check,
                        const absl::StatusOr<std::unique_ptr<DeviceWatch>>& watch) {
  const HealthOptions options = HealthOptionsOf(device, HostName());
  HealthReport report;
  if (check) report = CheckHealth(*device.ops, options);
  Json frame = {{"type", "health"}, {"device", options.device}, {"checked", check}};
  if (check) {
    frame["seconds"] = report.seconds;
    frame["rates"] = {{"matmul_bf16", report.matmul_bf16},
                      {"matmul_fp32", report.matmul_fp32},
                      {"memory", report.memory},
                      {"upload", report.upload},
                      {"download", report.download}};
  }
  if (!device.pci_bus_id.empty()) {
    if (watch.ok())
      frame["facts"] = (*watch)->Facts();  // Behind the load, which says more than idling.
    else
      frame["no_nvml"] = Message(watch.status());
  }
  if (!report.status.ok()) {
    // What explains the failure is told before it. Nobody else sends yet.
    if (watch.ok() && *watch != nullptr) {
      (*watch)->Start([&socket](Json evidence) {
        evidence["type"] = "evidence";
        (void)socket.Send(evidence);
      });
      (*watch)->Stop();
    }
    frame["code"] = static_cast<int>(report.status.code());
    frame["error"] = Message(report.status);
  }
  RETURN_IF_ERROR(socket.Send(frame));
  return report.status;
}

absl::Status Serve(FrameSocket& socket, const std::shared_ptr<LocalHub>& hub,
                   const ConfigParser& parse_config, const RankDevices& devices) {
  ASSIGN_OR_RETURN(const Json init, Expect(socket, "init"));
  TrainerOptions options;
  ASSIGN_OR_RETURN(options.config, parse_config(init.at("config").get<std::string>()));
  options.data_directory = init.at("data_directory").get<std::string>();
  options.run_directory = init.at("run_directory").get<std::string>();
  options.generation = init.at("generation").get<uint64_t>();
  options.nonce = init.at("nonce").get<uint32_t>();
  options.ranks_per_file = init.at("ranks_per_file").get<int64_t>();
  options.host_threads = init.at("host_threads").get<int>();
  options.run_id = init.at("run_id").get<std::string>();
  options.until_step = init.at("until_step").get<int64_t>();
  const int rank = init.at("rank").get<int>();
  ASSIGN_OR_RETURN(const StartPoint start, ReadStart(init));
  ASSIGN_OR_RETURN(RankDevice device,
                   devices.make(options.config, init.at("local_rank").get<int>()));
  absl::StatusOr<std::unique_ptr<DeviceWatch>> watch = nullptr;
  if (!device.pci_bus_id.empty()) watch = DeviceWatch::Open(devices.nvml, device.pci_bus_id);
  RETURN_IF_ERROR(TellHealth(socket, device, options.config.job.health_check, watch));

  const TransportOptions transport_options{.rank = rank,
                                           .size = static_cast<int>(options.config.layout.ranks()),
                                           .spin = init.at("spin").get<bool>(),
                                           .network = options.config.layout.network};
  ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                   NewTransport(options.config.layout.transport, transport_options, hub));
  ASSIGN_OR_RETURN(const std::string address, transport->LocalAddress());
  RETURN_IF_ERROR(socket.Send({{"type", "address"}, {"address", ToHex(address)}}));
  ASSIGN_OR_RETURN(const Json table, Expect(socket, "table"));
  std::vector<std::string> addresses;
  for (const Json& hex : table.at("addresses")) {
    ASSIGN_OR_RETURN(addresses.emplace_back(), FromHex(hex.get<std::string>()));
  }
  RETURN_IF_ERROR(transport->Connect(addresses, absl::Seconds(60)));

  SocketHost host(&socket, rank);
  // Before the host ends, however this does, the watch has told what it knows.
  const absl::Cleanup stop_watch = [&watch] {
    if (watch.ok()) watch->reset();
  };
  if (watch.ok() && *watch != nullptr)
    (*watch)->Start([&host](const Json& evidence) { host.Evidence(evidence); });
  ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                   Trainer::Create(options, start, std::move(device.ops), transport.get(), &host));
  ASSIGN_OR_RETURN(const Outcome outcome, trainer->Run());
  if (watch.ok()) watch->reset();  // Nobody else sends from here on.
  return socket.Send({{"type", "done"}, {"complete", outcome == Outcome::kComplete}});
}

}  // namespace

int RunRank(FrameSocket socket, std::shared_ptr<LocalHub> hub, const ConfigParser& parse_config,
            const RankDevices& devices) {
  absl::Status status;
  try {
    status = Serve(socket, hub, parse_config, devices);
  } catch (const Json::exception& error) {  // A frame without a field: our own supervisor's fault.
    status = Internal("frame from the supervisor: {}", error.what());
  }
  if (status.ok()) return 0;
  // Best effort: without a supervisor nobody listens, and the exit code still tells.
  (void)socket.Send(
      {{"type", "error"}, {"code", static_cast<int>(status.code())}, {"message", Message(status)}});
  return 1;
}

}  // namespace perdure
