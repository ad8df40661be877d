// The same state in other files: equal manifests, equal bytes, kills at any point, every refusal.
#include "ckpt/reshard.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>

#include "ckpt/extract.h"
#include "ckpt/float_bits.h"
#include "ckpt/manifest_json.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const StreamOptions kSmall{.memory_bytes = kStreamMemoryLeast, .threads = 2, .progress = {}};

std::vector<std::string> Names(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

void ExpectSameFiles(const std::string& a, const std::string& b) {
  ASSERT_EQ(Names(a), Names(b));
  for (const std::string& name : Names(a))
    EXPECT_TRUE(Slurp(a + "/" + name) == Slurp(b + "/" + name)) << name;
}

std::string HeadOf(Manifest manifest) {
  manifest.parts.clear();
  return SerializeManifest(manifest).value();
}

class ReshardTest : public testing::Test {
 protected:
  void SetUp() override { manifest_ = WriteCheckpoint(source(), table_, state_, 3); }
  const std::string source() { return made_.empty() ? made_ = directory_.Make("source") : made_; }
  std::string At(const std::string& name) const { return directory_.path() + "/" + name; }

  // Files of several writers each, as ranks of one node write them.
  std::vector<PartPlan> SharedPlans() const {
    std::vector<PartPlan> plans(2);
    for (size_t f = 0; f < plans.size(); ++f) {
      plans[f].file = fmt::format("part-{:05}.h5", f);
      const auto atoms = static_cast<int64_t>(table_.atoms().size());
      for (int64_t a = static_cast<int64_t>(f); a < atoms; a += 2) plans[f].atoms.push_back(a);
      const auto all = static_cast<int64_t>(plans[f].atoms.size());
      plans[f].runs = {1, all / 3, all - 1 - all / 3};
    }
    return plans;
  }
  absl::Status Do(const std::vector<PartPlan>& plans, const std::string& target,
                  const StreamOptions& options = kSmall) {
    return Reshard(source(), manifest_, plans, target, options).status();
  }
  // Lets a process do it that dies when `calls` pieces of progress were told.
  void DoAndDie(const std::vector<PartPlan>& plans, const std::string& target, int calls) {
    const int pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      StreamOptions options = kSmall;
      options.threads = 1;
      options.progress = [&calls](uint64_t, uint64_t) {
        if (--calls == 0) ::kill(::getpid(), SIGKILL);
      };
      (void)Do(plans, target, options);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(status));
  }

  const TestDirectory directory_;
  std::string made_;
  const AtomTable table_{BigTensors(300'000), 7'001};
  TestState state_{table_, 5};
  Manifest manifest_;
};

TEST_F(ReshardTest, OnlyPartsDiffer) {
  for (const int64_t files : {1, 2, 5, 400}) {
    const std::string target = At(fmt::format("files{}", files));
    const auto made = Reshard(source(), manifest_, CutParts(table_, files), target, kSmall);
    ASSERT_OK(made.status());
    const auto read = ReadManifest(target, nullptr);
    ASSERT_OK(read.status());
    EXPECT_EQ(HeadOf(*read), HeadOf(manifest_));
    EXPECT_EQ(read->certificate, manifest_.certificate);
    EXPECT_OK(VerifyCheckpoint(target, *read));
    EXPECT_EQ(Names(target).size(), read->parts.size() + 2) << "nothing else may lie there";
    EXPECT_FALSE(fs::exists(target + ".partial"));
    const auto difference = DiffCheckpoints(source(), target);
    ASSERT_OK(difference.status());
    EXPECT_TRUE(difference->identical) << difference->what;
  }
}

TEST_F(ReshardTest, ThereAndBackGivesEqualBytes) {
  const std::vector<PartPlan> shared = SharedPlans();
  ASSERT_OK(Do(shared, At("shared")));
  const auto manifest = ReadManifest(At("shared"), nullptr);
  ASSERT_OK(manifest.status());
  EXPECT_EQ(manifest->parts[0].runs.size(), 3u);
  ASSERT_OK(Reshard(At("shared"), *manifest, CutParts(table_, 5), At("five"), kSmall).status());
  const auto five = ReadManifest(At("five"), nullptr);
  ASSERT_OK(Reshard(At("five"), *five, shared, At("back"), kSmall).status());
  ExpectSameFiles(At("shared"), At("back"));
}

TEST_F(ReshardTest, KilledAnywhereItContinues) {
  const std::vector<PartPlan> plans = SharedPlans();
  ASSERT_OK(Do(plans, At("whole")));
  const int last = static_cast<int>(table_.atoms().size());
  // Each atom is told when it is written, each file when it is read back, in the end the manifest.
  for (const int calls : {1, last / 4, last / 2 + 3, last, last + 1, last + 2, last + 3}) {
    const std::string target = At("killed");
    DoAndDie(plans, target, calls);
    EXPECT_FALSE(fs::exists(target));
    EXPECT_TRUE(fs::exists(target + ".partial"));
    const bool first_done = fs::exists(target + ".partial/part-00000.h5.done");
    EXPECT_EQ(first_done, calls > last / 2) << calls;
    ASSERT_OK(Do(plans, target));
    ExpectSameFiles(At("whole"), target);
    EXPECT_FALSE(fs::exists(target + ".partial"));
    fs::remove_all(target);
  }
}

TEST_F(ReshardTest, FinishedFilesAreKeptAndSpoiledOnesWrittenAnew) {
  const std::vector<PartPlan> plans = SharedPlans();
  ASSERT_OK(Do(plans, At("whole")));
  DoAndDie(plans, At("spoiled"), static_cast<int>(table_.atoms().size()));
  const std::string part = At("spoiled.partial/part-00000.h5");
  const auto time = fs::last_write_time(part);
  std::string bytes = Slurp(part);
  DoAndDie(plans, At("spoiled"), static_cast<int>(table_.atoms().size()));
  EXPECT_EQ(fs::last_write_time(part), time);
  bytes[bytes.size() / 2] ^= 1;
  Spill(part, bytes);
  ASSERT_OK(Do(plans, At("spoiled")));
  ExpectSameFiles(At("whole"), At("spoiled"));
}

TEST_F(ReshardTest, DeathsAroundTheNameAreFinished) {
  const std::vector<PartPlan> plans = SharedPlans();
  ASSERT_OK(Do(plans, At("whole")));
  // Before the mark.
  fs::create_directory(At("a.partial"));
  ASSERT_OK(Do(plans, At("a")));
  ExpectSameFiles(At("whole"), At("a"));
  // With a manifest, and behind the rename.
  DoAndDie(plans, At("b"), static_cast<int>(table_.atoms().size()) + 3);
  EXPECT_TRUE(fs::exists(At("b.partial/manifest.json")));
  fs::rename(At("b.partial"), At("b"));
  fs::copy(At("whole/view.h5"), At("b/view.h5"));  // It comes before the rename.
  ASSERT_OK(Do(plans, At("b")));
  ExpectSameFiles(At("whole"), At("b"));
  EXPECT_TRUE(absl::IsAlreadyExists(Do(plans, At("b"))));
}

TEST_F(ReshardTest, OthersWorkIsRefusedByName) {
  DoAndDie(SharedPlans(), At("target"), 2);
  const absl::Status other = Do(CutParts(table_, 5), At("target"));
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_THAT(Message(other), HasSubstr("target.partial holds other work that was interrupted "
                                        "(step 120 in 2 files, certificate "));
  fs::create_directory(At("strange.partial"));
  Spill(At("strange.partial/notes"), "mine");
  EXPECT_THAT(Message(Do(SharedPlans(), At("strange"))), HasSubstr("not of this command"));
  EXPECT_EQ(Slurp(At("strange.partial/notes")), "mine");
  fs::create_directory(At("there"));
  const absl::Status there = Do(SharedPlans(), At("there"));
  EXPECT_TRUE(absl::IsAlreadyExists(there)) << there;
  EXPECT_THAT(Message(there), HasSubstr("there exists"));
  EXPECT_THAT(Message(Do(SharedPlans(), At("no/where"))), HasSubstr("no/where.partial"));
  StreamOptions little = kSmall;
  little.memory_bytes = 1 << 20;
  EXPECT_TRUE(absl::IsInvalidArgument(Do(SharedPlans(), At("little"), little)));
}

TEST_F(ReshardTest, OneProcessAtATime) {
  StreamOptions options = kSmall;
  options.threads = 1;
  absl::Status second;
  options.progress = [&](uint64_t, uint64_t) {
    if (second.ok()) second = Do(SharedPlans(), At("target"));
  };
  ASSERT_OK(Do(SharedPlans(), At("target"), options));
  EXPECT_THAT(Message(second), HasSubstr("another process works in"));
}

TEST_F(ReshardTest, ABadSourceIsNamed) {
  const std::string part = source() + "/" + manifest_.parts[1].file;
  std::string bytes = Slurp(part);
  bytes[manifest_.parts[1].offsets[1] + 5] ^= 2;
  Spill(part, bytes);
  const absl::Status status = Do(CutParts(table_, 2), At("target"));
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(manifest_.parts[1].file));
  EXPECT_FALSE(fs::exists(At("target")));
  // A manifest that lies about the whole.
  Spill(part, Slurp(part));
  bytes[manifest_.parts[1].offsets[1] + 5] ^= 2;
  Spill(part, bytes);
  manifest_.certificate.bytes[0] ^= 1;
  EXPECT_THAT(Message(Do(CutParts(table_, 3), At("other"))), HasSubstr("the source is bad"));
  EXPECT_FALSE(fs::exists(At("other")));
}

