// RunRank against a supervisor that keeps to the protocol, and against ones that do not: it must
// end, tell why, and never hang or throw.
#include "runtime/agent/rank_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <thread>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
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
  RankProcessTest()
      : directory_(fmt::format("{}/rank_process_test.{}", testing::TempDir(), ::getpid())) {
    std::filesystem::create_directories(directory_ + "/run/ckpt");
    int pair[2];
    PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    supervisor_.emplace(pair[0]);
    // Nothing here takes longer; a rank that never answers fails the test instead of hanging it.
    const timeval limit{.tv_sec = 30, .tv_usec = 0};
    PERDURE_CHECK(::setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    rank_ = std::async(std::launch::async, [fd = pair[1]] {
      return RunRank(FrameSocket(fd), NewLocalHub(1), ParseTiny);
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
            {"data_directory", directory_},
            {"run_directory", directory_ + "/run"},
            {"generation", 1},
            {"nonce", 3},
            {"run_id", "tiny"},
            {"until_step", -1},
            {"start_step", 0},
            {"sample_chain", Digest().Hex()},
            {"checkpoint", ""},
            {"manifest_digest", ""},
            {"spin", false}};
  }
  void Send(const Json& frame) { ASSERT_TRUE(supervisor_->Send(frame).ok()); }
  // The next frame, which is to be of that type.
  Json Receive(const std::string& type) {
    const absl::StatusOr<Json> frame = supervisor_->Receive();
    EXPECT_TRUE(frame.ok()) << frame.status();
    if (!frame.ok()) return Json::object();
    EXPECT_EQ((*frame)["type"], type) << *frame;
    return *frame;
  }
  // Until the rank has its transport connected and, with data there, its state loaded.
  void Introduce() {
    Send(Init());
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
    const Json error = Receive("error");
    EXPECT_THAT(error.value("message", ""), HasSubstr(message));
    EXPECT_NE(error.value("code", 0), 0);
    EXPECT_EQ(ExitCode(), 1);
    EXPECT_EQ(supervisor_->Receive().status().code(), absl::StatusCode::kUnavailable);
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
  Receive("address");
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

TEST_F(RankProcessTest, ATableWithoutAddresses) {
  Send(Init());
  Receive("address");
  Send({{"type", "table"}});
  ExpectError("addresses");
}

TEST_F(RankProcessTest, ATableOfAnotherSize) {
  Send(Init());
  const Json address = Receive("address");
  Send({{"type", "table"}, {"addresses", {address["address"], address["address"]}}});
  ExpectError("2");
}

TEST_F(RankProcessTest, DataThatIsNotThere) {
  Introduce();
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
                                         "generation", "nonce", "run_id", "until_step",
                                         "start_step", "sample_chain", "checkpoint", "spin"),
                         [](const auto& instance) { return std::string(instance.param); });

class RankProcessHexTest : public RankProcessTest,
                           public testing::WithParamInterface<const char*> {};

TEST_P(RankProcessHexTest, IsRefused) {
  Send(Init());
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
};

TEST_F(RankProcessTrainingTest, AStopIsObeyedWithACheckpoint) {
  Introduce();
  const Json loaded = Receive("loaded");
  EXPECT_GT(loaded["atoms"].size(), 100);
  EXPECT_EQ(loaded["atoms"].size(), loaded["digests"].size());
  Send({{"type", "go"}});
  const Json first = Receive("step");
  EXPECT_EQ(first["step"], 1);
  Send({{"type", "command"}, {"command", static_cast<int>(Command::kStop)}});
  int64_t last = 1;
  Json frame = supervisor_->Receive().value();
  for (; frame["type"] == "step"; frame = supervisor_->Receive().value())
    EXPECT_EQ(frame["step"], ++last);
  EXPECT_EQ(frame["type"], "part");
  EXPECT_EQ(frame["step"], last);
  EXPECT_TRUE(frame.contains("part"));
  const Json done = Receive("done");
  EXPECT_EQ(done["complete"], false);
  EXPECT_EQ(ExitCode(), 0);
}

TEST_F(RankProcessTrainingTest, ARefusedLoadEndsTheRank) {
  Introduce();
  Receive("loaded");
  Send({{"type", "command"}, {"command", 2}});
  ExpectError("frame 'command' where 'go' was due");
}

TEST_F(RankProcessTrainingTest, ASupervisorThatGoesWhileTraining) {
  Introduce();
  Receive("loaded");
  Send({{"type", "go"}});
  Receive("step");
  supervisor_.reset();
  EXPECT_EQ(ExitCode(), 1);
}

}  // namespace
}  // namespace perdure
