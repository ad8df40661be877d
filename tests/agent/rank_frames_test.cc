#include "runtime/agent/rank_frames.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "runtime/agent/rank_page.h"
#include "runtime/base/status.h"
#include "runtime/wire/event_loop.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using ::testing::HasSubstr;

const std::string kBytes("\0\xff\n\"", 4);

std::vector<to_rank::Frame> FramesToRank() {
  to_rank::Prepare held{.generation = std::numeric_limits<uint64_t>::max(),
                        .rank = 7,
                        .local_rank = 3,
                        .tensor = 2,
                        .pipeline = 4,
                        .data = 3,
                        .config = "[run]\nname = \"x\"",
                        .data_directory = "/data",
                        .run_directory = "/run",
                        .run_id = "r",
                        .ranks_per_file = 2,
                        .host_threads = 9,
                        .spin = true,
                        .until_step = 10,
                        .snapshot_directory = "/dev/shm/x",
                        .snapshot_peers = {1, 0}};
  to_rank::Prepare saved = held;
  held.held = {.generation = 4, .step = 17, .tensor = 2, .pipeline = 1, .data = 5};
  saved.gaps = {{.first_step = 5, .samples = 24, .bad_step = 7, .number = 1}};
  saved.begins = 4;
  saved.checkpoint = {.path = "/run/ckpt/s", .manifest = Digest{{1, 2, 3}}};
  return {held,
          saved,
          to_rank::Table{.generation = 1, .first = 2, .addresses = {kBytes, ""}},
          to_rank::Load{1},
          to_rank::Go{1},
          to_rank::Freeze{.generation = 1, .after = -1},
          to_rank::Freeze{.generation = 1, .after = 7, .last = true, .pause = true},
          to_rank::Write{.generation = 1, .step = 0, .attempt = 2, .term = 3},
          to_rank::Verify{
              .generation = 1, .step = 2, .attempt = 3, .term = 4, .file = 5, .part = kBytes},
          to_rank::Settle{.generation = 1, .step = 2, .committed = true},
          to_rank::Corrupt{.generation = 1,
                           .step = 7,
                           .flip = {.place = FlipPlace::kExpAvgSq, .element = 1234567, .bit = 31}},
          to_rank::Fetched{.generation = 1, .paths = {"/a", "/b"}, .error = ""},
          to_rank::Stop{.generation = 1, .at_boundary = true},
          to_rank::Leave{}};
}

std::vector<from_rank::Frame> FramesFromRank() {
  StepReport report{.step = 3, .phase = 1, .samples = 2, .tokens = 4};
  report.loss = std::nextafter(1.0, 2.0);
  report.grad_norm = std::numeric_limits<double>::infinity();
  return {from_rank::Health{{{"device", "a"}, {"facts", {{"celsius", 40}}}}},
          from_rank::Present{.generation = 1, .address = kBytes},
          from_rank::Connected{1},
          from_rank::Certificate{.generation = 1, .certificate = Digest{{9}}},
          from_rank::Loaded{1},
          from_rank::Progress{
              .generation = 1, .step = 2, .work = {.steps = 3, .leaves = 4, .nanoseconds = 5}},
          from_rank::Step{.generation = 1, .report = report},
          from_rank::FoundBad{.generation = 1,
                              .gap = {.first_step = 5, .samples = 24, .bad_step = 7, .number = 1},
                              .why = "nan"},
          from_rank::Waiting{.generation = 1, .step = 2},
          from_rank::Frozen{.generation = 1, .step = 2, .file = "part-00000.h5"},
          from_rank::Written{.generation = 1,
                             .step = 2,
                             .attempt = 1,
                             .error = "no room",
                             .run = {},
                             .trail = {},
                             .wait_seconds = 0.5},
          from_rank::Written{.generation = 1,
                             .step = 2,
                             .attempt = 1,
                             .error = "",
                             .run = "{}",
                             .trail = Trail{.sample_chain = DigestOf("chain"),
                                            .recent = {{2.5, 0.75}, {-0.0, 1e-310}}}},
          from_rank::Voted{.generation = 1, .step = 2, .attempt = 1, .file = 9, .error = "block 3"},
          from_rank::Need{
              .generation = 1,
              .needs = {{.rank = 3, .ranges = {{0, 4096}, {8192, 5}}}, {.rank = 4, .ranges = {}}}},
          from_rank::OlderMayGo{1},
          from_rank::NoSnapshots{1},
          from_rank::Remark{"a line"},
          from_rank::Evidence{{{"xid", 79}}},
          from_rank::Error{.code = 13,
                           .message = "it broke",
                           .kind = EvidenceKind::kDeviceError,
                           .number = 79,
                           .slot_lost = true},
          from_rank::BrokenOff{.generation = 1, .reason = "rank 3"},
          from_rank::Stopped{1},
          from_rank::Done{.generation = 1, .complete = true}};
}

absl::Status Parse(const Json& json, const to_rank::Frame& want) {
  ASSIGN_OR_RETURN(const to_rank::Frame frame, ParseToRank(json));
  return frame == want ? absl::OkStatus() : Internal("another frame");
}
absl::Status Parse(const Json& json, const from_rank::Frame& want) {
  ASSIGN_OR_RETURN(const from_rank::Frame frame, ParseFromRank(json));
  return ToJson(frame) == ToJson(want) ? absl::OkStatus() : Internal("another frame");
}

