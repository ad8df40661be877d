#include "runtime/control/message_codec.h"

#include <gtest/gtest.h>

#include <limits>

namespace perdure {
namespace {

// One message of each type, no field left at its default.
std::vector<ControlMessage> OneOfEach() {
  msg::Prepare prepare;  // Field by field: GCC 12 sees ghosts in nested initializers.
  prepare.term = 3;
  prepare.generation = 9;
  prepare.shape = {.tensor = 2, .pipeline = 3, .data = 4};
  prepare.ranks = {{.local_rank = 1, .rank = 7}, {.local_rank = 2, .rank = 8}};
  prepare.resume.from_checkpoint = false;
  prepare.resume.generation = 8;
  prepare.resume.step = 120;
  prepare.resume.shape = {.tensor = 4, .pipeline = 5, .data = 6};
  prepare.resume.elsewhere = {{.rank = 3, .node = 5}};
  prepare.resume.checkpoint = "s30.g2";
  prepare.children = {10, 11};
  prepare.gaps = {{.first_step = 5, .samples = 8, .bad_step = 6, .number = 1},
                  {.first_step = 30, .samples = 1000, .bad_step = 31, .number = 2}};
  prepare.begins = 4;
  return {
      msg::Report{.term = 1,
                  .incarnation = ~uint64_t{0},
                  .sequence = 300,
                  .echo = std::numeric_limits<int64_t>::min(),
                  .slots = uint64_t{1} << 63,
                  .domain = 4,
                  .leaving = true,
                  .generation = 6,
                  .stage = NodeStage::kDone,
                  .finished = 77,
                  .failed_local_rank = 3,
                  .failure = EvidenceKind::kCleared,
                  .failure_number = -9,
                  .frozen = 70,
                  .waits = true,
                  .works = {{1, 2, 3}, {int64_t{1} << 40, 5, std::numeric_limits<int64_t>::max()}},
                  .bad = {.gap = {.first_step = 5, .samples = 300, .bad_step = 78, .number = 2},
                          .why = "nan"}},
      msg::Stopped{
          .term = 1, .incarnation = 3, .generation = 2, .holdings = {{2, 40, 0}, {2, 41, 1}}},
      msg::Present{.term = 1, .generation = 2, .addresses = {"a:1", std::string(300, 'x')}},
      msg::Voted{.term = 1, .generation = 2, .step = 3, .attempt = 1, .file = 4, .ok = true},
      msg::NeedTable{.term = 1, .generation = 2},
      msg::Answer{.term = 1, .sequence = 2, .stamp = -5, .generation = 3, .lease = 2'000'000'000},
      msg::Announce{.term = 1},
      msg::Stop{.term = 1, .generation = 2, .at_boundary = true, .stalled = true},
      prepare,
      msg::Table{.term = 1,
                 .generation = 2,
                 .ranks = 4,
                 .first = 1,
                 .count = 2,
                 .packed = std::string("\0\xff", 2)},
      msg::Go{.term = 1, .generation = 2},
      msg::Save{.term = 1, .generation = 2, .after = 9, .last = true, .pause = true},
      msg::Write{.term = 1, .generation = 2, .step = 9, .attempt = 2},
      msg::Verify{.term = 1, .generation = 2, .step = 9, .attempt = 2, .file = 3, .packed = "p"},
      msg::Settle{.term = 1, .generation = 2, .step = 9, .committed = true},
      msg::Bye{.term = 1, .exit_code = 93},
      msg::Probe{.term = 7},
      msg::Leading{.term = 7},
      msg::Wrote{.term = 1, .generation = 2, .step = 9, .attempt = 2, .ok = true, .packed = "q"}};
}

std::string Encoded(const ControlMessage& message) {
  std::string bytes;
  EncodeMessage(message, bytes);
  return bytes;
}

TEST(MessageCodec, ImpossibleGapsAreRefused) {
  const auto refusal = [](const ControlMessage& message) {
    return std::string(DecodeMessage(Encoded(message)).status().message());
  };
  const Gap gap{.first_step = 5, .samples = 8, .bad_step = 6, .number = 1};
  const auto reported = [&](Gap with, const std::string& why = "nan") {
    return refusal(msg::Report{.bad = {.gap = with, .why = why}});
  };
  EXPECT_EQ(reported(gap), "");
  EXPECT_NE(reported(gap, std::string(kBadStepWordsMax + 1, 'x')), "");
  EXPECT_NE(reported({}, "nan"), "") << "words about nothing";
  EXPECT_NE(reported({.first_step = 7, .samples = 8, .bad_step = 6, .number = 1}), "");
  EXPECT_NE(reported({.first_step = -5, .samples = 8, .bad_step = 6, .number = 1}), "");
  EXPECT_NE(reported({.first_step = 5, .samples = -8, .bad_step = 6, .number = 1}), "");
  const auto prepared = [&](const Gaps& gaps, StepIndex begins = 0) {
    return refusal(msg::Prepare{.gaps = gaps, .begins = begins});
  };
  EXPECT_EQ(prepared({gap, gap}, 4), "");
  EXPECT_NE(prepared({gap, {.first_step = 4, .samples = 8, .bad_step = 6, .number = 1}}), "");
  EXPECT_NE(prepared(Gaps(kGapsMax + 1, gap)), "");
  EXPECT_NE(prepared({}, -1), "");
}

TEST(MessageCodec, ImpossibleWorkIsRefused) {
  const auto refused = [](std::vector<WorkDone> works) {
    return absl::IsDataLoss(
        DecodeMessage(Encoded(msg::Report{.works = std::move(works)})).status());
  };
  EXPECT_FALSE(refused(std::vector<WorkDone>(kNodeRanksMax)));
  EXPECT_TRUE(refused(std::vector<WorkDone>(kNodeRanksMax + 1)));
  for (const WorkDone& work : {WorkDone{.steps = -1}, WorkDone{.leaves = -1},
                               WorkDone{.nanoseconds = std::numeric_limits<int64_t>::min()}})
    EXPECT_TRUE(refused({{}, work}));
}

TEST(MessageCodec, EveryMessageComesBack) {
  const std::vector<ControlMessage> messages = OneOfEach();
  ASSERT_EQ(messages.size(), std::variant_size_v<ControlMessage>);
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSERT_EQ(messages[i].index(), i);
    const absl::StatusOr<ControlMessage> back = DecodeMessage(Encoded(messages[i]));
    ASSERT_TRUE(back.ok()) << i << ": " << back.status();
    EXPECT_TRUE(*back == messages[i]) << i;
  }
}

TEST(MessageCodec, TornOrLengthenedIsRefused) {
  for (const ControlMessage& message : OneOfEach()) {
    const std::string bytes = Encoded(message);
    for (size_t size = 0; size < bytes.size(); ++size)
      EXPECT_TRUE(absl::IsDataLoss(DecodeMessage(bytes.substr(0, size)).status()))
          << message.index() << " cut to " << size;
    EXPECT_TRUE(absl::IsDataLoss(DecodeMessage(bytes + '\0').status())) << message.index();
  }
}

// Whatever is read is what its sender would have written: no second form, no stray value.
TEST(MessageCodec, ChangedBytesAreRefusedOrAnotherMessage) {
  for (const ControlMessage& message : OneOfEach()) {
    const std::string bytes = Encoded(message);
    for (size_t at = 0; at < bytes.size(); ++at)
      for (int value = 0; value < 256; ++value) {
        std::string changed = bytes;
        changed[at] = static_cast<char>(value);
        const absl::StatusOr<ControlMessage> back = DecodeMessage(changed);
        if (back.ok()) {
          EXPECT_EQ(Encoded(*back), changed) << message.index() << " byte " << at << " = " << value;
        }
      }
  }
}

TEST(MessageCodec, CountsDoNotTakeMemory) {
  // A Present that claims 2^40 addresses in a message of a few bytes.
  std::string bytes = Encoded(msg::Present{.term = 1, .generation = 2, .addresses = {}});
  bytes.pop_back();
  bytes += std::string("\x80\x80\x80\x80\x80\x20", 6);
  EXPECT_TRUE(absl::IsDataLoss(DecodeMessage(bytes).status()));
}

TEST(MessageCodec, UnknownTypeIsNamed) {
  const absl::Status status = DecodeMessage("\x7f").status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_NE(std::string(status.message()).find("unknown type"), std::string::npos);
}

TEST(Addresses, PackAndUnpack) {
  std::string packed;
  for (const std::string& address : {std::string(), std::string("ucx:1"), std::string(65535, 'y')})
    PackAddress(address, packed);
  const auto addresses = UnpackAddresses(packed, 3);
  ASSERT_TRUE(addresses.ok());
  EXPECT_EQ((*addresses)[1], "ucx:1");
  EXPECT_EQ((*addresses)[2].size(), 65535u);
  EXPECT_TRUE(absl::IsDataLoss(UnpackAddresses(packed, 2).status()));
  EXPECT_TRUE(absl::IsDataLoss(UnpackAddresses(packed, 4).status()));
  for (size_t size : {size_t{1}, size_t{3}, packed.size() - 1})
    EXPECT_TRUE(absl::IsDataLoss(UnpackAddresses(packed.substr(0, size), 3).status())) << size;
}

}  // namespace
}  // namespace perdure
