#include "runtime/agent/control_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr Author kMe{{.job = 7, .node = 3}, 0x1234}, kOther{{.job = 8, .node = 0}, 0x5678};

std::string Lead() { return SerializeLead({.address = "10.0.0.5:4711"}); }

class ControlLogTest : public testing::Test {
 protected:
  ControlLogTest() : loop_(*EventLoop::New()) {
    log_ = *ControlLog::New(loop_.get(), *RunLog::Open(run()));
  }
  const std::string& run() const { return directory_.path(); }
  std::string Slot(Slot slot) const { return fmt::format("{}/log/{:08}.rec", run(), slot); }

  ControlLog::Filled Append(const LogEntry& entry, ControlLog::Body body) {
    std::optional<ControlLog::Filled> filled;
    log_->Append(entry, std::move(body), [&](const ControlLog::Filled& f) { filled = f; });
    while (!filled.has_value()) loop_->RunOnce();
    return *filled;
  }
  ControlLog::Filled AppendLead(perdure::Slot slot, const Author& author, uint64_t id) {
    return Append({.slot = slot, .kind = EntryKind::kLead, .author = author, .id = id}, Lead);
  }
  ControlLog::Entries Read(perdure::Slot from) {
    std::optional<ControlLog::Entries> reading;
    log_->Read(from, [&](ControlLog::Entries r) { reading = std::move(r); });
    while (!reading.has_value()) loop_->RunOnce();
    return *reading;
  }

  const TestDirectory directory_;
  const std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<ControlLog> log_;
};

