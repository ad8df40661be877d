// An agent's link to processes that are no ranks at all: shells that say and do what no rank does.
#include "runtime/agent/rank_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "runtime/agent/process.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

class RankLinkTest : public testing::Test {
 protected:
  RankLinkTest() : loop_(*EventLoop::New()), oom_((Oom(0), OomFile())) {}
  std::string OomFile() const { return directory_.path() + "/oom"; }
  void Oom(int count) { std::ofstream(OomFile()) << "oom_kill " << count << "\n"; }

  RankLink& Start(const std::string& script, size_t queue_bytes_max = size_t{64} << 20) {
    link_ = *RankLink::Start(
        loop_.get(), &oom_,
        {.argv = {"/bin/sh", "-c", script},
         .environment = {},
         .log_path = directory_.path() + "/log",
         .queue_bytes_max = queue_bytes_max},
        {.frame = [this](from_rank::Frame frame) { frames_.push_back(std::move(frame)); },
         .ended =
             [this](const ProcessEnd& end, const std::string& wrong) {
               end_ = end;
               wrong_ = wrong;
             },
         .unkillable = nullptr});
    return *link_;
  }
  bool Until(const std::function<bool()>& done) {
    const absl::Time end = MonotonicNow() + absl::Seconds(60);
    while (!done() && MonotonicNow() < end) loop_->RunOnce(MonotonicNow() + absl::Milliseconds(5));
    return done();
  }
  bool Ends() {
    return Until([this] { return end_.has_value(); });
  }
  // A frame, as a shell says it.
  static std::string Say(const std::string& json) {
    return fmt::format("printf '\\{:o}\\{:o}\\0\\0%s' '{}' >&3; ", json.size() % 256,
                       json.size() / 256, json);
  }

  const TestDirectory directory_;
  const std::unique_ptr<EventLoop> loop_;
  OomKills oom_;
  std::unique_ptr<RankLink> link_;
  std::vector<from_rank::Frame> frames_;
  std::optional<ProcessEnd> end_;
  std::string wrong_;
};

TEST_F(RankLinkTest, WhatItSaysLastCounts) {
  std::string script;
  for (int i = 0; i < 200; ++i)
    script += Say(fmt::format(
        R"({{"type":"progress","generation":1,"step":{0},"work_steps":{0},"work_leaves":9,"work_nanoseconds":8}})",
        i));
  Start(script + "echo its last words >&2; exit 3");
  ASSERT_TRUE(Ends());
  EXPECT_EQ(end_->kind, EvidenceKind::kRankCrashed);
  EXPECT_EQ(end_->number, 3);
  EXPECT_EQ(wrong_, "");
  ASSERT_EQ(frames_.size(), 200u);
  EXPECT_EQ(std::get<from_rank::Progress>(frames_.back()).step, 199);
  EXPECT_EQ(link_->LogTail(), "its last words");
}

TEST_F(RankLinkTest, BytesThatAreNoFrameEndIt) {
  Start("printf '\\3\\0\\0\\0abc' >&3; sleep 1000");
  ASSERT_TRUE(Ends());
  EXPECT_THAT(wrong_, HasSubstr("not a JSON object"));
  EXPECT_TRUE(frames_.empty());
}

TEST_F(RankLinkTest, AFrameThatIsTooLongEndsIt) {
  Start("printf '\\377\\377\\377\\377' >&3; sleep 1000");
  ASSERT_TRUE(Ends());
  EXPECT_THAT(wrong_, HasSubstr("4294967295 bytes"));
}

TEST_F(RankLinkTest, AFrameThatMakesNoSenseEndsIt) {
  Start(Say(R"({"type":"progress","generation":-1,"step":"x"})") +
        Say(R"({"type":"loaded","generation":1})") + "sleep 1000");
  ASSERT_TRUE(Ends());
  EXPECT_THAT(wrong_, HasSubstr("'progress'"));
  EXPECT_TRUE(frames_.empty());  // What comes behind it does not count.
}

// The agent goes on, whatever the rank does not do.
TEST_F(RankLinkTest, OneThatDoesNotReadIsKilled) {
  RankLink& link = Start("sleep 1000", size_t{1} << 20);
  const to_rank::Fetched large{.generation = 1, .paths = {std::string(100000, 'x')}, .error = ""};
  int sent = 0;
  for (; sent < 1000 && link.running() && !end_.has_value(); ++sent) {
    link.Send(large);
    loop_->RunOnce(MonotonicNow());
  }
  ASSERT_TRUE(Ends());
  EXPECT_THAT(wrong_, HasSubstr("does not read"));
  EXPECT_GT(sent, 5);
  EXPECT_LT(sent, 100);
}

TEST_F(RankLinkTest, OneThatReadsSlowlyGetsItAll) {
  RankLink& link = Start("sleep 1; head -c 2000000 <&3 | wc -c >&2; exit 0");
  size_t bytes = 0;
  while (bytes < 2000000) {
    const to_rank::Frame large(
        to_rank::Fetched{.generation = 1, .paths = {std::string(100000, 'x')}, .error = ""});
    bytes += FrameBytes(ToJson(large))->size();
    link.Send(large);
  }
  ASSERT_TRUE(Ends());
  EXPECT_TRUE(end_->Good());
  EXPECT_EQ(link.LogTail(), "2000000");
}

TEST_F(RankLinkTest, OneThatDoesNotLeaveIsKilled) {
  RankLink& link = Start("trap '' TERM; while :; do sleep 1; done");
  link.Leave(absl::Milliseconds(100));
  ASSERT_TRUE(Ends());
  EXPECT_TRUE(end_->asked);
  EXPECT_EQ(end_->number, 9);
}

TEST_F(RankLinkTest, WantOfMemoryIsToldAsSuch) {
  RankLink& link = Start("kill -STOP $$; sleep 1000");
  Oom(1);
  ::kill(link.pid(), SIGKILL);
  ASSERT_TRUE(Ends());
  EXPECT_EQ(end_->kind, EvidenceKind::kOutOfMemory);
}

TEST_F(RankLinkTest, APageIsInherited) {
  Start("test $(wc -c <&4) -gt 1000 && test -s /proc/self/fd/4");
  ASSERT_TRUE(Ends());
  EXPECT_TRUE(end_->Good()) << end_->Text();
}

TEST_F(RankLinkTest, ItsOwnOutputAloneIsItsLast) {
  Start("echo the first; exit 1");
  ASSERT_TRUE(Ends());
  end_.reset();
  Start("exit 1");
  ASSERT_TRUE(Ends());
  EXPECT_EQ(link_->LogTail(), "");
  end_.reset();
  Start("head -c 5000 /dev/zero | tr '\\0' x");
  ASSERT_TRUE(Ends());
  EXPECT_EQ(link_->LogTail(), "..." + std::string(800, 'x'));
}

TEST_F(RankLinkTest, AProgramThatIsNotThere) {
  const auto link = RankLink::Start(
      loop_.get(), &oom_,
      {.argv = {"/nowhere/rank"}, .environment = {}, .log_path = directory_.path() + "/log"}, {});
  EXPECT_THAT(Message(link.status()), HasSubstr("/nowhere/rank"));
}

TEST_F(RankLinkTest, DiesWithItsLink) {
  const pid_t pid = Start("sleep 1000").pid();
  link_.reset();
  EXPECT_TRUE(AwaitProcessEnd(pid, absl::Seconds(10)));
}

}  // namespace
}  // namespace perdure
