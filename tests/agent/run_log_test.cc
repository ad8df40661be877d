#include "runtime/agent/run_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/agent/job_start.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_key.h"
#include "runtime/agent/run_log_format.h"
#include "runtime/base/status.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kStart = SerializeStart(OneRankStart(0));

std::string End(int64_t step) { return SerializeEnd({"test", 0, step}); }

class RunLogTest : public testing::Test {
 protected:
  // Two generations, five records.
  void SetUp() override {
    auto log = RunLog::Open(run());
    ASSERT_OK(log.status());
    ASSERT_OK(log->Append(RecordType::kStart, 1, kStart));
    ASSERT_OK(log->Append(RecordType::kEnd, 1, End(5)));
    ASSERT_OK(log->Append(RecordType::kStart, 4, kStart));
    for (int64_t step : {7, 8}) ASSERT_OK(log->Append(RecordType::kEnd, 4, End(step)));
    records_ = log->records();
    identity_ = {log->run_id(), Slurp(run() + "/control/run.key")};
  }
  const std::string& run() const { return directory_.path(); }
  std::string Slot(uint64_t slot) const { return fmt::format("{}/log/{:08}.rec", run(), slot); }
  void ExpectBad(uint64_t slot, const std::string& why) {
    const auto log = RunLog::Open(run());
    EXPECT_EQ(log.status().code(), absl::StatusCode::kDataLoss) << why;
    EXPECT_THAT(Message(log.status()),
                AllOf(HasSubstr(fmt::format("(slot {})", slot)), HasSubstr(why)));
  }
  // A record as this run wrote it, to be changed.
  Record Written(uint64_t slot) const { return records_[slot]; }
  void Put(const Record& record, const RunIdentity& identity) {
    Spill(Slot(record.slot), EncodeRecord(record, identity, {}));
  }

  TestDirectory directory_;
  RunIdentity identity_;
  std::vector<Record> records_;
};

TEST_F(RunLogTest, ComesBackAsItWasWritten) {
  const auto log = RunLog::Open(run());
  ASSERT_OK(log.status());
  ASSERT_EQ(log->next_slot(), 5u);
  EXPECT_EQ(log->generation(), 4u);
  EXPECT_EQ(log->run_id(), identity_.run_id);
  EXPECT_EQ(log->run_id().size(), 32u);
  for (uint64_t slot = 0; slot < 5; ++slot) {
    const Record& record = log->records()[slot];
    EXPECT_EQ(record.slot, slot);
    EXPECT_EQ(record.digest, DigestOf(Slurp(Slot(slot))));
    EXPECT_EQ(record.previous, slot == 0 ? Digest{} : log->records()[slot - 1].digest);
    EXPECT_THAT(record.holder, HasSubstr(fmt::format("pid {}", ::getpid())));
  }
  EXPECT_EQ(log->records()[3].body, End(7));
  EXPECT_EQ(log->records()[2].type, RecordType::kStart);
  EXPECT_TRUE(fs::is_empty(run() + "/tmp"));
}

TEST_F(RunLogTest, NewRunIsEmptyAndPrivate) {
  const std::string fresh = run() + "/fresh";
  const auto log = RunLog::Open(fresh);
  ASSERT_OK(log.status());
  EXPECT_EQ(log->next_slot(), 0u);
  EXPECT_EQ(log->generation(), 0u);
  EXPECT_NE(log->run_id(), identity_.run_id);
  for (const auto& [path, mode] : {std::pair{"", 0700},
                                   {"/log", 0700},
                                   {"/tmp", 0700},
                                   {"/control", 0700},
                                   {"/control/run.key", 0600}}) {
    struct stat info {};
    ASSERT_EQ(::stat((fresh + path).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, mode) << path;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(fresh + "/control"), {}), 1);
}

