// Part files that several writers share.
#include "ckpt/run_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <thread>

#include "ckpt/manifest_json.h"
#include "ckpt/verify.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr const char* kFile = "part-00000.h5";

class RunWriterTest : public testing::Test {
 protected:
  RunWriterTest() {
    // Runs that end inside a block, of one atom, and of many; atoms in no order of the table's.
    for (const std::vector<AtomState>& states : Deal(state_.states(), 1, /*seed=*/3))
      in_order_ = states;
    for (const AtomState& state : in_order_) plan_.atoms.push_back(state.atom);
    const auto atoms = static_cast<int64_t>(in_order_.size());
    plan_.runs = {atoms / 2, 1, atoms - atoms / 2 - 1};
  }

  std::unique_ptr<RunWriter> Create(const std::string& directory, size_t run) {
    auto writer = RunWriter::Create(directory, table_, plan_, run, stamp_, {.buffers = 8});
    EXPECT_OK(writer.status());
    return *std::move(writer);
  }
  std::span<const AtomState> StatesOf(size_t run) const {
    size_t first = 0;
    for (size_t r = 0; r < run; ++r) first += static_cast<size_t>(plan_.runs[r]);
    return std::span(in_order_).subspan(first, static_cast<size_t>(plan_.runs[run]));
  }
  RunReport Write(const std::string& directory, size_t run) {
    const auto writer = Create(directory, run);
    for (const AtomState& state : StatesOf(run)) EXPECT_OK(writer->Append(state));
    auto report = writer->Finish();
    EXPECT_OK(report.status());
    return *std::move(report);
  }
  std::vector<RunReport> WriteAll(const std::string& directory) {
    std::vector<RunReport> runs;
    for (size_t run = 0; run < plan_.runs.size(); ++run) runs.push_back(Write(directory, run));
    return runs;
  }
  Manifest ManifestOf(PartReport part) const {
    Manifest manifest = TestManifest(table_, stamp_.step);
    manifest.parts = {std::move(part)};
    return manifest;
  }
  std::string JoinError(std::vector<RunReport> runs) const {
    const auto part = JoinRuns(runs);
    EXPECT_EQ(part.status().code(), absl::StatusCode::kDataLoss);
    return Message(part.status());
  }

