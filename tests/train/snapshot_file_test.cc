// Snapshot files: what is read is what was written, or an error that names file and field, whatever
// the file has become and whenever its writer was killed.
#include "runtime/train/snapshot_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/prng.h"
#include "tests/train/recovery_world.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kHead = 4096, kTables = 136, kDigest = 152;

std::vector<TensorSpec> Tensors() {
  return {{.name = "a", .rows = 10, .cols = 10},
          {.name = "b", .rows = 1, .cols = 7},
          {.name = "c", .rows = 3, .cols = 50}};
}

class SnapshotFileTest : public testing::Test {
 protected:
  SnapshotFileTest()
      : directory_(SharedMemory(fmt::format("snapshot_file_test.{}", ::getpid()))),
        path_(directory_ + "/" + SnapshotFileName(3, 5, 0)),
        table_(Tensors(), 64) {
    fs::create_directories(directory_);
    for (size_t atom = 0; atom < table_.atoms().size(); ++atom)
      if (atom != 1) owned_.insert(owned_.begin(), static_cast<int64_t>(atom));
  }
  ~SnapshotFileTest() override { fs::remove_all(directory_); }

  SnapshotStamp Stamp(int64_t step) const {
    return {.run_id = "16ab094f051db7f4e482f044fc50f0bd",
            .generation = 3,
            .step = step,
            .rank = 5,
            .history = {.trail = {.sample_chain = DigestOf("chain"), .recent = {{0.75, 1}}},
                        .steps = {{0.5, 2}, {0.25, 3}}}};
  }
  static float Value(int64_t step, int64_t atom, size_t part, int64_t i) {
    return static_cast<float>(step * 1000 + atom * 100 + static_cast<int64_t>(part) * 10 + i % 10);
  }
  int64_t Count(int64_t atom) const { return table_.atoms()[static_cast<size_t>(atom)].count; }
  void Fill(SnapshotFile& file, int64_t step) const {
    file.Begin(Stamp(step));
    for (size_t a = 0; a < file.atoms().size(); ++a) {
      const AtomState& state = file.atoms()[a];
      for (size_t part = 0; part < kStatePartCount; ++part)
        for (int64_t i = 0; i < Count(state.atom); ++i)
          state.parts[part][i] = Value(step, state.atom, part, i);
      file.digests()[a] = AtomDigest(state, Count(state.atom));
    }
    file.Complete();
  }
  std::unique_ptr<SnapshotFile> Create() {
    absl::StatusOr<std::unique_ptr<SnapshotFile>> file =
        SnapshotFile::Create(path_, &table_, owned_);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  // All atoms of the file are those of the step.
  void ExpectHolds(const std::string& path, int64_t step, std::span<const int64_t> atoms) {
    const auto reader = SnapshotReader::Open(path, &table_);
    ASSERT_TRUE(reader.ok()) << reader.status();
    for (const int64_t atom : atoms) {
      std::vector<float> memory(static_cast<size_t>(3 * Count(atom)));
      AtomState state{.atom = atom};
      for (size_t part = 0; part < kStatePartCount; ++part)
        state.parts[part] = memory.data() + static_cast<int64_t>(part) * Count(atom);
      const absl::Status read = (*reader)->Read({&state, 1}, 2);
      ASSERT_TRUE(read.ok()) << read;
      for (size_t part = 0; part < kStatePartCount; ++part)
        for (int64_t i = 0; i < Count(atom); ++i)
          ASSERT_EQ(state.parts[part][i], Value(step, atom, part, i));
    }
  }
  absl::Status OpenAndReadAll(const std::string& path) {
    ASSIGN_OR_RETURN(const auto reader, SnapshotReader::Open(path, &table_));
    std::vector<float> memory(3 * 64);
    for (const int64_t atom : reader->atoms()) {
      const AtomState state{atom, {memory.data(), memory.data() + 64, memory.data() + 128}};
      RETURN_IF_ERROR(reader->Read({&state, 1}, 1));
    }
    return absl::OkStatus();
  }
  std::string Bytes() const { return *ReadFile(path_); }
  void Put(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }
  template <typename T>
  static void Set(std::string& bytes, size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
  }
  // Gives changed bytes the digests that they should have.
  void Seal(std::string& bytes) const {
    const Digest tables = DigestOf(bytes.data() + kHead, owned_.size() * 24);
    std::memcpy(bytes.data() + kTables, tables.bytes.data(), 16);
    std::string page = bytes.substr(0, kHead);
    std::memset(page.data() + 12, 0, 4);
    std::memset(page.data() + kDigest, 0, 16);
    const Digest digest = DigestOf(page);
    std::memcpy(bytes.data() + kDigest, digest.bytes.data(), 16);
  }

  const std::string directory_, path_;
  const AtomTable table_;
  std::vector<int64_t> owned_;
};

TEST_F(SnapshotFileTest, Names) {
  EXPECT_EQ(SnapshotFileName(3, 12, 0), "g3-r12-a");
  for (const int buffer : {0, 1}) {
    const auto name = ParseSnapshotFileName(SnapshotFileName(uint64_t{1} << 63, 7, buffer));
    EXPECT_EQ(name, (SnapshotName{uint64_t{1} << 63, 7, buffer}));
  }
  for (const char* other : {"", "g", "g3", "g3-r", "g3-r1", "g3-r1-", "g3-r1-c", "g3-r1-a ",
                            "g03-r1-a", "g3-r-1-a", "g3-r+1-a", "x3-r1-a", "g3-r1-ab", "g3r1a",
                            "lock", "g99999999999999999999-r1-a", "g3-r9999999999-a"})
    EXPECT_EQ(ParseSnapshotFileName(other), std::nullopt) << other;
}

TEST_F(SnapshotFileTest, WhatIsWrittenIsRead) {
  const auto file = Create();
  struct stat facts {};
  ASSERT_EQ(::stat(path_.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0600);
  EXPECT_EQ(facts.st_size, SnapshotFileBytes(table_, owned_));
  EXPECT_EQ(file->bytes(), facts.st_size);
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status()));
  for (const int64_t step : {4, 6}) {
    Fill(*file, step);
    const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(path_);
    ASSERT_TRUE(stamp.ok()) << stamp.status();
    EXPECT_EQ(*stamp, Stamp(step));
    ExpectHolds(path_, step, owned_);
  }
  file->Begin(Stamp(8));
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(SnapshotReader::Open(path_, &table_).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadSnapshotStamp(path_ + "x").status()));
  // An atom that it does not have.
  Fill(*file, 8);
  const AtomState other{.atom = 1};
  const absl::Status missing = (*SnapshotReader::Open(path_, &table_))->Read({&other, 1}, 1);
  EXPECT_TRUE(absl::IsDataLoss(missing));
  EXPECT_EQ(Message(missing), fmt::format("snapshot {} of rank 5: atom 1 is not in it", path_));
}

