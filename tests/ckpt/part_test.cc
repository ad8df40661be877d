#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "ckpt/file_io.h"
#include "ckpt/sparse_image.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

// Reads all atoms back, in an order of its own.
void ExpectReadsBack(const std::string& directory, const Manifest& manifest, const AtomTable& table,
                     const TestState& expected, uint64_t seed) {
  TestState read(table, seed + 1000);
  std::vector<AtomState> wanted;
  for (const auto& group : Deal(read.states(), 1, seed))
    wanted.insert(wanted.end(), group.begin(), group.end());
  ASSERT_OK(ReadAtoms(directory, manifest, table, wanted));
  EXPECT_TRUE(read == expected);
}

TEST(Part, RandomAtomsComeBackBitForBit) {
  TestRandom random(5);
  for (int round = 0; round < 25; ++round) {
    const TestDirectory directory;
    const AtomTable table(OddTensors(), 1 + static_cast<int64_t>(random.Below(200)));
    TestState state(table, random.Next());
    const int parts = 1 + static_cast<int>(random.Below(5));
    const Manifest manifest =
        WriteCheckpoint(directory.path(), table, state, parts, random.Below(3), round);
    ExpectReadsBack(directory.path(), manifest, table, state, random.Below(3));
    EXPECT_OK(VerifyCheckpoint(directory.path(), manifest));
  }
}

TEST(Part, ManyBlocksComeBackBitForBit) {
  const TestDirectory directory;
  const AtomTable table(BigTensors(1'234'568), 99'991);
  TestState state(table, 9);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 2);
  ExpectReadsBack(directory.path(), manifest, table, state, 3);
  EXPECT_OK(VerifyCheckpoint(directory.path(), manifest));
  EXPECT_GT(manifest.parts[0].blocks.size(), 6u);
  for (const uint64_t offset : manifest.parts[0].offsets) EXPECT_EQ(offset % kBlockBytes, 0u);
}

TEST(Part, CertificateDoesNotKnowTheWriters) {
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  std::vector<Digest> certificates;
  for (const int parts : {1, 2, 3, 7})
    for (const uint64_t seed : {0, 1, 2}) {
      const TestDirectory directory;
      certificates.push_back(
          WriteCheckpoint(directory.path(), table, state, parts, seed).certificate);
    }
  for (const Digest& certificate : certificates) EXPECT_EQ(certificate, certificates[0]);
}

TEST(Part, EqualPlansGiveEqualFiles) {
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  const TestDirectory a, b;
  WriteCheckpoint(a.path(), table, state, 2);
  WriteCheckpoint(b.path(), table, state, 2);
  for (const char* file : {"part-00000.h5", "part-00001.h5", "manifest.json"})
    EXPECT_EQ(Slurp(a.path() + "/" + file), Slurp(b.path() + "/" + file)) << file;
}

TEST(Part, SubsetsAndRepeatedAtomsAreServed) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11), once(table, 1), twice(table, 2);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 3);
  std::vector<AtomState> wanted = {once.states()[5], twice.states()[5], once.states()[0]};
  ASSERT_OK(ReadAtoms(directory.path(), manifest, table, wanted));
  for (const TestState* copy : {&once, &twice})
    EXPECT_EQ(AtomDigest(const_cast<TestState*>(copy)->states()[5], table.atoms()[5].count),
              AtomDigest(state.states()[5], table.atoms()[5].count));
  EXPECT_OK(ReadAtoms(directory.path(), manifest, table, {}));
}

TEST(Part, WriterWithoutAtomsIsFine) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  Manifest manifest = TestManifest(table, 1);
  for (const auto& [file, states] :
       {std::pair{"part-00000.h5", std::span<const AtomState>(state.states())},
        std::pair{"part-00001.h5", std::span<const AtomState>()}}) {
    auto part = WritePart(directory.path(), file, table, states, 1, 3, manifest.run_id);
    ASSERT_OK(part.status());
    manifest.parts.push_back(*part);
  }
  ASSERT_OK(WriteManifest(directory.path(), table, manifest).status());
  EXPECT_OK(VerifyCheckpoint(directory.path(), manifest));
  ExpectReadsBack(directory.path(), manifest, table, state, 1);
}