// ---- Parameters alone

// The elements of a tensor where the layout puts them.
void ExpectParameters(const std::string& path, const Manifest& manifest, const AtomTable& table,
                      TestState& state, TensorDType dtype) {
  const auto laid = LayOutTensors({.tensors = table.tensors(),
                                   .dtype = dtype,
                                   .step = manifest.step,
                                   .run_id = manifest.run_id,
                                   .certificate = manifest.certificate.Hex()});
  ASSERT_OK(laid.status());
  const std::string bytes = Slurp(path);
  ASSERT_EQ(bytes.size(), laid->bytes);
  EXPECT_TRUE(bytes.starts_with("\x89HDF\r\n\x1a\n"));
  for (int64_t a = 0; a < static_cast<int64_t>(table.atoms().size()); ++a) {
    const Atom& atom = table.atoms()[static_cast<size_t>(a)];
    const TensorSpec& spec = table.tensors()[static_cast<size_t>(atom.tensor)];
    for (int64_t i = 0; i < atom.count; ++i) {
      const AtomTable::Place place = table.Locate(atom, i);
      const auto element = static_cast<uint64_t>(place.row * spec.cols + place.col);
      const uint64_t begin = laid->offsets[static_cast<size_t>(atom.tensor)];
      const float value = state.at(a, 0, i);
      if (dtype == TensorDType::kF32) {
        uint32_t found = 0;
        std::memcpy(&found, bytes.data() + begin + 4 * element, 4);
        ASSERT_EQ(found, std::bit_cast<uint32_t>(value)) << spec.name << " element " << element;
      } else {
        uint16_t found = 0;
        std::memcpy(&found, bytes.data() + begin + 2 * element, 2);
        ASSERT_EQ(found, BF16OfFloat(value)) << spec.name << " element " << element;
      }
    }
  }
}

