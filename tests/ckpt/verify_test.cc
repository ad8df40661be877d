#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ckpt/file_io.h"
#include "ckpt/manifest_json.h"
#include "ckpt/store_hdf5.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

// Writes one byte in place.
void Poke(const std::string& path, size_t at, char byte) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(byte);
  ASSERT_TRUE(file.flush().good()) << path;
}

class VerifyTest : public testing::Test {
 protected:
  VerifyTest() { manifest_ = WriteCheckpoint(directory_.path(), table_, state_, 2); }
  std::string file(int part) const {
    return directory_.path() + fmt::format("/part-{:05}.h5", part);
  }
  absl::Status Verify() const { return VerifyCheckpoint(directory_.path(), manifest_); }
  absl::Status ReadAll() {
    TestState read(table_, 1);
    return ReadAtoms(directory_.path(), manifest_, table_, read.states());
  }
  void ExpectBad(const std::string& what) {
    EXPECT_EQ(Verify().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(Message(Verify()), HasSubstr(what));
  }

  absl::Status Check(const PartLayout& layout,
                     const std::array<uint64_t, kStatePartCount>& offsets) const {
    const auto opened = OpenPartFile(file(0));
    EXPECT_OK(opened.status());
    return CheckPartLayout(*opened, layout, offsets);
  }

  const AtomTable table_{OddTensors(), 16};
  TestState state_{table_, 7};
  TestDirectory directory_;
  Manifest manifest_;
};

TEST_F(VerifyTest, GoodIsGood) {
  ASSERT_OK(Verify());
  uint64_t last = 0, all = 0;
  ASSERT_OK(VerifyCheckpoint(directory_.path(), manifest_, [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    last = done;
    all = total;
  }));
  EXPECT_EQ(last, all);
  EXPECT_EQ(all, manifest_.parts[0].bytes + manifest_.parts[1].bytes);
}

TEST_F(VerifyTest, EveryByteOfEveryFileCounts) {
  for (int part = 0; part < 2; ++part) {
    const std::string good = Slurp(file(part));
    for (size_t at = 0; at < good.size(); ++at) {
      Poke(file(part), at, static_cast<char>(good[at] ^ (1 << (at % 8))));
      const absl::Status status = Verify();
      ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << at;
      ASSERT_THAT(Message(status), AllOf(HasSubstr(file(part)), HasSubstr("block 0")));
      Poke(file(part), at, good[at]);
    }
  }
  ASSERT_OK(Verify());
}

TEST_F(VerifyTest, MissingTruncatedAndLongerFilesAreNamed) {
  const std::string good = Slurp(file(1));
  Spill(file(1), good.substr(0, good.size() - 1));
  ExpectBad("truncated");
  EXPECT_THAT(Message(ReadAll()), AllOf(HasSubstr(file(1)), HasSubstr("truncated")));
  Spill(file(1), good + "x");
  ExpectBad("something was added");
  Spill(file(1), "");
  ExpectBad("has 0 bytes");
  fs::remove(file(1));
  ExpectBad("is missing");
  EXPECT_EQ(ReadAll().code(), absl::StatusCode::kDataLoss);
  Spill(file(1) + ".real", good);
  fs::create_symlink(file(1) + ".real", file(1));
  ExpectBad("symbolic link");
}

TEST_F(VerifyTest, ExchangedFilesAreNoticed) {
  // Of equal length, so that only their content tells.
  const TestDirectory directory;
  const AtomTable table(BigTensors(64), 16);
  TestState state(table, 7);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 2);
  ASSERT_EQ(manifest.parts[0].bytes, manifest.parts[1].bytes);
  const std::string a = directory.path() + "/part-00000.h5",
                    b = directory.path() + "/part-00001.h5";
  const std::string first = Slurp(a);
  Spill(a, Slurp(b));
  Spill(b, first);
  const absl::Status status = VerifyCheckpoint(directory.path(), manifest);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("part-00000.h5: block 0"));
}

TEST_F(VerifyTest, ManifestOfAnotherCheckpointIsNoticed) {
  const TestDirectory newer;
  TestState later(table_, 8);
  const Manifest manifest = WriteCheckpoint(newer.path(), table_, later, 2);
  EXPECT_EQ(VerifyCheckpoint(directory_.path(), manifest).code(), absl::StatusCode::kDataLoss);
}

