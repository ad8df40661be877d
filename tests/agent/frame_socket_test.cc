#include "runtime/agent/frame_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// A FrameSocket and the bare descriptor of its peer.
class FrameSocketTest : public testing::Test {
 protected:
  FrameSocketTest() {
    int pair[2];
    PERDURE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    socket_.emplace(pair[0]);
    peer_ = pair[1];
  }
  ~FrameSocketTest() override { ClosePeer(); }

  void ClosePeer() {
    if (peer_ >= 0) ::close(peer_);
    peer_ = -1;
  }
  void Write(const std::string& bytes) {
    ASSERT_EQ(::send(peer_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  static std::string Frame(const std::string& body) {
    const auto length = static_cast<uint32_t>(body.size());
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    return bytes + body;
  }
  absl::StatusCode ReceiveCode() { return socket_->Receive().status().code(); }

  std::optional<FrameSocket> socket_;
  int peer_ = -1;
};

TEST_F(FrameSocketTest, FramesComeBackInOrder) {
  FrameSocket other(::dup(peer_));
  const Json one = {{"type", "step"}, {"loss_bits", ~uint64_t{0}}, {"text", "\n\0\"ü"}};
  const Json two = {{"type", "empty"}, {"list", Json::array()}};
  ASSERT_TRUE(socket_->Send(one).ok());
  ASSERT_TRUE(socket_->Send(two).ok());
  EXPECT_EQ(other.Receive().value(), one);
  EXPECT_EQ(other.Receive().value(), two);
  ASSERT_TRUE(other.Send(two).ok());
  EXPECT_EQ(socket_->Receive().value(), two);
}

// Larger than the socket's buffer: the sender blocks until the other side has read.
TEST_F(FrameSocketTest, LargeFrames) {
  const Json large = {{"atoms", std::vector<int64_t>(300000, 1234567)}};
  std::thread sender([&] { EXPECT_TRUE(socket_->Send(large).ok()); });
  FrameSocket other(::dup(peer_));
  EXPECT_EQ(other.Receive().value(), large);
  sender.join();
}

TEST_F(FrameSocketTest, ByteByByte) {
  const std::string bytes = Frame(R"({"type":"go","n":1})") + Frame("{}");
  for (size_t i = 0; i < bytes.size(); ++i) {
    Write(bytes.substr(i, 1));
    const absl::StatusOr<std::optional<Json>> frame = socket_->TryReceive();
    ASSERT_TRUE(frame.ok()) << frame.status();
    const bool ends = i + 1 == bytes.size() || i + 1 == bytes.size() - Frame("{}").size();
    EXPECT_EQ(frame->has_value(), ends) << "byte " << i;
  }
  std::thread writer([&] {
    for (const char byte : bytes) Write(std::string(1, byte));
  });
  EXPECT_EQ(socket_->Receive().value()["n"], 1);
  EXPECT_EQ(socket_->Receive().value(), Json::object());
  writer.join();
}

TEST_F(FrameSocketTest, SeveralFramesInOneWrite) {
  Write(Frame("{\"n\":1}") + Frame("{\"n\":2}") + Frame("{\"n\":3}").substr(0, 6));
  EXPECT_EQ((**socket_->TryReceive())["n"], 1);
  EXPECT_EQ((**socket_->TryReceive())["n"], 2);
  EXPECT_FALSE(socket_->TryReceive().value().has_value());
  Write(Frame("{\"n\":3}").substr(6));
  EXPECT_EQ((**socket_->TryReceive())["n"], 3);
}

TEST_F(FrameSocketTest, TryReceiveWithoutData) {
  for (int i = 0; i < 3; ++i) {
    const absl::StatusOr<std::optional<Json>> frame = socket_->TryReceive();
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_FALSE(frame->has_value());
  }
}

TEST_F(FrameSocketTest, AnOversizedLengthIsRefusedBeforeItsBytesCome) {
  const auto length = static_cast<uint32_t>(kFrameBytesMax + 1);
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  Write(bytes);
  const absl::Status status = socket_->Receive().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("268435457"));
  EXPECT_EQ(socket_->TryReceive().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(FrameSocketTest, AFrameThatIsTooLargeIsNotSent) {
  const Json large = {{"text", std::string(kFrameBytesMax, 'x')}};
  EXPECT_EQ(socket_->Send(large).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(socket_->Send({{"n", 1}}).ok());
  FrameSocket other(::dup(peer_));
  EXPECT_EQ(other.Receive().value()["n"], 1);
}

TEST_F(FrameSocketTest, WhatIsNoJsonObjectIsRefused) {
  for (const char* body : {"", "{", "[1]", "1", "null", "{} {}", "{\"a\":\"\xff\"}", "not json"}) {
    Write(Frame(body));
    EXPECT_EQ(ReceiveCode(), absl::StatusCode::kDataLoss) << body;
  }
}

TEST_F(FrameSocketTest, AClosedPeer) {
  Write(Frame("{\"n\":1}"));
  ClosePeer();
  EXPECT_EQ(socket_->Receive().value()["n"], 1);  // What it sent before is still read.
  EXPECT_EQ(ReceiveCode(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(socket_->TryReceive().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(socket_->Send({{"n", 2}}).code(), absl::StatusCode::kUnavailable);  // And no SIGPIPE.
}

TEST_F(FrameSocketTest, APeerThatClosesInsideAFrame) {
  Write(Frame("{\"n\":1}").substr(0, 7));
  ClosePeer();
  EXPECT_EQ(ReceiveCode(), absl::StatusCode::kUnavailable);
}

// Messages of errors hold paths, and paths hold any bytes.
TEST_F(FrameSocketTest, InvalidUtf8IsReplaced) {
  ASSERT_TRUE(socket_->Send({{"message", "open /tmp/\xff\xfe: no"}}).ok());
  FrameSocket other(::dup(peer_));
  const absl::StatusOr<Json> frame = other.Receive();
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_THAT((*frame)["message"].get<std::string>(), HasSubstr("\xef\xbf\xbd"));
}

TEST_F(FrameSocketTest, MovesWithItsBufferAndItsDescriptor) {
  Write(Frame("{\"n\":1}") + Frame("{\"n\":2}"));
  EXPECT_EQ(socket_->Receive().value()["n"], 1);
  FrameSocket moved(std::move(*socket_));
  socket_.reset();  // Does not close what was moved.
  EXPECT_EQ(moved.Receive().value()["n"], 2);
  EXPECT_TRUE(moved.Send({{"n", 3}}).ok());
}

}  // namespace
}  // namespace perdure