TEST(Part, RanksThatAreThreadsMayWriteAndReadAtOnce) {
  const TestDirectory directory;
  const AtomTable table(BigTensors(400'000), 1000);
  TestState state(table, 3), read(table, 4);
  Manifest manifest = TestManifest(table, 9);
  const auto dealt = Deal(state.states(), 4, 1);
  manifest.parts.resize(dealt.size());
  const auto each = [&](const auto& work) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < dealt.size(); ++i) threads.emplace_back([&, i] { work(i); });
    for (std::thread& thread : threads) thread.join();
  };
  each([&](size_t i) {
    auto part = WritePart(directory.path(), fmt::format("part-{:05}.h5", i), table, dealt[i], 9, 3,
                          manifest.run_id);
    ASSERT_OK(part.status());
    manifest.parts[i] = *std::move(part);
  });
  ASSERT_OK(WriteManifest(directory.path(), table, manifest).status());
  each([&](size_t i) {
    std::vector<AtomState> wanted;
    for (const AtomState& atom : dealt[i])
      wanted.push_back(read.states()[static_cast<size_t>(atom.atom)]);
    EXPECT_OK(ReadAtoms(directory.path(), manifest, table, wanted));
    EXPECT_OK(VerifyCheckpoint(directory.path(), manifest));
  });
  EXPECT_TRUE(read == state);
}

TEST(Part, NamesAreUsedOnce) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  Spill(directory.path() + "/part-00000.h5", "mine");
  const auto part = WritePart(directory.path(), "part-00000.h5", table, state.states(), 1, 1, "r");
  EXPECT_EQ(part.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Slurp(directory.path() + "/part-00000.h5"), "mine");
  ASSERT_EQ(::symlink("/etc/passwd", (directory.path() + "/part-00001.h5").c_str()), 0);
  EXPECT_EQ(WritePart(directory.path(), "part-00001.h5", table, state.states(), 1, 1, "r")
                .status()
                .code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(Part, WrongArgumentsAreNamed) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  for (const char* name : {"", ".h5", "../x.h5", "a/b.h5", "x", "..h5", "x y.h5", ".x.h5"})
    EXPECT_EQ(WritePart(directory.path(), name, table, state.states(), 1, 1, "r").status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  std::vector<AtomState> states = state.states();
  states.push_back(states.front());
  EXPECT_THAT(Message(WritePart(directory.path(), "a.h5", table, states, 1, 1, "r").status()),
              HasSubstr("given twice"));
  states.back().atom = 99999;
  EXPECT_THAT(Message(WritePart(directory.path(), "a.h5", table, states, 1, 1, "r").status()),
              HasSubstr("no atom 99999"));
  EXPECT_EQ(WritePart(directory.path() + "/absent", "a.h5", table, state.states(), 1, 1, "r")
                .status()
                .code(),
            absl::StatusCode::kNotFound);
}

TEST(SparseImage, IsZeroWhereNothingWasWritten) {
  SparseImage image;
  const std::string text = "across a page";
  image.Write(3 * SparseImage::kPageBytes - 5, text.data(), text.size());
  image.Write(3 * SparseImage::kPageBytes - 5, "A", 1);
  std::string read(text.size() + 4, 'x');
  image.Read(3 * SparseImage::kPageBytes - 7, read.data(), read.size());
  EXPECT_EQ(read, std::string("\0\0Across a page\0\0", read.size()));
  EXPECT_EQ(image.Page(0), nullptr);
  EXPECT_NE(image.Page(3 * SparseImage::kPageBytes), nullptr);
}

TEST(Part, AnotherModelIsNotRead) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 11);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 1);
  auto tensors = OddTensors();
  tensors[2].slices = 2;
  for (const AtomTable& other :
       {AtomTable(OddTensors(), 17), AtomTable(tensors, 16), AtomTable({OddTensors()[0]}, 16)})
    EXPECT_EQ(ReadAtoms(directory.path(), manifest, other, {}).code(),
              absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace perdure
