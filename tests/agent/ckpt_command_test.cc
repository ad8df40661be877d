#include "launch/ckpt_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "ckpt/checkpoint.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "tests/agent/one_rank_start.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

Outcome Ckpt(std::vector<std::string> arguments) {
  Outcome outcome;
  CLI::App app("perdure");
  AddCkptCommand(app, &outcome.exit_code);
  std::reverse(arguments.begin(), arguments.end());
  arguments.push_back("ckpt");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError&) {
    outcome.exit_code = 2;  // As main does.
  }
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

class CkptCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(run() + "/ckpt");
    auto log = RunLog::Open(run());
    ASSERT_OK(log.status());
    ASSERT_OK(log->Append(RecordType::kStart, 1, SerializeStart(OneRankStart(0))));
    for (const int64_t step : {10, 20, 30}) {
      const std::string name = CheckpointName(step, 1, 7);
      names_.push_back(name);
      TestState state(table_, static_cast<uint64_t>(step));
      Digest digest;
      manifests_.push_back(
          WriteCheckpoint(directory_.Make("ckpt/" + name), table_, state, 2, 1, step, &digest));
      ASSERT_OK(log->Append(
          RecordType::kCommit, 1,
          SerializeCommit({name, step, step * 8, digest, manifests_.back().certificate, 99, 3})));
    }
    ASSERT_OK(log->Append(RecordType::kVerified, 1, SerializeVerified({names_[1], "read"})));
  }
  const std::string& run() const { return directory_.path(); }
  std::string path(size_t i) const { return run() + "/ckpt/" + names_[i]; }
  void Spoil(size_t i) {
    std::string bytes = Slurp(path(i) + "/part-00001.h5");
    bytes[bytes.size() / 3] ^= 4;
    Spill(path(i) + "/part-00001.h5", bytes);
  }

  const AtomTable table_{OddTensors(), 16};
  TestDirectory directory_;
  std::vector<std::string> names_;
  std::vector<Manifest> manifests_;
};