TEST_F(SnapshotFileTest, NoAtomsAreASnapshotToo) {
  const auto file = *SnapshotFile::Create(path_, &table_, {});
  file->Begin(Stamp(1));
  file->Complete();
  EXPECT_EQ(file->bytes(), kHead);
  const auto reader = SnapshotReader::Open(path_, &table_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE((*reader)->atoms().empty());
}

TEST_F(SnapshotFileTest, ANewFileTakesTheNameOfAnOldOne) {
  Fill(*Create(), 4);
  const auto again = Create();
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status()));
  EXPECT_TRUE(
      absl::IsNotFound(SnapshotFile::Create(directory_ + "/no/x", &table_, owned_).status()));
  // More than any memory.
  const AtomTable huge({{.name = "huge", .rows = 1 << 20, .cols = 1 << 20}}, int64_t{1} << 40);
  const std::vector<int64_t> all = {0};
  const absl::Status full = SnapshotFile::Create(path_, &huge, all).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_NE(Message(full).find("snapshot.every = 0"), std::string::npos);
  EXPECT_FALSE(fs::exists(path_));
}

// Every byte counts: whichever is another one, the file is not used, or the atom is not.
TEST_F(SnapshotFileTest, AnyChangedByteIsFound) {
  Fill(*Create(), 4);
  const std::string good = Bytes();
  const auto padding_begin = static_cast<size_t>(kHead) + owned_.size() * 24;
  const size_t padding_end = good.size() - static_cast<size_t>(12 * (257 - Count(1)));
  for (size_t at = 0; at < good.size(); at += at < 200 || at > 4000 ? 1 : 97) {
    if (at >= padding_begin && at < padding_end) continue;
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    Put(bad);
    const absl::Status status = OpenAndReadAll(path_);
    ASSERT_TRUE(absl::IsDataLoss(status)) << at << ": " << status;
    ASSERT_NE(Message(status).find(path_), std::string::npos) << status;
  }
  Put(good);
  EXPECT_TRUE(OpenAndReadAll(path_).ok());
}