TEST_F(VerifyTest, ForgedDigestsMustAgreeAmongThemselves) {
  Manifest forged = manifest_;
  forged.certificate.bytes[0] ^= 1;
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), forged)), HasSubstr("certificate"));
  forged = manifest_;
  forged.samples += 1;
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), forged)), HasSubstr("certificate"));
  forged = manifest_;
  forged.parts[1].atom_digests[2].bytes[3] ^= 1;
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), forged)),
              AllOf(HasSubstr("part-00001.h5: atom"), HasSubstr("although its blocks do not")));
  forged = manifest_;
  forged.parts[0].file = "../x.h5";
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), forged)), HasSubstr("parts[0].file"));
}

// Right by every digest, but not what HDF5 finds there.
TEST_F(VerifyTest, FileThatContradictsTheManifestIsNoticed) {
  Manifest other = manifest_;
  other.generation = 4;
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), other)),
              HasSubstr("attribute generation"));
  other = manifest_;
  other.run_id = "another";
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), other)), HasSubstr("attribute run_id"));
  other = manifest_;
  other.tensors[1].name = "mron";
  std::vector<Digest> digests(table_.atoms().size());
  for (const PartReport& part : other.parts)
    for (size_t i = 0; i < part.atoms.size(); ++i)
      digests[static_cast<size_t>(part.atoms[i])] = part.atom_digests[i];
  const AtomTable renamed(other.tensors, other.atom_elements);
  other.certificate = Certificate(renamed, digests, other.step, other.samples);
  EXPECT_THAT(Message(VerifyCheckpoint(directory_.path(), other)), HasSubstr("/index/tensors"));
}

TEST_F(VerifyTest, LayoutCheckComparesOffsetsAtomsAndLengths) {
  const PartReport& part = manifest_.parts[0];
  PartLayout layout{.table = &table_,
                    .atoms = part.atoms,
                    .runs = part.runs,
                    .step = manifest_.step,
                    .generation = manifest_.generation,
                    .run_id = manifest_.run_id};
  ASSERT_OK(Check(layout, part.offsets));
  auto offsets = part.offsets;
  offsets[1] += 4;
  EXPECT_THAT(Message(Check(layout, offsets)), HasSubstr("/state/exp_avg stands"));
  std::vector<int64_t> atoms = part.atoms;
  std::swap(atoms[0], atoms[1]);
  layout.atoms = atoms;
  EXPECT_THAT(Message(Check(layout, part.offsets)), HasSubstr("/index/atoms"));
  layout.atoms = std::span(atoms).first(1);
  const std::vector<int64_t> one = {1};
  layout.runs = one;
  EXPECT_THAT(Message(Check(layout, part.offsets)), HasSubstr("elements"));
  Spill(file(0), "not HDF5 at all");
  EXPECT_EQ(Check(layout, part.offsets).code(), absl::StatusCode::kDataLoss);
}

TEST(ReadAtoms, NamesBlockAtomAndTensor) {
  const TestDirectory directory;
  const AtomTable table(BigTensors(1'000'000), 50'000);
  TestState state(table, 5), read(table, 6);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 1, /*seed=*/0);
  const std::string path = directory.path() + "/part-00000.h5";
  std::string bytes = Slurp(path);
  // A byte of exp_avg in the 17th atom.
  const uint64_t at = manifest.parts[0].offsets[1] + 17 * 50'000 * 4 + 1234;
  bytes[at] = static_cast<char>(bytes[at] ^ 16);
  Spill(path, bytes);
  const absl::Status status = ReadAtoms(directory.path(), manifest, table, read.states());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr(path), HasSubstr(fmt::format("block {} ", at / kBlockBytes)),
                    HasSubstr("atom 17 (tensor big, slice 3, elements 100000 to 149999)")));
  // Others are still good.
  std::vector<AtomState> others(read.states().begin(), read.states().begin() + 17);
  EXPECT_OK(ReadAtoms(directory.path(), manifest, table, others));
  EXPECT_THAT(Message(VerifyCheckpoint(directory.path(), manifest)),
              HasSubstr(fmt::format("block {} ", at / kBlockBytes)));
}

TEST(ReadAtoms, NamesAnAtomWhoseBlocksAreGood) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 5), read(table, 6);
  Manifest manifest = WriteCheckpoint(directory.path(), table, state, 1, 0);
  manifest.parts[0].atom_digests[3].bytes[0] ^= 1;
  EXPECT_THAT(Message(ReadAtoms(directory.path(), manifest, table, read.states())),
              AllOf(HasSubstr("atom 3 (tensor embed"), HasSubstr("although its blocks do not")));
}

}  // namespace
}  // namespace perdure