TEST_F(ControlLogTest, EntriesComeBackAsTheyWere) {
  const PlacedLayout layout{
      .generation = 5, .shape = {1, 1, 2}, .seats = {{3, 0}, {9, 1}}, .domains = {8, 2}};
  const Failure failure{.kind = EvidenceKind::kHung, .number = 0, .step = 39, .node = NodeId{9}};
  const std::vector<LogEntry> written = {
      {.slot = 0, .kind = EntryKind::kLead, .author = kMe, .id = 1, .layout = {}},
      {.slot = 1,
       .kind = EntryKind::kStart,
       .author = kMe,
       .id = 2,
       .generation = 5,
       .step = 40,
       .from_checkpoint = true,
       .layout = layout,
       .failure = failure},
      {.slot = 2,
       .kind = EntryKind::kCommit,
       .author = kMe,
       .id = 3,
       .generation = 5,
       .step = 50,
       .layout = {}},
      {.slot = 3,
       .kind = EntryKind::kEnd,
       .author = kMe,
       .id = 4,
       .generation = 5,
       .step = 51,
       .exit_code = 75,
       .layout = {}}};
  const std::vector<ControlLog::Body> bodies = {
      Lead,
      [&] {
        return SerializeStart({.shape = layout.shape,
                               .seats = layout.seats,
                               .domains = layout.domains,
                               .layout = "x",
                               .step = 40,
                               .from_checkpoint = true,
                               .failure = failure});
      },
      [] {
        return SerializeCommit({"s000000050.g5.00000000", 50, 50, {}, {}, 1, 1});
      },
      [] {
        return SerializeEnd({"stopped", 75, 51});
      }};
  for (size_t i = 0; i < written.size(); ++i) {
    const ControlLog::Filled filled = Append(written[i], bodies[i]);
    ASSERT_OK(filled.status);
    EXPECT_EQ(filled.entry, written[i]);
  }
  // Also by another process, and a record of a tool among them.
  auto other = RunLog::Open(run());
  ASSERT_OK(other->Append(RecordType::kVerified, 5,
                          SerializeVerified({"s000000050.g5.00000000", "read"})));
  const auto reading = Read(1);
  ASSERT_OK(reading.status());
  ASSERT_EQ(reading->entries.size(), 4u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(reading->entries[i], written[i + 1]) << i;
  EXPECT_EQ(reading->entries[3].kind, EntryKind::kNote);
  ASSERT_TRUE(reading->leader.has_value());
  EXPECT_EQ(reading->leader->author, kMe);
  EXPECT_EQ(reading->leader->record, (LeadRecord{"10.0.0.5:4711"}));
  EXPECT_TRUE(Read(17)->entries.empty());
}

TEST_F(ControlLogTest, PulsesAreReadWithTheLog) {
  EXPECT_FALSE(Read(0)->pulse.has_value());
  for (const uint64_t count : {1, 2}) {
    std::optional<absl::Status> left;
    log_->Leave({.term = 4, .count = count}, [&](const absl::Status& status) { left = status; });
    log_->Leave({.term = 4, .count = 99}, [](const absl::Status&) { FAIL() << "one is enough"; });
    while (!left.has_value()) loop_->RunOnce();
    EXPECT_OK(*left);
    EXPECT_EQ(Read(0)->pulse, (Pulse{4, count}));
  }
}

TEST_F(ControlLogTest, ATakenSlotShowsWhoHasIt) {
  auto other = RunLog::Open(run());
  other->WriteAs(kOther);
  ASSERT_OK(other->Append(RecordType::kLead, 0, Lead(), 99));
  bool made = false;
  const ControlLog::Filled filled =
      Append({.slot = 0, .kind = EntryKind::kLead, .author = kMe, .id = 1}, [&] {
        made = true;
        return Lead();
      });
  ASSERT_TRUE(filled.entry.has_value()) << filled.status;
  EXPECT_EQ(filled.entry->author, kOther);
  EXPECT_EQ(filled.entry->id, 99u);
  EXPECT_FALSE(made);
  // A second try of what is there already gives it back.
  EXPECT_EQ(AppendLead(1, kMe, 2).entry->id, 2u);
  EXPECT_EQ(AppendLead(1, kMe, 2).entry->id, 2u);
  EXPECT_EQ(RunLog::Open(run())->next_slot(), 2u);
}

TEST_F(ControlLogTest, WithoutABodyNothingIsWritten) {
  const ControlLog::Filled filled = Append({.slot = 0, .kind = EntryKind::kLead, .author = kMe},
                                           [] { return NotFound("no manifest"); });
  EXPECT_FALSE(filled.entry.has_value());
  EXPECT_TRUE(filled.no_body);
  EXPECT_EQ(Message(filled.status), "no manifest");
  EXPECT_EQ(RunLog::Open(run())->next_slot(), 0u);
}

TEST_F(ControlLogTest, ANoteIsARecordOfItsOwnType) {
  ASSERT_TRUE(AppendLead(0, kMe, 1).entry.has_value());
  const LogEntry note{
      .slot = 1, .kind = EntryKind::kNote, .author = kMe, .id = 2, .layout = {}, .note = 70};
  const auto append = [&](absl::StatusOr<ControlLog::NoteBody> body) {
    std::optional<ControlLog::Filled> filled;
    log_->AppendNote(
        note, [&] { return body; }, [&](const ControlLog::Filled& f) { filled = f; });
    while (!filled.has_value()) loop_->RunOnce();
    return *filled;
  };
  EXPECT_TRUE(append(Internal("nothing to say")).no_body);
  const std::string body = SerializeAttempt({.name = "s000000050.g5.00000000"});
  const ControlLog::Filled filled =
      append(ControlLog::NoteBody{.type = RecordType::kAttempt, .body = body});
  ASSERT_OK(filled.status);
  EXPECT_EQ(filled.entry->kind, EntryKind::kNote);
  EXPECT_EQ(filled.entry->id, 2u);
  EXPECT_EQ(filled.entry->note, 0u) << "its author knows";
  auto other = RunLog::Open(run());
  ASSERT_EQ(other->next_slot(), 2u);
  EXPECT_EQ(other->records()[1].type, RecordType::kAttempt);
  EXPECT_EQ(other->records()[1].body, body);
  EXPECT_EQ(other->records()[1].author, kMe);
}

TEST_F(ControlLogTest, WhoHasReadWhatIsGoneIsTold) {
  auto other = RunLog::Open(run());
  ASSERT_OK(other->Append(RecordType::kLead, 0, Lead()));
  ASSERT_EQ(Read(0)->entries.size(), 1u);
  std::filesystem::remove(Slot(0));
  EXPECT_TRUE(absl::IsFailedPrecondition(AppendLead(1, kMe, 1).status));
  // And a slot behind one that nobody has filled.
  EXPECT_TRUE(absl::IsFailedPrecondition(AppendLead(7, kMe, 1).status));
  EXPECT_FALSE(std::filesystem::exists(Slot(1)));
}

TEST_F(ControlLogTest, DamageIsTold) {
  ASSERT_TRUE(AppendLead(0, kMe, 1).entry.has_value());
  std::ofstream(Slot(1)) << "PERDUREL";
  EXPECT_TRUE(absl::IsDataLoss(Read(0).status()));
  EXPECT_TRUE(absl::IsDataLoss(AppendLead(1, kMe, 2).status));
}

// Its owner's loop goes on while the file system does not answer.
TEST_F(ControlLogTest, AStallHoldsUpNobodyElse) {
  std::atomic<bool> go = false;
  bool appended = false, ticked = false;
  log_->Append(
      {.slot = 0, .kind = EntryKind::kLead, .author = kMe, .id = 1},
      [&] {
        while (!go) std::this_thread::yield();
        return Lead();
      },
      [&](const ControlLog::Filled&) { appended = true; });
  loop_->AddTimer(MonotonicNow(), [&] { ticked = true; });
  while (!ticked) loop_->RunOnce();
  EXPECT_FALSE(appended);
  go = true;
  while (!appended) loop_->RunOnce();
}

}  // namespace
}  // namespace perdure
