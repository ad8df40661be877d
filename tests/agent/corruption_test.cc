// Random damage to the files of checkpoints: what a start does (manifest, lengths, digests of
// atoms, certificate) finds all that would reach a state, reading everything finds all of it, and
// the checkpoint before is taken.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "runtime/agent/records.h"
#include "runtime/base/status.h"
#include "tests/agent/run_cycle.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

constexpr int kKinds = 9;

class CorruptionTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeCycleRun(run_);
    const auto entries = ListCheckpoints(*RunLog::Open(run_), run_);
    for (size_t i = 0; i < 2; ++i) {
      entries_[i] = entries[i];
      for (const char* file : {"part-00000.h5", "manifest.json"})
        good_[i][file] = Slurp(entries[i].path + "/" + file);
    }
    manifest_ = *ReadManifest(entries_[0].path, nullptr);
    ASSERT_EQ(good_[0]["part-00000.h5"].size(), good_[1]["part-00000.h5"].size());
  }

  // Loads as a start does, without its side effects.
  absl::Status Load(const CheckpointEntry& entry, TestState& state) const {
    ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(entry.path, &entry.commit.manifest));
    for (const PartReport& part : manifest.parts)
      if (fs::file_size(entry.path + "/" + part.file) != part.bytes)
        return DataLoss("{} has another length", part.file);
    RETURN_IF_ERROR(ReadAtoms(entry.path, manifest, CycleTable(), state.states()));
    std::vector<Digest> digests;
    for (const AtomState& atom : state.states())
      digests.push_back(
          AtomDigest(atom, CycleTable().atoms()[static_cast<size_t>(atom.atom)].count));
    if (Certificate(CycleTable(), digests, manifest.step, manifest.samples) !=
        entry.commit.certificate)
      return DataLoss("another certificate");
    return absl::OkStatus();
  }

  // Bytes of an atom's values in one dataset of the part.
  std::pair<size_t, size_t> Extent(size_t position, size_t dataset) const {
    const PartReport& part = manifest_.parts[0];
    size_t begin = part.offsets[dataset];
    const auto count = [&](size_t i) {
      return static_cast<size_t>(CycleTable().atoms()[static_cast<size_t>(part.atoms[i])].count);
    };
    for (size_t i = 0; i < position; ++i) begin += count(i) * sizeof(float);
    return {begin, count(position) * sizeof(float)};
  }
  void Flip(std::string& bytes) {
    for (uint64_t bits = 1 + random_.Below(3); bits > 0; --bits) {
      char& byte = bytes[random_.Below(bytes.size())];
      byte = static_cast<char>(byte ^ (1 << random_.Below(8)));
    }
  }
  // Two atoms change places, in one dataset or in all.
  void SwapAtoms(std::string& bytes) {
    const size_t atoms = manifest_.parts[0].atoms.size();
    size_t a = 0, b = 0;
    while (a == b || Extent(a, 0).second != Extent(b, 0).second) {
      a = random_.Below(atoms);
      b = random_.Below(atoms);
    }
    const uint64_t only = random_.Below(4);
    for (size_t dataset = 0; dataset < 3; ++dataset)
      if (only == 3 || only == dataset) {
        const auto [from, length] = Extent(a, dataset);
        std::swap_ranges(bytes.data() + from, bytes.data() + from + length,
                         bytes.data() + Extent(b, dataset).first);
      }
  }
  std::string Damaged(int kind, const std::string& file) {
    const std::string& older = good_[1][file];
    std::string bytes = good_[0][file];
    const size_t at = random_.Below(bytes.size());
    switch (kind) {
      case 0:
      case 1:
        Flip(bytes);
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.append(1 + random_.Below(5000), static_cast<char>(random_.Below(256)));
        break;
      case 4:
        bytes = older;
        break;
      case 5:  // A stale or foreign range of equal length.
        for (size_t i = at; i < std::min({bytes.size(), older.size(), at + 1 + at % 4096}); ++i)
          bytes[i] = older[i];
        break;
      case 6:  // A sector that was not written.
        for (size_t i = at / 512 * 512; i < std::min(bytes.size(), at / 512 * 512 + 512); ++i)
          bytes[i] = 0;
        break;
      case 7:  // The same bytes, elsewhere.
        std::rotate(bytes.begin(), bytes.begin() + static_cast<int64_t>(at), bytes.end());
        break;
      default:
        file == "manifest.json" ? Flip(bytes) : SwapAtoms(bytes);
    }
    return bytes;
  }

  // Whether the damage changes bytes that are state, by comparing them.
  bool TouchesState(const std::string& bytes) const {
    const std::string& good = good_[0].at("part-00000.h5");
    if (bytes.size() != good.size()) return true;
    for (size_t i = 0; i < manifest_.parts[0].atoms.size(); ++i)
      for (size_t dataset = 0; dataset < 3; ++dataset) {
        const auto [begin, length] = Extent(i, dataset);
        if (bytes.compare(begin, length, good, begin, length) != 0) return true;
      }
    return false;
  }

  void Start(int64_t step) const {
    const TestDirectory copies(MemoryDirectory());
    const std::string copy = copies.path() + "/run";
    fs::copy(run_, copy, fs::copy_options::recursive);
    RunCycle cycle(copy);
    ASSERT_OK(cycle.Start());
    ASSERT_EQ(cycle.step(), step);
    ASSERT_OK(cycle.Save(9));
    ASSERT_EQ(CheckRun(copy), 9);
  }

  void Campaign(int rounds, int starts_every) {
    TestState state(CycleTable(), 1);
    const TestState expected = CycleState(4);
    std::array<int, kKinds> done{};
    int harmless = 0;
    for (int round = 0; round < rounds; ++round) {
      const int kind = static_cast<int>(random_.Below(kKinds));
      const std::string file = random_.Below(3) == 0 ? "manifest.json" : "part-00000.h5";
      const std::string bytes = Damaged(kind, file);
      if (bytes == good_[0][file]) continue;
      SCOPED_TRACE(fmt::format("round {} kind {} {}", round, kind, file));
      const std::string path = entries_[0].path + "/" + file;
      Spill(path, bytes);
      const absl::Status loaded = Load(entries_[0], state);
      const bool bad = file == "manifest.json" || TouchesState(bytes);
      ASSERT_EQ(loaded.code(), bad ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk) << loaded;
      if (!bad) {
        ASSERT_TRUE(state == expected);
      }
      if (file != "manifest.json") {
        ASSERT_EQ(VerifyCheckpoint(entries_[0].path, manifest_).code(),
                  absl::StatusCode::kDataLoss);
      }
      if (round % starts_every == 0) ASSERT_NO_FATAL_FAILURE(Start(bad ? 3 : 4));
      Spill(path, good_[0][file]);
      ++done[static_cast<size_t>(kind)];
      harmless += bad ? 0 : 1;
    }
    ASSERT_OK(Load(entries_[0], state));
    for (const int count : done) EXPECT_GT(count, rounds / 20);
    EXPECT_LT(harmless, rounds / 2);
    RecordProperty("harmless", harmless);
  }

  TestDirectory directory_{MemoryDirectory()};
  const std::string run_ = directory_.Make("run");
  std::array<CheckpointEntry, 2> entries_;  // Newest first.
  std::array<std::map<std::string, std::string>, 2> good_;
  Manifest manifest_;
  TestRandom random_{20};
};

TEST_F(CorruptionTest, NothingDamagedIsLoaded) { Campaign(2000, 100); }
TEST_F(CorruptionTest, LongCampaign) { Campaign(100'000, 1000); }

// Files of two checkpoints exchanged whole, each good in itself.
TEST_F(CorruptionTest, ExchangedCheckpointsAreNoticed) {
  for (const char* file : {"part-00000.h5", "manifest.json"})
    for (size_t i = 0; i < 2; ++i) Spill(entries_[i].path + "/" + file, good_[1 - i][file]);
  TestState state(CycleTable(), 1);
  for (const CheckpointEntry& entry : entries_)
    EXPECT_EQ(Load(entry, state).code(), absl::StatusCode::kDataLoss);
  RunCycle cycle(run_);
  EXPECT_EQ(cycle.Start().code(), absl::StatusCode::kDataLoss);  // None is left.
}

}  // namespace
}  // namespace perdure