TEST_F(ReshardTest, ParametersAreWholeTensors) {
  for (const TensorDType dtype : {TensorDType::kF32, TensorDType::kBF16}) {
    const TestDirectory here;
    const AtomTable table(OddTensors(), 16);
    TestState state(table, 3);
    const Manifest manifest = WriteCheckpoint(here.Make("ckpt"), table, state, 2);
    const std::string target = here.path() + "/params";
    ASSERT_OK(ExtractParameters(here.path() + "/ckpt", manifest, target, dtype, kSmall));
    EXPECT_EQ(Names(target), std::vector<std::string>{"params.h5"});
    ExpectParameters(target + "/params.h5", manifest, table, state, dtype);
    EXPECT_TRUE(absl::IsAlreadyExists(
        ExtractParameters(here.path() + "/ckpt", manifest, target, dtype, kSmall)));
  }
}

TEST_F(ReshardTest, ParametersLargerThanTheMemoryComeInBands) {
  // Sliced along its columns, 96 MB: more than a third of the least memory.
  const AtomTable table({{.name = "wide",
                          .rows = 6'000,
                          .cols = 4'000,
                          .axis = SliceAxis::kCols,
                          .slices = 4,
                          .layer = 0}},
                        262'144);
  TestState state(table, 3);
  const Manifest manifest = WriteCheckpoint(directory_.Make("wide"), table, state, 1);
  ASSERT_OK(ExtractParameters(At("wide"), manifest, At("p"), TensorDType::kF32, kSmall));
  ExpectParameters(At("p/params.h5"), manifest, table, state, TensorDType::kF32);
}

TEST_F(ReshardTest, InterruptedParametersAreDoneAnew) {
  fs::create_directory(At("p.partial"));
  ASSERT_OK(ExtractParameters(source(), manifest_, At("whole"), TensorDType::kF32, kSmall));
  const int pid = ::fork();
  if (pid == 0) {
    StreamOptions options = kSmall;
    options.progress = [](uint64_t, uint64_t) { ::kill(::getpid(), SIGKILL); };
    (void)ExtractParameters(source(), manifest_, At("p"), TensorDType::kF32, options);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(At("p")));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ExtractParameters(source(), manifest_, At("p"), TensorDType::kBF16, kSmall)));
  ASSERT_OK(ExtractParameters(source(), manifest_, At("p"), TensorDType::kF32, kSmall));
  ExpectSameFiles(At("whole"), At("p"));
}

}  // namespace
}  // namespace perdure