TEST_F(CkptCommandTest, ListsOldestFirst) {
  const Outcome outcome = Ckpt({"list", run(), "--json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const json list = json::parse(outcome.out);
  ASSERT_EQ(list.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(list[i]["step"], 10 * (i + 1));
    EXPECT_EQ(list[i]["path"], fs::path(path(i)).lexically_normal().string());
    EXPECT_EQ(list[i]["certificate"], manifests_[i].certificate.Hex());
    EXPECT_EQ(list[i]["verified"], i == 1);
  }
  const Outcome table = Ckpt({"list", run()});
  EXPECT_THAT(table.out, HasSubstr("step  generation"));
  EXPECT_THAT(table.out, HasSubstr(manifests_[2].certificate.Hex()));
}

TEST_F(CkptCommandTest, ListVerifiesWhenAsked) {
  EXPECT_EQ(json::parse(Ckpt({"list", run(), "--json", "--verify"}).out)[0]["verified"], true);
  Spoil(1);
  const Outcome outcome = Ckpt({"list", run(), "--json", "--verify"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(json::parse(outcome.out)[1]["verified"], false);
  EXPECT_THAT(outcome.err, HasSubstr("part-00001.h5: block 0"));
}

TEST_F(CkptCommandTest, RetiredOnesAreListedOnDemand) {
  auto log = RunLog::Open(run());
  ASSERT_OK(log->Append(RecordType::kRetire, 1, SerializeRetire({{names_[0]}})));
  EXPECT_EQ(json::parse(Ckpt({"list", run(), "--json"}).out).size(), 2u);
  EXPECT_EQ(json::parse(Ckpt({"list", run(), "--json", "--all"}).out).size(), 3u);
}

TEST_F(CkptCommandTest, QuarantineAndFailedAttemptsAreListed) {
  auto log = RunLog::Open(run());
  ASSERT_OK(log->Append(RecordType::kAttempt, 1, SerializeAttempt({names_[1]})));
  fs::create_directory(run() + "/quarantine");
  fs::rename(path(2), run() + "/quarantine/" + names_[2]);
  const json list = json::parse(Ckpt({"list", run(), "--json", "--verify"}).out);
  EXPECT_EQ(list[1]["failed_attempts"], 1);
  EXPECT_EQ(list[1]["quarantined"], false);
  EXPECT_EQ(list[2]["quarantined"], true);
  const std::string text = Ckpt({"list", run()}).out;
  EXPECT_THAT(text, HasSubstr("quarantined"));
  EXPECT_THAT(text, HasSubstr("yes, failed 1x"));
  EXPECT_EQ(json::parse(Ckpt({"inspect", run(), "--json"}).out)["step"], 20);
}

TEST_F(CkptCommandTest, PinsAndUnpins) {
  EXPECT_EQ(Ckpt({"pin", run(), names_[0]}).exit_code, 0);
  EXPECT_EQ(json::parse(Ckpt({"list", run(), "--json"}).out)[0]["pinned"], true);
  EXPECT_THAT(Ckpt({"list", run()}).out, HasSubstr("not yet, pinned"));
  EXPECT_EQ(json::parse(Ckpt({"unpin", run(), names_[0], "--json"}).out)["pinned"], false);
  EXPECT_EQ(Ckpt({"unpin", run(), names_[0]}).exit_code, 2);
  EXPECT_EQ(Ckpt({"pin", run(), CheckpointName(99, 1, 1)}).exit_code, 2);
  EXPECT_EQ(Ckpt({"pin", run(), "x"}).exit_code, 2);
  EXPECT_EQ(Ckpt({"pin", run()}).exit_code, 2);
  EXPECT_EQ(Ckpt({"pin", "/nonexistent", names_[0]}).exit_code, 2);
}

TEST_F(CkptCommandTest, InspectsTheNewestOfARun) {
  const Outcome outcome = Ckpt({"inspect", run(), "--json", "--stats"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const json all = json::parse(outcome.out);
  EXPECT_EQ(all["step"], 30);
  EXPECT_EQ(all["committed"], true);
  EXPECT_EQ(all["phase_name"], "extension");
  EXPECT_EQ(all["parts"].size(), 2u);
  EXPECT_EQ(all["parts"][0]["writers"], 1);
  EXPECT_EQ(all["verified"], false);
  ASSERT_EQ(all["tensors"].size(), 4u);
  EXPECT_EQ(all["tensors"][2]["cols"], 26);
  EXPECT_EQ(all["tensors"][2]["slices"], 4);
  EXPECT_TRUE(all["tensors"][2]["stats"]["exp_avg"].contains("rms"));
  EXPECT_THAT(Ckpt({"inspect", path(0), "--stats"}).out, HasSubstr("exp_avg_sq"));
}

TEST_F(CkptCommandTest, InspectsOneTensor) {
  const json one = json::parse(Ckpt({"inspect", path(0), "--tensor", "wide", "--json"}).out);
  ASSERT_EQ(one["tensors"].size(), 1u);
  EXPECT_EQ(one["tensors"][0]["atom_list"].size(), one["tensors"][0]["atoms"]);
  EXPECT_THAT(Ckpt({"inspect", path(0), "--tensor", "wide"}).out, HasSubstr("slice 3"));
  const Outcome unknown = Ckpt({"inspect", path(0), "--tensor", "x"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("no tensor x"));
}

TEST_F(CkptCommandTest, VerifiesCheckpointsAndRuns) {
  const Outcome good = Ckpt({"verify", path(0), path(1) + "/"});
  EXPECT_EQ(good.exit_code, 0);
  EXPECT_THAT(good.out, HasSubstr("good"));
  EXPECT_EQ(Ckpt({"verify", run()}).exit_code, 0);
  Spoil(2);
  const Outcome bad = Ckpt({"verify", run(), "--json"});
  EXPECT_EQ(bad.exit_code, 1);
  const json list = json::parse(bad.out);
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0]["ok"], false);  // Newest first.
  EXPECT_THAT(list[0]["error"], HasSubstr("differs from its digest"));
  EXPECT_EQ(list[1]["ok"], true);
  EXPECT_THAT(Ckpt({"verify", path(2)}).out, HasSubstr("bad "));
}

TEST_F(CkptCommandTest, VerifyHoldsAManifestAgainstItsCommitRecord) {
  // Another whole checkpoint in the place of a committed one.
  fs::remove_all(path(0));
  TestState state(table_, 77);
  WriteCheckpoint(directory_.Make("ckpt/" + names_[0]), table_, state, 2, 1, 10);
  EXPECT_THAT(Ckpt({"verify", path(0)}).out, HasSubstr("COMMIT record says"));
  // Whole, but never committed.
  const std::string loose = CheckpointName(99, 1, 1);
  WriteCheckpoint(directory_.Make("ckpt/" + loose), table_, state, 2);
  const Outcome outcome = Ckpt({"verify", run() + "/ckpt/" + loose});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("no COMMIT record"));
  // Copied out of its run, it stands by its own manifest.
  const TestDirectory elsewhere;
  fs::copy(run() + "/ckpt/" + loose, elsewhere.path() + "/copy", fs::copy_options::recursive);
  const Outcome copied = Ckpt({"verify", elsewhere.path() + "/copy"});
  EXPECT_EQ(copied.exit_code, 0) << copied.out;
  EXPECT_THAT(copied.out, HasSubstr("own manifest only"));
  // Its manifest lost: bad, not mistyped.
  fs::remove(path(1) + "/manifest.json");
  EXPECT_EQ(Ckpt({"verify", path(1)}).exit_code, 1);
}

TEST_F(CkptCommandTest, DiffSaysIdenticalOrWhere) {
  const TestDirectory other;
  TestState state(table_, 30);
  WriteCheckpoint(other.path(), table_, state, 3, 5, 30);
  const Outcome same = Ckpt({"diff", run(), other.path()});
  EXPECT_EQ(same.exit_code, 0) << same.err;
  EXPECT_EQ(same.out, "identical\n");
  const Outcome differs = Ckpt({"diff", path(0), path(1)});
  EXPECT_EQ(differs.exit_code, 1);
  EXPECT_THAT(differs.out, HasSubstr("tensor embed, atom 0, element 0 (row 0, column 0), param: "));
  EXPECT_THAT(differs.err, HasSubstr("step 10 (80 samples) against step 20"));
  Spoil(2);
  EXPECT_EQ(Ckpt({"diff", run(), other.path()}).exit_code, 1);
}

TEST_F(CkptCommandTest, WrongUsageIsTwo) {
  const TestDirectory empty;
  for (const auto& arguments : std::vector<std::vector<std::string>>{{},
                                                                     {"list"},
                                                                     {"nonsense"},
                                                                     {"verify"},
                                                                     {"diff", run()},
                                                                     {"list", run(), "--x"},
                                                                     {"list", "/nonexistent"},
                                                                     {"list", empty.path()},
                                                                     {"inspect", "/nonexistent"},
                                                                     {"verify", empty.path()},
                                                                     {"verify", "/nonexistent"},
                                                                     {"diff", run(), empty.path()}})
    EXPECT_EQ(Ckpt(arguments).exit_code, 2) << testing::PrintToString(arguments);
  EXPECT_TRUE(fs::is_empty(empty.path())) << "looking must not make a run";
}

TEST_F(CkptCommandTest, RunWithoutCheckpointsIsFine) {
  const TestDirectory fresh;
  ASSERT_OK(RunLog::Open(fresh.path()).status());
  EXPECT_EQ(Ckpt({"list", fresh.path(), "--json"}).out, "[]\n");
  EXPECT_EQ(Ckpt({"verify", fresh.path()}).exit_code, 0);
  EXPECT_EQ(Ckpt({"inspect", fresh.path()}).exit_code, 2);
}

}  // namespace
}  // namespace perdure