TEST_F(RunLogTest, RefreshSeesWhatOthersAppended) {
  auto a = RunLog::Open(run()), b = RunLog::Open(run());
  ASSERT_OK(a->Append(RecordType::kEnd, 4, End(9)));
  EXPECT_EQ(b->next_slot(), 5u);
  // Whoever has not seen it cannot write, however it continues.
  EXPECT_EQ(b->Append(RecordType::kEnd, 4, End(9)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(b->next_slot(), 5u);
  ASSERT_OK(b->Refresh());
  EXPECT_EQ(b->next_slot(), 6u);
  EXPECT_OK(b->Append(RecordType::kEnd, 4, End(10)));
  EXPECT_TRUE(fs::is_empty(run() + "/tmp"));
}

// The file server lost its power: what was read is gone, or another one got its slot.
TEST_F(RunLogTest, NothingIsAppendedBehindARecordThatIsGone) {
  auto log = RunLog::Open(run());
  ASSERT_OK(log.status());
  fs::remove(Slot(4));
  const absl::Status gone = log->Append(RecordType::kEnd, 4, End(9));
  EXPECT_TRUE(absl::IsFailedPrecondition(gone)) << gone;
  EXPECT_THAT(Message(gone), HasSubstr("slot 4"));
  EXPECT_FALSE(fs::exists(Slot(5)));
  auto other = RunLog::Open(run());
  ASSERT_OK(other.status());
  ASSERT_OK(other->Append(RecordType::kEnd, 4, End(9)));
  EXPECT_TRUE(absl::IsFailedPrecondition(log->Append(RecordType::kEnd, 4, End(10))));
  EXPECT_FALSE(fs::exists(Slot(5)));
  // What this object itself has appended was synced by itself.
  ASSERT_OK(other->Append(RecordType::kEnd, 4, End(11)));
}

TEST_F(RunLogTest, ReplacedCoordinatorCannotCommit) {
  auto old = RunLog::Open(run()), next = RunLog::Open(run());
  const std::string commit = SerializeCommit({CheckpointName(1, 4, 1), 1, 8, {}, {}, 1, 1});
  ASSERT_OK(next->Append(RecordType::kStart, 5, kStart));
  EXPECT_EQ(old->Append(RecordType::kCommit, 4, commit).code(), absl::StatusCode::kAborted);
  ASSERT_OK(old->Refresh());
  EXPECT_EQ(old->Append(RecordType::kCommit, 4, commit).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(old->Append(RecordType::kStart, 5, kStart).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(old->Append(RecordType::kEnd, 6, End(1)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(old->next_slot(), 6u);
}

TEST_F(RunLogTest, WrongBodiesAreNotWritten) {
  auto log = RunLog::Open(run());
  EXPECT_EQ(log->Append(RecordType::kCommit, 4, "{}").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(log->Append(RecordType::kEnd, 4, std::string(kBodyBytesMax + 1, ' ')).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(log->next_slot(), 5u);
}

TEST_F(RunLogTest, EveryTruncationIsTorn) {
  const std::string good = Slurp(Slot(3));
  for (size_t length = 0; length < good.size(); ++length) {
    ASSERT_EQ(DecodeRecord(good.substr(0, length), identity_).status().code(),
              absl::StatusCode::kDataLoss)
        << length;
  }
  Spill(Slot(3), good.substr(0, 100));
  ExpectBad(3, "torn");
  Spill(Slot(3), "");
  ExpectBad(3, "torn");
  Spill(Slot(3), good + "x");
  ExpectBad(3, "torn");
  Spill(Slot(3), good);
  EXPECT_OK(RunLog::Open(run()).status());
}

TEST_F(RunLogTest, EveryFlippedBitIsNoticed) {
  const std::string good = Slurp(Slot(3));
  for (size_t at = 0; at < good.size() * 8; ++at) {
    std::string bad = good;
    bad[at / 8] = static_cast<char>(bad[at / 8] ^ (1 << (at % 8)));
    ASSERT_EQ(DecodeRecord(bad, identity_).status().code(), absl::StatusCode::kDataLoss) << at;
  }
}

TEST_F(RunLogTest, HostileBytesNeverCrash) {
  const std::string good = Slurp(Slot(3));
  TestRandom random(3);
  for (int round = 0; round < 20000; ++round) {
    std::string bad = good;
    for (uint64_t n = 1 + random.Below(8); n > 0; --n)
      bad[random.Below(bad.size())] = static_cast<char>(random.Next());
    bad.resize(random.Below(2 * bad.size()));
    if (bad == good) continue;
    ASSERT_FALSE(DecodeRecord(bad, identity_).ok());
  }
}

TEST_F(RunLogTest, ForgeriesAreRefused) {
  Record record = Written(4);
  record.body = End(1000);
  Put(record, {identity_.run_id, std::string(32, 'k')});
  ExpectBad(4, "forged");
  Put(record, {DigestOf("other").Hex(), identity_.key});
  ExpectBad(4, "of another run");
  record.previous.bytes[0] ^= 1;
  Put(record, identity_);
  ExpectBad(4, "out of chain");
}

TEST_F(RunLogTest, RightlySignedNonsenseIsRefused) {
  Record record = Written(4);
  record.body = "{}";
  Put(record, identity_);
  ExpectBad(4, "body of END: field reason is missing");
  record = Written(4);
  record.type = static_cast<RecordType>(9);
  Put(record, identity_);
  ExpectBad(4, "type 9");
  std::string bytes = EncodeRecord(Written(4), identity_, {});
  bytes[8] = 1;
  Spill(Slot(4), bytes);
  ExpectBad(4, "format version 1; this program reads 2");
  record = Written(4);
  record.type = RecordType::kCommit;
  record.generation = 1;
  Put(record, identity_);
  ExpectBad(4, "COMMIT of generation 1 after START of 4");
  record = Written(4);
  record.slot = 7;
  Spill(Slot(4), EncodeRecord(record, identity_, {}));
  ExpectBad(4, "written for slot 7");
}

TEST_F(RunLogTest, ExchangedAndReplayedRecordsAreRefused) {
  const std::string third = Slurp(Slot(3)), fourth = Slurp(Slot(4));
  Spill(Slot(3), fourth);
  Spill(Slot(4), third);
  ExpectBad(3, "written for slot 4");
  Spill(Slot(3), third);
  Spill(Slot(4), fourth);
  // The right slot, rightly signed, of a history that was cut off and written anew.
  for (uint64_t slot : {2, 3, 4}) fs::remove(Slot(slot));
  auto log = RunLog::Open(run());
  ASSERT_OK(log->Append(RecordType::kStart, 4, kStart));
  Spill(Slot(3), third);
  ExpectBad(3, "out of chain");
}

TEST_F(RunLogTest, HoleIsNotTheEnd) {
  fs::remove(Slot(2));
  ExpectBad(2, "is missing but slot 4 is there");
}

TEST_F(RunLogTest, OtherNamesInTheDirectoryAreIgnored) {
  Spill(run() + "/log/.nfs0001", "x");
  Spill(run() + "/log/9.rec", "x");
  Spill(run() + "/log/00000009.rec.bak", "x");
  const auto log = RunLog::Open(run());
  ASSERT_OK(log.status());
  EXPECT_EQ(log->next_slot(), 5u);
}

TEST_F(RunLogTest, RecordMustBeAPlainFile) {
  fs::rename(Slot(4), run() + "/4");
  fs::create_symlink(run() + "/4", Slot(4));
  EXPECT_FALSE(RunLog::Open(run()).ok());
  fs::remove(Slot(4));
  ASSERT_EQ(::mkfifo(Slot(4).c_str(), 0600), 0);
  EXPECT_EQ(RunLog::Open(run()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RunLogTest, KeyMustBeOursAlone) {
  const std::string key = run() + "/control/run.key";
  const auto expect = [&](absl::StatusCode code, const char* why) {
    const absl::Status status = RunLog::Open(run()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(Message(status), HasSubstr(why));
  };
  ASSERT_EQ(::chmod(key.c_str(), 0640), 0);
  expect(absl::StatusCode::kFailedPrecondition, "mode 0640");
  ASSERT_EQ(::chmod(key.c_str(), 0600), 0);
  ASSERT_EQ(::chmod((run() + "/control").c_str(), 0755), 0);
  expect(absl::StatusCode::kFailedPrecondition, "mode 0755");
  ASSERT_EQ(::chmod((run() + "/control").c_str(), 0700), 0);
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown(key.c_str(), 65534, 65534), 0);
    expect(absl::StatusCode::kFailedPrecondition, "belongs to uid 65534");
    ASSERT_EQ(::chown(key.c_str(), 0, 0), 0);
  }
  Spill(key, std::string(31, 'x'));
  expect(absl::StatusCode::kDataLoss, "32 bytes");
  Spill(key, std::string(33, 'x'));
  expect(absl::StatusCode::kDataLoss, "32 bytes");
  Spill(key, std::string(32, 'x'));
  expect(absl::StatusCode::kDataLoss, "forged, or control/run.key is not the key");
  Spill(run() + "/elsewhere", identity_.key);
  fs::remove(key);
  fs::create_symlink(run() + "/elsewhere", key);
  EXPECT_FALSE(RunLog::Open(run()).ok());
  fs::remove(key);
  // Never a new key for old records.
  expect(absl::StatusCode::kDataLoss, "run.key is missing");
  EXPECT_FALSE(fs::exists(key));
  Spill(key, identity_.key);
  ASSERT_EQ(::chmod(key.c_str(), 0600), 0);
  EXPECT_OK(RunLog::Open(run()).status());
}

TEST_F(RunLogTest, DirectoriesMayNotBeChangedByOthers) {
  const auto expect = [&](const std::string& path, const std::string& what) {
    const auto log = RunLog::Open(run());
    EXPECT_EQ(log.status().code(), absl::StatusCode::kFailedPrecondition) << log.status();
    EXPECT_THAT(Message(log.status()), AllOf(HasSubstr(path), HasSubstr(what)));
  };
  for (const std::string& path : {run(), run() + "/log", run() + "/tmp"}) {
    for (const mode_t mode : {0720, 0702, 01777}) {
      ASSERT_EQ(::chmod(path.c_str(), mode), 0);
      expect(path, fmt::format("mode {:04o}", mode));
    }
    ASSERT_EQ(::chmod(path.c_str(), 0700), 0);
    if (::geteuid() == 0 && path != run()) {
      ASSERT_EQ(::chown(path.c_str(), 65534, 65534), 0);
      expect(path, "belongs to uid 65534");
      ASSERT_EQ(::chown(path.c_str(), 0, 0), 0);
    }
  }
  for (const std::string& path : {run() + "/log", run() + "/tmp"}) {
    fs::rename(path, run() + "/elsewhere");
    fs::create_directory_symlink(run() + "/elsewhere", path);
    expect(path, "not a directory");
    fs::remove(path);
    fs::rename(run() + "/elsewhere", path);
  }
  // That others may read is the owner's affair, but for what is not finished; and how one comes to
  // the run as well.
  ASSERT_EQ(::chmod(run().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((run() + "/log").c_str(), 0750), 0);
  EXPECT_OK(RunLog::Open(run()).status());
  const TestDirectory other;
  fs::create_directory_symlink(run(), other.path() + "/run");
  EXPECT_OK(RunLog::Open(other.path() + "/run").status());
}

TEST_F(RunLogTest, UnwritableDirectoryIsNamed) {
  // As another user where this one may write everywhere; the key must be that user's then.
  const bool root = ::geteuid() == 0;
  for (const char* path : {"", "/control", "/control/run.key", "/tmp", "/log"})
    if (root) {
      ASSERT_EQ(::chown((run() + path).c_str(), 65534, 65534), 0);
    }
  for (uint64_t slot = 0; root && slot < 5; ++slot)
    ASSERT_EQ(::chown(Slot(slot).c_str(), 65534, 65534), 0);
  for (const char* folder : {"/tmp", "/log"}) {
    ASSERT_EQ(::chmod((run() + folder).c_str(), 0500), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      if (root && (::setegid(65534) != 0 || ::seteuid(65534) != 0)) ::_exit(100);
      auto log = RunLog::Open(run());
      if (!log.ok()) ::_exit(101);
      const absl::Status status = log->Append(RecordType::kEnd, 4, End(1));
      if (Message(status).find(folder) == std::string::npos) ::_exit(102);
      if (log->next_slot() != 5) ::_exit(103);
      ::_exit(static_cast<int>(status.code()));
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(absl::StatusCode::kPermissionDenied)) << folder;
    ASSERT_EQ(::chmod((run() + folder).c_str(), 0700), 0);
  }
}

TEST_F(RunLogTest, RecordsSayWhoWroteThem) {
  auto log = RunLog::Open(run());
  EXPECT_NE(log->author().incarnation, 0u);
  EXPECT_NE(log->author(), RunLog::Open(run())->author());
  ASSERT_OK(log->Append(RecordType::kEnd, 4, End(1)));
  const Author author{{.job = 77, .node = 12499}, ~uint64_t{0}};
  log->WriteAs(author);
  ASSERT_OK(log->Append(RecordType::kLead, 4, SerializeLead({"10.0.0.5:1"}), 1ull << 40));
  const auto again = RunLog::Open(run());
  EXPECT_EQ(again->records()[5].author.at, Endpoint{});
  EXPECT_EQ(again->records()[5].id, 0u);
  EXPECT_EQ(again->records()[6].author, author);
  EXPECT_EQ(again->records()[6].id, 1ull << 40);
}

TEST_F(RunLogTest, EachStartOfAJobHasItsOwnKey) {
  EXPECT_EQ(JobStart(4711, 2), 4711u * 4096 + 2);
  const auto key = [&](uint64_t job, uint64_t restart) {
    const auto opened = OpenJobKey(run(), JobStart(job, restart));
    EXPECT_TRUE(opened.ok()) << opened.status();
    return std::string(opened->bytes().begin(), opened->bytes().end());
  };
  EXPECT_EQ(key(4711, 2), key(4711, 2));
  EXPECT_NE(key(4711, 2), key(4711, 3));
  EXPECT_NE(key(4711, 2), key(4712, 2));
  EXPECT_FALSE(OpenJobKey(run() + "/elsewhere", 1).ok());
}

TEST_F(RunLogTest, HolderMayBeDescribed) {
  auto log = RunLog::Open(run());
  log->DescribeHolder("job 7, restart 0");
  ASSERT_OK(log->Append(RecordType::kEnd, 4, End(1)));
  EXPECT_THAT(RunLog::Open(run())->records()[5].holder,
              testing::StartsWith("job 7, restart 0, host "));
}

// The worked example of docs/formats.md.
TEST(RunLogFormat, IsTheDocumentedOne) {
  const std::string key = "0123456789abcdef0123456789ABCDEF";
  const RunIdentity identity{RunIdFromKey(key), key};
  const Record record{.slot = 1,
                      .type = RecordType::kEnd,
                      .generation = 3,
                      .author = {{.job = 7, .node = 5}, 0x1122334455667788},
                      .id = 9,
                      .holder = "host h",
                      .body = R"({"reason":"done","exit_code":0,"step":9})",
                      .previous = DigestOf("previous"),
                      .digest = {}};
  std::array<uint8_t, 16> nonce{};
  for (size_t i = 0; i < nonce.size(); ++i) nonce[i] = static_cast<uint8_t>(i);
  std::string hex;
  for (const char c : EncodeRecord(record, identity, nonce))
    hex += fmt::format("{:02x}", static_cast<uint8_t>(c));
  EXPECT_EQ(hex,
            "504552445552454c020000000600000001000000000000000300000000000000"
            "16ab094f051db7f4e482f044fc50f0bd43dd3dbe96ff96409fa7b7497b4e00c8"
            "000102030405060708090a0b0c0d0e0f07000000000000008877665544332211"
            "090000000000000005000000060000002800000000000000686f737420687b22"
            "726561736f6e223a22646f6e65222c22657869745f636f6465223a302c227374"
            "6570223a397d7476fd611ade3de31eeecbef5723dadadbeff8e9305ef57880f8"
            "0fb82e1129b2d5de237adf41fd6ae3bdc873d257916a");
}

}  // namespace
}  // namespace perdure
