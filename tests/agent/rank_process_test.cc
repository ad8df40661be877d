// RunRank against a supervisor that keeps to the protocol, and against ones that do not: it must
// end, tell why, and never hang or throw.
#include "runtime/agent/rank_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <future>
#include <thread>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "tests/train/faulty_ops.h"
#include "tests/train/trainer_harness.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kConfigText[] = "the configuration";

absl::StatusOr<RunConfig> ParseTiny(const std::string& text) {
  if (text == "bytes") return NotFound("open /{}: no", "\xff");
  if (text != kConfigText) return InvalidArgument("run.toml: '{}' is no configuration", text);
  RunConfig config = TinyConfig();
  config.layout.data = 1;
  return config;
}

class RankProcessTest : public testing::Test {
 protected:
  explicit RankProcessTest(const RankDevices& devices = {})
      : directory_(fmt::format("{}/rank_process_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_ + "/run/ckpt");
    int pair[2];
    PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    supervisor_.emplace(pair[0]);
    rank_ = std::async(std::launch::async, [fd = pair[1], devices] {
      return RunRank(FrameSocket(fd), NewLocalHub(1), ParseTiny, devices);
    });
  }
  ~RankProcessTest() override {
    if (supervisor_.has_value()) ::shutdown(supervisor_->fd(), SHUT_RDWR);
    if (rank_.valid()) rank_.wait();
    std::filesystem::remove_all(directory_);
  }

  Json Init() const {
    return {{"type", "init"},
            {"config", kConfigText},
            {"rank", 0},
            {"local_rank", 0},
            {"data_directory", directory_},
            {"run_directory", directory_ + "/run"},
            {"generation", 1},
            {"nonce", 3},
            {"ranks_per_file", 1},
            {"host_threads", 1},
            {"run_id", "tiny"},
            {"until_step", -1},
            {"start_step", 0},
            {"sample_chain", Digest().Hex()},
            {"checkpoint", ""},
            {"manifest_digest", ""},
            {"spin", false}};
  }
  void Send(const Json& frame) { ASSERT_TRUE(supervisor_->Send(frame).ok()); }
  // The next frame; a rank that never answers fails the test instead of hanging it.
  absl::StatusOr<Json> Next() {
    while (true) {
      ASSIGN_OR_RETURN(std::optional<Json> frame, supervisor_->TryReceive());
      // For people, and at any time.
      if (frame.has_value() && frame->value("type", "") == "waiting") continue;
      if (frame.has_value()) return *std::move(frame);
      pollfd wait{.fd = supervisor_->fd(), .events = POLLIN, .revents = 0};
      if (::poll(&wait, 1, 30000) <= 0) return DeadlineExceeded("no frame from the rank");
    }
  }
  // The next frame, which is to be of that type.
  Json Receive(const std::string& type) {
    const absl::StatusOr<Json> frame = Next();
    EXPECT_TRUE(frame.ok()) << frame.status();
    if (!frame.ok()) return Json::object();
    EXPECT_EQ(frame->value("type", ""), type) << frame->dump().substr(0, 500);
    return *frame;
  }
  // Until the rank has its transport connected and, with data there, its state loaded.
  void Introduce() {
    Send(Init());
    Receive("health");
    const Json address = Receive("address");
    Send({{"type", "table"}, {"addresses", {address["address"]}}});
  }
  int ExitCode() {
    if (rank_.wait_for(std::chrono::seconds(30)) != std::future_status::ready) {
      ADD_FAILURE() << "the rank hangs";
      return -1;
    }
    return rank_.get();
  }
  // An error frame, then the end.
  void ExpectError(const std::string& message) {
    Json error = Next().value_or(Json::object());
    if (error.value("type", "") == "health") error = Receive("error");
    EXPECT_EQ(error.value("type", ""), "error") << error.dump();
    EXPECT_THAT(error.value("message", ""), HasSubstr(message));
    EXPECT_NE(error.value("code", 0), 0);
    EXPECT_EQ(ExitCode(), 1);
    EXPECT_EQ(Next().status().code(), absl::StatusCode::kUnavailable);
  }

  std::string directory_;
  std::optional<FrameSocket> supervisor_;
  std::future<int> rank_;
};

TEST_F(RankProcessTest, ASupervisorThatClosesAtOnce) {
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

TEST_F(RankProcessTest, AFrameOfAnotherType) {
  Send({{"type", "go"}});
  ExpectError("frame 'go' where 'init' was due");
}

TEST_F(RankProcessTest, AFrameWithoutAType) {
  Send({{"n", 1}});
  ExpectError("frame '' where 'init' was due");
}

TEST_F(RankProcessTest, ATypeThatIsNoText) {
  Send({{"type", 5}});
  ExpectError("type must be string");
}

TEST_F(RankProcessTest, BytesThatAreNoFrame) {
  const std::string bytes("\x03\0\0\0abc", 7);
  ASSERT_EQ(::send(supervisor_->fd(), bytes.data(), bytes.size(), 0), 7);
  ExpectError("not a JSON object");
}

TEST_F(RankProcessTest, AConfigurationThatIsNone) {
  Json init = Init();
  init["config"] = "[model";
  Send(init);
  ExpectError("run.toml: '[model' is no configuration");
}

// The reason may hold any bytes, and is told all the same.
TEST_F(RankProcessTest, AReasonThatIsNotUtf8) {
  Json init = Init();
  init["config"] = "bytes";
  Send(init);
  ExpectError("open /\xef\xbf\xbd: no");
}

TEST_F(RankProcessTest, ARankBeyondTheLayout) {
  Json init = Init();
  init["rank"] = 7;
  Send(init);
  ExpectError("7");
}

TEST_F(RankProcessTest, ADigestThatIsNone) {
  Json init = Init();
  init["sample_chain"] = "xyz";
  Send(init);
  ExpectError("xyz");
}

TEST_F(RankProcessTest, ACheckpointThatIsNotThere) {
  Json init = Init();
  init["checkpoint"] = directory_ + "/run/ckpt/step-9";
  init["manifest_digest"] = Digest().Hex();
  Send(init);
  ExpectError(directory_ + "/run/ckpt/step-9");
}

TEST_F(RankProcessTest, ASupervisorThatClosesBeforeTheTable) {
  Send(Init());
  Receive("health");
  Receive("address");
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

TEST_F(RankProcessTest, ATableWithoutAddresses) {
  Send(Init());
  Receive("health");
  Receive("address");
  Send({{"type", "table"}});
  ExpectError("addresses");
}

TEST_F(RankProcessTest, ATableOfAnotherSize) {
  Send(Init());
  Receive("health");
  const Json address = Receive("address");
  Send({{"type", "table"}, {"addresses", {address["address"], address["address"]}}});
  ExpectError("2");
}

TEST_F(RankProcessTest, DataThatIsNotThere) {
  Introduce();
  Receive("loaded");
  Send({{"type", "go"}});
  ExpectError(directory_);
}

class RankProcessKeyTest : public RankProcessTest,
                           public testing::WithParamInterface<const char*> {};

TEST_P(RankProcessKeyTest, IsMissed) {
  Json init = Init();
  ASSERT_EQ(init.erase(GetParam()), 1);
  Send(init);
  ExpectError(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Init, RankProcessKeyTest,
                         testing::Values("config", "rank", "data_directory", "run_directory",
                                         "generation", "nonce", "ranks_per_file", "host_threads",
                                         "run_id", "until_step", "start_step", "sample_chain",
                                         "checkpoint", "spin"),
                         [](const auto& instance) { return std::string(instance.param); });

class RankProcessHexTest : public RankProcessTest,
                           public testing::WithParamInterface<const char*> {};

TEST_P(RankProcessHexTest, IsRefused) {
  Send(Init());
  Receive("health");
  Receive("address");
  Send({{"type", "table"}, {"addresses", {GetParam()}}});
  ExpectError(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Address, RankProcessHexTest,
                         testing::Values("zz", "abc", "+1", "0x12", "6c 6f"),
                         [](const auto& instance) { return fmt::format("n{}", instance.index); });

// With data, as far as the steps.
class RankProcessTrainingTest : public RankProcessTest {
 protected:
  RankProcessTrainingTest() { WriteTinyData(directory_); }

  static Json StopCommand() {
    return {{"type", "command"}, {"command", static_cast<int>(Command::kStop)}};
  }
  static std::string Bytes(const Json& frame) {
    const std::string body = frame.dump();
    const auto length = static_cast<uint32_t>(body.size());
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    return bytes + body;
  }
};

TEST_F(RankProcessTrainingTest, AStopIsObeyedWithACheckpoint) {
  Introduce();
  const Json loaded = Receive("loaded");
  EXPECT_GT(loaded["atoms"].size(), 100);
  EXPECT_EQ(loaded["atoms"].size(), loaded["digests"].size());
  // In one write, so that the command is there before the first step is.
  const std::string both = Bytes({{"type", "go"}}) + Bytes(StopCommand());
  ASSERT_EQ(::send(supervisor_->fd(), both.data(), both.size(), 0),
            static_cast<ssize_t>(both.size()));
  EXPECT_EQ(Receive("step")["step"], 1);
  EXPECT_EQ(Receive("step")["step"], 2);  // Commands act after the step that follows.
  const auto order = [&](SaveOrder::Kind kind, uint32_t of) -> Json {
    return {{"type", "order"}, {"step", 2}, {"kind", static_cast<int>(kind)}, {"nonce", of}};
  };
  const Json frozen = Receive("frozen");
  EXPECT_EQ(frozen["step"], 2);
  EXPECT_EQ(frozen["file"], "part-00000.h5");
  Send(order(SaveOrder::Kind::kWrite, 5));
  const Json saved = Receive("saved");
  EXPECT_EQ(saved["step"], 2);
  EXPECT_EQ(saved["nonce"], 5);
  EXPECT_FALSE(saved.contains("error")) << saved;
  // Reads back what it is told to, writes again what it is told to, and ends when that is settled.
  const auto run = ParseRun(saved["run"].get<std::string>());
  ASSERT_TRUE(run.ok()) << run.status();
  const auto part = JoinRuns({&*run, 1});
  ASSERT_TRUE(part.ok()) << part.status();
  const uint32_t nonce = saved["nonce"];
  Json verify = order(SaveOrder::Kind::kVerify, nonce);
  verify["part"] = SerializePart(*part);
  Send(verify);
  const Json voted = Receive("voted");
  EXPECT_FALSE(voted.contains("error")) << voted;
  PartReport wrong = *part;
  wrong.blocks[1].bytes[0] ^= 1;
  verify["part"] = SerializePart(wrong);
  Send(verify);
  EXPECT_THAT(Receive("voted")["error"].get<std::string>(), HasSubstr("block 1"));
  Send(order(SaveOrder::Kind::kWrite, nonce + 1));
  const Json again = Receive("saved");
  EXPECT_EQ(again["nonce"], nonce + 1);
  EXPECT_EQ(again["run"], saved["run"]);
  Send(order(SaveOrder::Kind::kSettled, 0));
  EXPECT_EQ(Receive("done")["complete"], false);
  EXPECT_EQ(ExitCode(), 0);
}

TEST_F(RankProcessTrainingTest, ASupervisorThatGoesBeforeItSaysGo) {
  Introduce();
  Receive("loaded");
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

TEST_F(RankProcessTrainingTest, AnOrderThatMakesNoSenseEndsTheRank) {
  Introduce();
  Receive("loaded");
  Send(StopCommand());
  Send({{"type", "go"}});
  Json frame;
  do {
    const absl::StatusOr<Json> next = Next();
    ASSERT_TRUE(next.ok()) << next.status();
    frame = *next;
  } while (frame["type"] != "frozen");
  Send({{"type", "order"}, {"step", 77}, {"kind", 2}, {"nonce", 0}});
  ExpectError("about step 77");
}

TEST_F(RankProcessTrainingTest, ASupervisorThatGoesWhileTraining) {
  Introduce();
  Receive("loaded");
  Send({{"type", "go"}});
  supervisor_.reset();  // What it has sent is still read.
  EXPECT_EQ(ExitCode(), 1);
}

// A device that does not compute what it should: the rank refuses before it has met the others.
class RankProcessBadDeviceTest : public RankProcessTest {
 protected:
  RankProcessBadDeviceTest()
      : RankProcessTest({.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
          return RankDevice{.ops = std::make_unique<FaultyOps>(Faults{.matmul = 1}),
                            .name = "the faulty device"};
        }}) {}
};

TEST_F(RankProcessBadDeviceTest, IsRefusedBeforeAnyAddress) {
  Send(Init());
  const Json health = Receive("health");
  EXPECT_EQ(health["checked"], true);
  EXPECT_EQ(health["code"], static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_THAT(health["device"].get<std::string>(), HasSubstr("the faulty device of host "));
  EXPECT_THAT(health["error"].get<std::string>(), HasSubstr("of a fp32 product"));
  ExpectError("exclude its node");
}

// Likewise, and NVML knows of an Xid.
class RankProcessBadGpuTest : public RankProcessTest {
 protected:
  RankProcessBadGpuTest()
      : RankProcessTest({.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                           return RankDevice{
                               .ops = std::make_unique<FaultyOps>(Faults{.download = 0}),
                               .name = "a GPU",
                               .pci_bus_id = "0000:3b:00.0"};
                         },
                         .nvml = PERDURE_BINARY_DIR "/tests/libfake_nvml.so"}) {}
};

TEST_F(RankProcessBadGpuTest, EvidenceComesBeforeTheVerdict) {
  Send(Init());
  EXPECT_EQ(Receive("evidence")["xid"], 79);
  Json frame = {{"type", "evidence"}};
  while (frame.value("type", "") == "evidence") frame = Next().value_or(Json::object());
  EXPECT_EQ(frame.value("type", ""), "health");
  EXPECT_EQ(frame["facts"]["uuid"], "GPU-1234");
  ExpectError("went over the link");
}

// A GPU as far as NVML knows, which sees an Xid, a double-bit error and the end of the device.
class RankProcessNvmlTest : public RankProcessTest {
 protected:
  explicit RankProcessNvmlTest(const std::string& nvml = PERDURE_BINARY_DIR
                               "/tests/libfake_nvml.so")
      : RankProcessTest({.make = [](const RunConfig&, int) -> absl::StatusOr<RankDevice> {
                           return RankDevice{
                               .ops = NewCpuOps(1), .name = "a GPU", .pci_bus_id = "0000:3b:00.0"};
                         },
                         .nvml = nvml}) {
    WriteTinyData(directory_);
  }
};

TEST_F(RankProcessNvmlTest, FactsAndEvidenceAreTold) {
  Introduce();
  std::vector<Json> evidence;
  for (Json frame = Json::object(); frame.value("type", "") != "loaded" || evidence.size() < 3;) {
    const absl::StatusOr<Json> next = Next();
    ASSERT_TRUE(next.ok()) << next.status();
    if (next->at("type") == "evidence")
      evidence.push_back(*next);
    else
      frame = *next;
  }
  EXPECT_EQ(evidence[0]["xid"], 79);
  EXPECT_EQ(evidence[2]["event"], "lost");
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

// What came in last is told before the error that it explains.
TEST_F(RankProcessNvmlTest, EvidenceComesBeforeTheError) {
  Introduce();
  std::vector<std::string> types;
  while (types.empty() || types.back() != "error") {
    const absl::StatusOr<Json> next = Next();
    ASSERT_TRUE(next.ok()) << next.status();
    types.push_back(next->at("type"));
    if (types.back() != "loaded") continue;
    std::filesystem::remove_all(directory_);
    Send({{"type", "go"}});
  }
  EXPECT_THAT(types, ::testing::Contains("evidence"));
  EXPECT_EQ(ExitCode(), 1);
}

class RankProcessNoNvmlTest : public RankProcessNvmlTest {
 protected:
  RankProcessNoNvmlTest() : RankProcessNvmlTest("libnone-at-all.so.1") {}
};

TEST_F(RankProcessNoNvmlTest, IsSaidAndFailsNothing) {
  Send(Init());
  const Json health = Receive("health");
  EXPECT_THAT(health["no_nvml"].get<std::string>(), HasSubstr("libnone-at-all.so.1 is not here"));
  EXPECT_FALSE(health.contains("facts"));
  EXPECT_FALSE(health.contains("error"));
  Receive("address");
}

}  // namespace
}  // namespace perdure