TEST_F(SnapshotFileTest, AnyOtherLengthIsFound) {
  Fill(*Create(), 4);
  const std::string good = Bytes();
  for (const size_t length : {size_t{16}, size_t{100}, size_t{4095}, size_t{4096}, size_t{4097},
                              good.size() - 4, good.size() - 1}) {
    Put(good.substr(0, length));
    EXPECT_TRUE(absl::IsDataLoss(ReadSnapshotStamp(path_).status())) << length;
  }
  Put(good + "x");
  EXPECT_TRUE(absl::IsDataLoss(ReadSnapshotStamp(path_).status()));
  // What a killed process leaves that has not come far.
  for (const size_t length : {size_t{0}, size_t{100}, good.size()}) {
    Put(std::string(length, '\0'));
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status())) << length;
  }
  Put(good.substr(0, 8));
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status()));
  // Its first page is half filled.
  std::string begun(good.size(), '\0');
  Set<uint32_t>(begun, 8, 1);
  Put(begun);
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(path_).status()));
}

// With digests that fit, as only malice or another program makes them.
TEST_F(SnapshotFileTest, HostileHeadersAreRefused) {
  Fill(*Create(), 4);
  const std::string good = Bytes();
  const auto elements = static_cast<int64_t>(257 - Count(1));
  const std::vector<std::pair<const char*, std::function<void(std::string&)>>> changes = {
      {"magic", [](std::string& b) { b[0] = 'Q'; }},
      {"version", [](std::string& b) { Set<uint32_t>(b, 8, 1); }},
      {"state", [](std::string& b) { Set<uint32_t>(b, 12, 3); }},
      {"step", [](std::string& b) { Set<int64_t>(b, 24, -1); }},
      {"rank", [](std::string& b) { Set<int32_t>(b, 32, -1); }},
      {"padding", [](std::string& b) { Set<uint32_t>(b, 36, 1); }},
      {"padding", [](std::string& b) { b[4095] = 1; }},
      {"recent steps", [](std::string& b) { Set<uint64_t>(b, 2224, 65); }},
      {"recent steps", [](std::string& b) { Set<double>(b, 2232, kInfinity); }},
      {"atoms", [](std::string& b) { Set<int64_t>(b, 40, -1); }},
      {"atoms", [](std::string& b) { Set<int64_t>(b, 40, int64_t{1} << 60); }},
      {"elements", [](std::string& b) { Set<int64_t>(b, 40, int64_t{1} << 40); }},
      {"digest of index", [](std::string& b) { Set<int64_t>(b, 40, 7); }},
      {"elements", [](std::string& b) { Set<int64_t>(b, 48, int64_t{1} << 60); }},
      {"elements", [](std::string& b) { Set<int64_t>(b, 48, -1); }},
      {"length", [=](std::string& b) { Set<int64_t>(b, 48, elements + 1); }},
      {"run id", [](std::string& b) { b[56 + 40] = 'x'; }},
      {"index", [](std::string& b) { Set<int64_t>(b, 4096, -1); }},
      {"index", [](std::string& b) { Set<int64_t>(b, 4096, 99); }},
      {"index", [](std::string& b) { b.replace(4096, 8, b.substr(4104, 8)); }},
      {"elements", [](std::string& b) { Set<int64_t>(b, 4096, 1); }},
  };
  for (const auto& [field, change] : changes) {
    std::string bad = good;
    change(bad);
    Seal(bad);
    // Another atom of the same length is a fair index, but has not that digest.
    Put(bad);
    const absl::Status status = OpenAndReadAll(path_);
    EXPECT_TRUE(absl::IsDataLoss(status)) << field << ": " << status;
    EXPECT_NE(Message(status).find(path_), std::string::npos) << status;
    EXPECT_NE(Message(status).find(field), std::string::npos) << field << ": " << status;
  }
  std::string same = good;
  Seal(same);
  EXPECT_EQ(same, good);  // The test seals as the format says.
}

TEST_F(SnapshotFileTest, WhatIsNoFileIsRefused) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsDataLoss(ReadSnapshotStamp(path_).status()));
  fs::remove(path_);
  fs::create_symlink("/dev/zero", path_);
  EXPECT_FALSE(ReadSnapshotStamp(path_).ok());
  fs::remove(path_);
  fs::create_directory(path_);
  EXPECT_TRUE(absl::IsDataLoss(ReadSnapshotStamp(path_).status()));
}

