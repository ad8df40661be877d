#include "runtime/agent/rank_process.h"

#include <algorithm>
#include <bit>
#include <charconv>

#include "runtime/base/status.h"
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

class SocketHost final : public RankHost {
 public:
  SocketHost(FrameSocket* socket, int rank) : socket_(socket), rank_(rank) {}

  absl::Status Loaded(std::span<const int64_t> atoms, std::span<const Digest> digests) override {
    Json frame = {{"type", "loaded"}, {"atoms", Json::array()}, {"digests", Json::array()}};
    for (int64_t atom : atoms) frame["atoms"].push_back(atom);
    for (const Digest& digest : digests) frame["digests"].push_back(digest.Hex());
    RETURN_IF_ERROR(socket_->Send(frame));
    return Expect(*socket_, "go").status();
  }

  Command StepFinished(const StepReport& r) override {
    lost_.Update(socket_->Send({{"type", "step"},
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
                                {"sample_chain", r.sample_chain.Hex()}}));
    Command command = Command::kNone;
    while (lost_.ok()) {
      const absl::StatusOr<std::optional<Json>> frame = socket_->TryReceive();
      lost_.Update(frame.status());
      if (!frame.ok() || !frame->has_value()) break;
      if ((**frame).value("type", "") == "command")
        command = std::max(command, static_cast<Command>((**frame).value("command", 0)));
    }
    // Without a supervisor there is nobody to commit what follows.
    return lost_.ok() ? command : Command::kStop;
  }

  absl::Status PartWritten(int64_t step, const PartReport* part) override {
    RETURN_IF_ERROR(lost_);
    Json frame = {{"type", "part"}, {"step", step}, {"rank", rank_}};
    if (part != nullptr) frame["part"] = SerializePart(*part);
    return socket_->Send(frame);
  }

 private:
  FrameSocket* socket_;
  int rank_;
  absl::Status lost_;
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

absl::Status Serve(FrameSocket& socket, const std::shared_ptr<LocalHub>& hub,
                   const ConfigParser& parse_config) {
  ASSIGN_OR_RETURN(const Json init, Expect(socket, "init"));
  TrainerOptions options;
  ASSIGN_OR_RETURN(options.config, parse_config(init.at("config").get<std::string>()));
  options.data_directory = init.at("data_directory").get<std::string>();
  options.run_directory = init.at("run_directory").get<std::string>();
  options.generation = init.at("generation").get<uint64_t>();
  options.nonce = init.at("nonce").get<uint32_t>();
  options.run_id = init.at("run_id").get<std::string>();
  options.until_step = init.at("until_step").get<int64_t>();
  const int rank = init.at("rank").get<int>();
  ASSIGN_OR_RETURN(const StartPoint start, ReadStart(init));

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
  ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                   Trainer::Create(options, start, transport.get(), &host));
  ASSIGN_OR_RETURN(const bool complete, trainer->Run());
  return socket.Send({{"type", "done"}, {"complete", complete}});
}

}  // namespace

int RunRank(FrameSocket socket, std::shared_ptr<LocalHub> hub, const ConfigParser& parse_config) {
  absl::Status status;
  try {
    status = Serve(socket, hub, parse_config);
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