  const AtomTable table_{BigTensors(600'000), 5000};
  TestState state_{table_, 7};
  std::vector<AtomState> in_order_;
  PartPlan plan_{.file = kFile, .atoms = {}, .runs = {}};
  const PartStamp stamp_{
      .step = 120, .generation = 3, .run_id = "00112233445566778899aabbccddeeff"};
};

TEST_F(RunWriterTest, EveryOrderOfWritersGivesTheSameFile) {
  std::string expected;
  std::vector<size_t> order = {0, 1, 2};
  do {
    const TestDirectory directory;
    for (const size_t run : order) Write(directory.path(), run);
    const std::string bytes = Slurp(directory.path() + "/" + kFile);
    if (expected.empty()) expected = bytes;
    EXPECT_TRUE(bytes == expected);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(RunWriterTest, ThreadsThatWriteAtOnceGiveTheSameFile) {
  const TestDirectory one;
  auto part = JoinRuns(WriteAll(one.path()));
  ASSERT_OK(part.status());
  for (int round = 0; round < 4; ++round) {
    const TestDirectory directory;
    std::vector<RunReport> runs(3);
    std::vector<std::thread> threads;
    for (size_t run = 0; run < 3; ++run)
      threads.emplace_back([&, run] { runs[run] = Write(directory.path(), run); });
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(Slurp(directory.path() + "/" + kFile) == Slurp(one.path() + "/" + kFile));
    std::rotate(runs.begin(), runs.begin() + round % 3, runs.end());
    const auto joined = JoinRuns(runs);
    ASSERT_OK(joined.status());
    EXPECT_EQ(SerializePart(*joined), SerializePart(*part));
    EXPECT_OK(VerifyPart(directory.path(), *joined, table_, stamp_, nullptr));
  }
}

// The writers of one thread, an atom of each in turn; all of them open before any ends.
TEST_F(RunWriterTest, InterleavedWritersAreReadBackBitForBit) {
  const TestDirectory directory;
  std::vector<std::unique_ptr<RunWriter>> writers;
  for (size_t run = 0; run < 3; ++run) writers.push_back(Create(directory.path(), run));
  for (size_t i = 0; i < StatesOf(2).size() || i < StatesOf(0).size(); ++i)
    for (size_t run = 3; run-- > 0;)
      if (i < StatesOf(run).size()) ASSERT_OK(writers[run]->Append(StatesOf(run)[i]));
  std::vector<RunReport> runs;
  for (const size_t run : {1, 2, 0}) runs.push_back(*writers[run]->Finish());
  auto part = JoinRuns(runs);
  ASSERT_OK(part.status());
  Manifest manifest = ManifestOf(*std::move(part));
  ASSERT_OK(WriteManifest(directory.path(), table_, manifest).status());
  ASSERT_OK(VerifyCheckpoint(directory.path(), manifest));
  TestState read(table_, 99);
  ASSERT_OK(ReadAtoms(directory.path(), manifest, table_, read.states()));
  EXPECT_TRUE(read == state_);
}

// A writer that is not done leaves something that nobody takes for the file.
TEST_F(RunWriterTest, AMissingRunIsMissed) {
  const TestDirectory directory;
  const std::vector<RunReport> runs = {Write(directory.path(), 0), Write(directory.path(), 2)};
  EXPECT_THAT(JoinError(runs), HasSubstr("run 1 is missing"));
  // Nor does a lie help.
  const TestDirectory whole;
  const auto part = JoinRuns(WriteAll(whole.path()));
  ASSERT_OK(part.status());
  const absl::Status status = VerifyPart(directory.path(), *part, table_, stamp_, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("block"));
}

TEST_F(RunWriterTest, JoinRefusesEveryInconsistencyByName) {
  const TestDirectory directory;
  const std::vector<RunReport> good = WriteAll(directory.path());
  ASSERT_OK(JoinRuns(good).status());
  EXPECT_THAT(JoinError({}), HasSubstr("without a run"));
  EXPECT_THAT(JoinError({good[0], good[1], good[2], good[1]}),
              HasSubstr("run 1 was written twice"));
  EXPECT_THAT(JoinError({good[2], good[0]}), HasSubstr("run 1 is missing"));
  const auto with = [&](const std::function<void(std::vector<RunReport>&)>& change) {
    std::vector<RunReport> runs = good;
    change(runs);
    return JoinError(runs);
  };
  using Change = std::function<void(RunReport&)>;
  for (const Change& change : std::vector<Change>{
           [](RunReport& run) { run.file = "part-00001.h5"; },
           [](RunReport& run) { run.runs[0] -= 1; }, [](RunReport& run) { run.bytes += 1; },
           [](RunReport& run) { run.offsets[1] += 4; },
           [](RunReport& run) { run.atoms.pop_back(); },
           [](RunReport& run) { run.atom_digests.pop_back(); },
           [](RunReport& run) { run.blocks.pop_back(); }})
    EXPECT_THAT(with([&](auto& runs) { change(runs[2]); }), HasSubstr("runs 0 and 2 disagree"));
  EXPECT_THAT(with([](auto& runs) { runs[2].run = 3; }), HasSubstr("runs 0 and 3 disagree"));
  EXPECT_THAT(with([](auto& runs) {
                runs[1].blocks.pop_back();
                runs[1].block_digests.pop_back();
              }),
              HasSubstr("nobody wrote block"));
  EXPECT_THAT(with([](auto& runs) { runs[1].blocks[0] = runs[0].blocks[0]; }), HasSubstr("twice"));
  EXPECT_THAT(with([](auto& runs) { runs[1].blocks[0] = uint64_t{1} << 40; }), HasSubstr("block"));
  EXPECT_THAT(with([](auto& runs) {
                for (RunReport& run : runs) run.bytes = ~uint64_t{0};
              }),
              HasSubstr("blocks"));
  EXPECT_THAT(with([](auto& runs) {
                for (RunReport& run : runs) run.file = "../part-00000.h5";
              }),
              HasSubstr("name of a part file"));
}

// What comes from another process is refused or is a report that joining refuses; never a crash.
TEST_F(RunWriterTest, HostileReportsNeverCrash) {
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 1);
  const TestDirectory directory;
  PartPlan plan{.file = kFile, .atoms = {3, 1, 2}, .runs = {2, 1}};
  std::vector<RunReport> runs;
  for (const auto& [run, atoms] : {std::pair<size_t, std::vector<size_t>>{0, {3, 1}}, {1, {2}}}) {
    const auto writer = RunWriter::Create(directory.path(), table, plan, run, stamp_, {});
    ASSERT_OK(writer.status());
    for (const size_t atom : atoms) ASSERT_OK((*writer)->Append(state.states()[atom]));
    runs.push_back(*(*writer)->Finish());
  }
  const std::string good = SerializeRun(runs[0]);
  ASSERT_EQ(SerializeRun(*ParseRun(good)), good);
  const auto feed = [&](const std::string& text) {
    const auto run = ParseRun(text);
    if (!run.ok()) return;
    const auto part = JoinRuns(std::vector<RunReport>{*run, runs[1]});
    if (!part.ok()) return;
    EXPECT_OK(ParsePart(SerializePart(*part)).status());
    (void)VerifyPart(directory.path(), *part, table, stamp_, nullptr);
  };
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_FALSE(ParseRun(good.substr(0, length)).ok()) << length;
  TestRandom random(4);
  constexpr std::string_view kBytes = "0123456789-.eE\"[]{},: \\u\x01\xff";
  for (int round = 0; round < 4000; ++round) {
    std::string text = good;
    for (uint64_t i = random.Below(3) + 1; i > 0; --i) {
      const size_t at = random.Below(text.size());
      const char byte = kBytes[random.Below(kBytes.size())];
      if (random.Below(2) == 0)
        text[at] = byte;
      else
        text.insert(at, random.Below(6) + 1, byte);
    }
    feed(text);
  }
  for (const char* text : {"", "null", "[]", "3", "\"run\"", "{}", "{\"file\": 3}", "[[[[[[[[[["})
    EXPECT_EQ(ParseRun(text).status().code(), absl::StatusCode::kDataLoss) << text;
  EXPECT_FALSE(ParseRun(std::string(100'000, '[')).ok());
}

// Atoms of another table, offsets beyond the file: reports are not believed before they are read.
TEST_F(RunWriterTest, VerifyBelievesNoReport) {
  const TestDirectory directory;
  const auto part = JoinRuns(WriteAll(directory.path()));
  ASSERT_OK(part.status());
  const auto error = [&](const std::function<void(PartReport&)>& change) {
    PartReport other = *part;
    change(other);
    const absl::Status status = VerifyPart(directory.path(), other, table_, stamp_, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    return Message(status);
  };
  EXPECT_THAT(error([](auto& p) { p.atoms[5] = 1 << 20; }), HasSubstr("no atom"));
  EXPECT_THAT(error([](auto& p) { p.atoms[5] = -1; }), HasSubstr("no atom"));
  EXPECT_THAT(error([](auto& p) { p.offsets[2] = ~uint64_t{0}; }), HasSubstr("offsets[2]"));
  EXPECT_THAT(error([](auto& p) { p.blocks.pop_back(); }), HasSubstr("blocks"));
  EXPECT_THAT(error([](auto& p) { p.runs[1] = 0; }), HasSubstr("runs"));
  EXPECT_THAT(error([](auto& p) { std::swap(p.atoms[0], p.atoms[1]); }), HasSubstr("atom"));
}

TEST_F(RunWriterTest, ManifestsWithWrongRunsAreRefused) {
  const TestDirectory directory;
  auto part = JoinRuns(WriteAll(directory.path()));
  ASSERT_OK(part.status());
  Manifest manifest = ManifestOf(*part);
  ASSERT_OK(WriteManifest(directory.path(), table_, manifest).status());
  ASSERT_OK(VerifyCheckpoint(directory.path(), manifest));
  const std::vector<int64_t> good = manifest.parts[0].runs;
  using Runs = std::vector<int64_t>;
  const int64_t atoms = good[0] + good[1] + good[2];
  for (const Runs& runs :
       {Runs{}, Runs{atoms + 1}, Runs{good[0], good[1]}, Runs{0, atoms}, Runs{-1, atoms + 1},
        Runs{good[0], good[1], good[2], 1}, Runs{std::numeric_limits<int64_t>::max(), atoms}}) {
    manifest.parts[0].runs = runs;
    const auto text = SerializeManifest(manifest);
    ASSERT_OK(text.status());
    EXPECT_THAT(Message(ParseManifest(*text).status()), HasSubstr("parts[0].runs"));
    EXPECT_EQ(VerifyCheckpoint(directory.path(), manifest).code(), absl::StatusCode::kDataLoss);
    TestState read(table_, 9);
    EXPECT_EQ(ReadAtoms(directory.path(), manifest, table_, read.states()).code(),
              absl::StatusCode::kDataLoss);
  }
  // Right sums, other runs: the elements stand elsewhere than where they are sought.
  for (const Runs& runs : {Runs{atoms}, Runs{good[0] + 1, good[2]}, Runs{1, 1, atoms - 2},
                           Runs{good[2], good[1], good[0]}}) {
    if (runs == good) continue;
    manifest.parts[0].runs = runs;
    EXPECT_EQ(VerifyCheckpoint(directory.path(), manifest).code(), absl::StatusCode::kDataLoss);
    TestState read(table_, 9);
    EXPECT_EQ(ReadAtoms(directory.path(), manifest, table_, read.states()).code(),
              absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace perdure