// As it comes out of a socket.
Json Sent(const auto& frame) { return Json::parse(ToJson(frame).dump()); }

template <typename Frame>
void ComesBack(const Frame& frame) {
  const Json json = Sent(frame);
  EXPECT_TRUE(Parse(json, frame).ok()) << Parse(json, frame) << json.dump();
  for (const auto& [key, value] : json.items()) {
    Json less = json;
    less.erase(key);
    EXPECT_FALSE(Parse(less, frame).ok()) << key;
    for (const Json& other : {Json(), Json(-5), Json("zz"), Json::array({Json::array()}),
                              Json(1e300), Json({{"x", 1}})}) {
      Json wrong = json;
      wrong[key] = other;
      if (other == value) continue;
      // A null where there may be one, a text where any will do: another frame, or none.
      EXPECT_FALSE(Parse(wrong, frame).ok()) << key << " " << other.dump();
    }
  }
  Json more = json;
  more["extra"] = 1;
  EXPECT_FALSE(Parse(more, frame).ok()) << "extra";
}

TEST(RankFrames, ComeBackAsTheyWere) {
  for (const to_rank::Frame& frame : FramesToRank()) ComesBack(frame);
  for (const from_rank::Frame& frame : FramesFromRank()) ComesBack(frame);
}

TEST(RankFrames, AreNamedInErrors) {
  const auto error = [](const Json& json) { return Message(ParseToRank(json).status()); };
  EXPECT_THAT(error(Json::array()), HasSubstr("without a type"));
  EXPECT_THAT(error({{"type", 5}}), HasSubstr("without a type"));
  EXPECT_THAT(error({{"type", "dance"}}), HasSubstr("'dance'"));
  EXPECT_THAT(error({{"type", "go"}}), HasSubstr("'go': field generation"));
  Json bad = Sent(FramesToRank()[1]);
  bad["checkpoint"]["manifest"] = "xyz";
  EXPECT_THAT(error(bad), HasSubstr("checkpoint"));
  EXPECT_THAT(error(bad), HasSubstr("manifest"));
}

// ---- the page

Activity Act(int64_t step) { return {.step = step, .nanoseconds = step * 10, .micro_batch = 2}; }

TEST(RankPage, ALeaseIsOfOneGeneration) {
  const auto agent = *RankPage::Make();
  const auto rank = *RankPage::Open(::dup(agent->fd()));
  const absl::Time now = MonotonicNow();
  EXPECT_EQ(rank->LeaseOf(0), absl::InfinitePast());
  EXPECT_EQ(rank->LeaseOf(1), absl::InfinitePast());
  agent->Renew(1, now);
  EXPECT_EQ(rank->LeaseOf(1), absl::InfinitePast());  // Not joined yet.
  agent->Join(1);
  EXPECT_EQ(rank->LeaseOf(1), absl::InfinitePast());
  agent->Renew(1, now);
  EXPECT_EQ(rank->LeaseOf(1), now);
  EXPECT_EQ(rank->LeaseOf(2), absl::InfinitePast());
  agent->Renew(1, now - absl::Seconds(1));  // Never earlier.
  agent->Renew(2, now + absl::Seconds(1));
  EXPECT_EQ(rank->LeaseOf(1), now);
  agent->Join(2);
  EXPECT_EQ(rank->LeaseOf(1), absl::InfinitePast());
  EXPECT_EQ(rank->LeaseOf(2), absl::InfinitePast());
}

TEST(RankPage, KeepsTheLastThingsThatWereDone) {
  const auto agent = *RankPage::Make();
  auto rank = *RankPage::Open(::dup(agent->fd()));
  EXPECT_TRUE(agent->Activities().empty());
  for (int64_t step = 1; step <= 100; ++step) rank->Doing(Act(step));
  rank.reset();  // It outlives the rank.
  const std::vector<Activity> activities = agent->Activities();
  ASSERT_EQ(activities.size(), RankPage::kActivities);
  for (size_t i = 0; i < activities.size(); ++i)
    EXPECT_EQ(activities[i].step, static_cast<int64_t>(100 - RankPage::kActivities + 1 + i));
  EXPECT_EQ(activities.back().nanoseconds, 1000);
}

// Whoever reads while it is written gets whole entries, or none.
TEST(RankPage, IsReadWhileItIsWritten) {
  const auto agent = *RankPage::Make();
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int64_t step = 1; !stop; ++step) agent->Doing(Act(step));
  });
  for (int i = 0; i < 2000; ++i)
    for (const Activity& activity : agent->Activities())
      ASSERT_EQ(activity.nanoseconds, activity.step * 10);
  stop = true;
  writer.join();
}

TEST(RankPage, OtherDescriptorsAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(RankPage::Open(-1).status()));
  const TestDirectory directory;
  Spill(directory.path() + "/file", std::string(8192, 'x'));
  EXPECT_FALSE(RankPage::Open(::open((directory.path() + "/file").c_str(), O_RDWR)).ok());
  // A rank cannot shorten what its agent reads.
  const auto agent = *RankPage::Make();
  EXPECT_NE(::ftruncate(agent->fd(), 1), 0);
}

}  // namespace
}  // namespace perdure