TEST_F(SnapshotFileTest, RangesSuffice) {
  Fill(*Create(), 4);
  const std::string good = Bytes();
  Prng prng(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<int64_t> wanted;
    for (const int64_t atom : owned_)
      if (prng.OneIn(2)) wanted.push_back(atom);
    prng.Shuffle(wanted);
    const std::vector<ByteRange> ranges = SnapshotRanges(table_, owned_, wanted);
    EXPECT_EQ(ranges.front().offset, 0);
    std::string partly(good.size(), '\0');
    int64_t end = 0, bytes = 0;
    for (const ByteRange& range : ranges) {
      EXPECT_TRUE(range.offset > end || bytes == ranges.front().bytes || bytes == 0);
      EXPECT_GT(range.bytes, 0);
      end = range.offset + range.bytes;
      bytes += range.bytes;
      ASSERT_LE(static_cast<size_t>(end), good.size());
      partly.replace(static_cast<size_t>(range.offset), static_cast<size_t>(range.bytes), good,
                     static_cast<size_t>(range.offset), static_cast<size_t>(range.bytes));
    }
    int64_t needed = ranges.front().bytes;
    for (const int64_t atom : wanted) needed += 12 * Count(atom);
    EXPECT_EQ(bytes, needed);
    Put(partly);
    ExpectHolds(path_, 4, wanted);
  }
  EXPECT_EQ(SnapshotRanges(table_, owned_, owned_).size(), 2);
}

// The other copy: parts come by themselves, the head last.
TEST_F(SnapshotFileTest, AHeadCompletesACopy) {
  const auto file = Create();
  Fill(*file, 4);
  const std::string head = file->Head();
  EXPECT_EQ(head, Bytes().substr(0, static_cast<size_t>(file->head_bytes())));
  const std::string copy_path = directory_ + "/" + SnapshotFileName(3, 5, 1);
  const auto copy = *SnapshotFile::Create(copy_path, &table_, owned_);
  SnapshotStamp stamp = Stamp(4);
  stamp.history = {};
  copy->Begin(stamp);
  for (int part = 0; part < kStatePartCount; ++part)
    std::memcpy(copy->Part(part).data(), file->Part(part).data(), copy->Part(part).size());
  for (const size_t at : {size_t{3}, size_t{20}, size_t{60}, size_t{130}, size_t{140}, size_t{4100},
                          size_t{4096 + 8 * 6 + 3}}) {
    std::string bad = head;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_TRUE(absl::IsDataLoss(copy->TakeHead(bad))) << at;
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadSnapshotStamp(copy_path).status()));
  }
  copy->Begin([&] {
    SnapshotStamp other = stamp;
    other.step = 5;
    return other;
  }());
  const absl::Status other = copy->TakeHead(head);
  EXPECT_TRUE(absl::IsDataLoss(other));
  EXPECT_NE(Message(other).find("generation 3, step 4, rank 5; due was 3, 5, 5"), std::string::npos)
      << other;
  copy->Begin(stamp);
  ASSERT_TRUE(copy->TakeHead(head).ok());
  copy->Complete();
  EXPECT_EQ(*ReadFile(copy_path), Bytes());
}

// A writer that is killed at any instant leaves a file that is not complete, or one that is whole.
TEST_F(SnapshotFileTest, AKilledWriterLeavesNoTornSnapshot) {
  Prng prng(7);
  int complete = 0, not_complete = 0;
  for (int round = 0; round < 60; ++round) {
    fs::remove(path_);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const auto file = SnapshotFile::Create(path_, &table_, owned_);
      for (int64_t step = 1; file.ok(); ++step) {
        Fill(**file, step);
        ::usleep(20);
      }
      ::_exit(1);
    }
    ::usleep(static_cast<useconds_t>(1000 + prng.Below(8000)));
    ::kill(child, SIGKILL);
    int how = 0;
    ASSERT_EQ(::waitpid(child, &how, 0), child);
    ASSERT_TRUE(WIFSIGNALED(how));
    const absl::StatusOr<SnapshotStamp> stamp = ReadSnapshotStamp(path_);
    if (stamp.ok()) {
      ExpectHolds(path_, stamp->step, owned_);
      ++complete;
    } else {
      EXPECT_TRUE(absl::IsFailedPrecondition(stamp.status()) || absl::IsNotFound(stamp.status()))
          << stamp.status();
      ++not_complete;
    }
  }
  RecordProperty("complete", complete);
  RecordProperty("not_complete", not_complete);
  EXPECT_GT(complete, 0);
}

}  // namespace
}  // namespace perdure
