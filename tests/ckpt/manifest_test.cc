#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "ckpt/manifest_json.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using testing::HasSubstr;

constexpr size_t kSeal = 47;  // Bytes from the last line's key to the end.

// `text` with its last line made right again: what reaches the parser is hostile, not torn.
std::string Sealed(const std::string& text) {
  const std::string body = text.substr(0, text.size() - kSeal);
  return body + "\"digest\": \"" + DigestOf(body).Hex() + "\"\n}\n";
}

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), by);
}

// Of the manifest `text` with `by` in place of `what`, under its right digest.
std::string Refusal(const std::string& text, const std::string& what, const std::string& by) {
  return Message(ParseManifest(Sealed(Replaced(text, what, by))).status());
}

class ManifestTest : public testing::Test {
 protected:
  void SetUp() override {
    manifest_ = WriteCheckpoint(directory_.path(), table_, state_, 3, 1, 120, &digest_);
    text_ = Slurp(path());
  }
  std::string path() const { return directory_.path() + "/manifest.json"; }

  const AtomTable table_{OddTensors(), 10};
  TestState state_{table_, 7};
  TestDirectory directory_;
  Manifest manifest_;
  Digest digest_;
  std::string text_;
};

TEST_F(ManifestTest, ComesBackAsItWas) {
  EXPECT_EQ(DigestOf(text_), digest_);
  const auto read = ReadManifest(directory_.path(), &digest_);
  ASSERT_OK(read.status());
  EXPECT_EQ(read->config, manifest_.config);
  EXPECT_EQ(read->tensors, manifest_.tensors);
  EXPECT_EQ(read->certificate, manifest_.certificate);
  EXPECT_EQ(read->trail, manifest_.trail);
  EXPECT_EQ(read->parts.size(), 3u);
  const auto again = SerializeManifest(*read);
  ASSERT_OK(again.status());
  EXPECT_EQ(*again, text_);
}

TEST_F(ManifestTest, SaysWhichGapsItsStateHasBehindIt) {
  EXPECT_EQ(text_.find("\"gaps\""), std::string::npos) << "as before there were any";
  Manifest manifest = *ParseManifest(text_);
  manifest.gaps = {{.first_step = 100, .samples = 24, .bad_step = 103, .number = 1},
                   {.first_step = 120, .samples = 8, .bad_step = 121, .number = 1}};
  const std::string text = *SerializeManifest(manifest);
  const auto again = ParseManifest(text);
  ASSERT_OK(again.status());
  EXPECT_EQ(again->gaps, manifest.gaps);
  EXPECT_THAT(Refusal(text, "[100,24,103,1,", "[100,24,103,"), HasSubstr("are no gaps"));
  EXPECT_THAT(Refusal(text, "[100,24,103,1,", "[100,24,99,1,"), HasSubstr("gap 0"));
  EXPECT_THAT(Refusal(text, "120,8,121,1]", "121,8,121,1]"), HasSubstr("not behind step 120"));
  EXPECT_THAT(Refusal(text, "\"gaps\": [100,24,103,1,120,8,121,1]", "\"gaps\": []"),
              HasSubstr("not as this version writes it"));
}

TEST_F(ManifestTest, SaysWhatTheLastStepsCameTo) {
  EXPECT_EQ(text_.find("\"recent_steps\""), std::string::npos) << "none were taken";
  Manifest manifest = *ParseManifest(text_);
  manifest.trail.recent = {{0.1, 2.5}, {-0.0, 1e-310}};
  const std::string text = *SerializeManifest(manifest);
  const auto again = ParseManifest(text);
  ASSERT_OK(again.status());
  EXPECT_EQ(again->trail, manifest.trail);
  EXPECT_THAT(Refusal(text, "3fb999", "3fb99"),
              HasSubstr("field recent_steps: entry 0 is not a loss"));
  EXPECT_THAT(Refusal(text, "3fb999", "7ff999"),
              HasSubstr("field recent_steps: entry 0 is loss nan"));
  EXPECT_THAT(Refusal(text, "3fb999", "3FB999"), HasSubstr("not as this version writes it"));
  manifest.trail.recent.assign(kRecentStepsMax + 1, {0.1, 2.5});
  EXPECT_THAT(Message(ParseManifest(*SerializeManifest(manifest)).status()),
              HasSubstr("field recent_steps: 65 entries; at most 64 expected"));
}

TEST_F(ManifestTest, AnotherManifestThanTheCommittedOneIsRefused) {
  const Digest other = DigestOf("other");
  const auto read = ReadManifest(directory_.path(), &other);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(read.status()), HasSubstr("COMMIT"));
}

TEST_F(ManifestTest, IsNotFoundWhereThereIsNone) {
  const TestDirectory empty;
  const auto read = ReadManifest(empty.path(), nullptr);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(read.status()), HasSubstr(empty.path()));
}

TEST_F(ManifestTest, EveryTruncationIsNoticed) {
  for (size_t length = 0; length < text_.size(); ++length)
    ASSERT_EQ(ParseManifest(text_.substr(0, length)).status().code(), absl::StatusCode::kDataLoss)
        << length;
}

TEST_F(ManifestTest, EveryFlippedByteIsNoticed) {
  for (size_t at = 0; at < text_.size(); ++at) {
    std::string bad = text_;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    ASSERT_EQ(ParseManifest(bad).status().code(), absl::StatusCode::kDataLoss) << at;
  }
}

TEST_F(ManifestTest, HugeFileIsRefusedUnread) {
  ASSERT_EQ(::truncate(path().c_str(), int64_t{1} << 31), 0);
  EXPECT_THAT(Message(ReadManifest(directory_.path(), nullptr).status()), HasSubstr("at most"));
}

struct Edit {
  std::string what, by, field;
};

TEST_F(ManifestTest, NamesTheFieldThatIsWrong) {
  ASSERT_OK(ParseManifest(Sealed(text_)).status());
  const std::string first_digest = manifest_.parts[0].atom_digests[0].Hex();
  const std::vector<Edit> edits = {
      {"\"version\": 1", "\"version\": 2", "field version is 2"},
      {"\"format\": \"perdure checkpoint\"", "\"format\": \"x\"", "field format"},
      {"\"step\": 120,\n", "", "field step is missing"},
      {"\"step\": 120", "\"step\": \"120\"", "field step is not an integer"},
      {"\"step\": 120", "\"step\": 120.5", "field step is not an integer"},
      {"\"step\": 120", "\"step\": -1", "field step"},
      {"\"step\": 120", "\"step\": 9223372036854775808", "field step does not fit"},
      {"\"step\": 120", "\"step\": 1e300", "field step is not an integer"},
      {"\"step\": 120", "\"step\": 120, \"steq\": 1", "field steq is unknown"},
      {"\"step\": 120", "\"step\": 120, \"step\": 120", "as this version writes it"},
      {"\"step\": 120", "\"step\":  120", "as this version writes it"},
      {"\"generation\": 3", "\"generation\": -3", "field generation"},
      {"\"run_id\": \"", "\"run_id\": 5, \"x\": \"", "field run_id is not a string"},
      {"\"atom_elements\": 10", "\"atom_elements\": 0", "field atom_elements"},
      {"\"atom_elements\": 10", "\"atom_elements\": 1", "a shard is missing"},
      {"\"block_bytes\": 1048576", "\"block_bytes\": 4096", "field block_bytes"},
      {"\"exp_avg\",", "\"momentum\",", "field state_parts"},
      {"\"rows\":37", "\"rows\":0", "field tensors[0].rows"},
      {"\"rows\":37", "\"rows\":4611686018427387904", "field tensors[0].rows"},
      {"\"cols\":26", "\"cols\":281474976710656", "field tensors[2].rows x cols"},
      {"\"axis\":\"rows\"", "\"axis\":\"diagonal\"", "field tensors[0].axis"},
      {"\"slices\":4", "\"slices\":0", "field tensors[0].slices"},
      {"\"slices\":4", "\"slices\":4611686018427387904", "field tensors[0].slices"},
      {"\"axis\":\"none\",\"slices\":1", "\"axis\":\"none\",\"slices\":2",
       "field tensors[1].slices"},
      {"\"name\":\"norm\"", "\"name\":\"embed\"", "field tensors[1].name embed stands there twice"},
      {"\"name\":\"norm\"", "\"name\":\"\"", "field tensors[1].name is empty"},
      {"\"decays\":true", "\"decays\":1", "field tensors[0].decays"},
      {"\"init_std\":0.02", "\"init_std\":1e400", "not valid JSON"},
      {"\"layer\":-1", "\"layer\":-2", "field tensors[0].layer"},
      {"part-00001.h5", "../art-001.h5", "field parts[1].file"},
      {"part-00001.h5", "/part-0001.h5", "field parts[1].file"},
      {"part-00001.h5", "part-00000.h5", "field parts[1].file part-00000.h5 stands there twice"},
      {"part-00001.h5", "part-00001.h6", "field parts[1].file"},
      {first_digest, first_digest.substr(1), "field parts[0].atom_digests[0]"},
      {first_digest, "G" + first_digest.substr(1), "field parts[0].atom_digests[0]"},
      {"\"atom_digests\":[", "\"atom_digests\":[\"" + first_digest + "\",",
       "field parts[0].atom_digests"},
      {"\"blocks\":[", "\"blocks\":[\"" + first_digest + "\",", "field parts[0].blocks"},
      {"\"offsets\":[", "\"offsets\":[1,", "field parts[0].offsets has 4"},
      {"\"offsets\":[", "\"offsets\":[9", "field parts[0].offsets[0]"},
      {"\"bytes\":", "\"bytes\":999999", "field parts[0].blocks"},
      {"\"parts\": [", "\"parts\": 5, \"x\": [", "field parts is not an array"},
      {"\"parts\": [", "\"parts\": [7, ", "parts[0] is not a JSON object"},
  };
  for (const Edit& edit : edits) {
    const auto parsed = ParseManifest(Sealed(Replaced(text_, edit.what, edit.by)));
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss) << edit.by;
    EXPECT_THAT(Message(parsed.status()), HasSubstr(edit.field)) << edit.what << " -> " << edit.by;
  }
}

// Every way in which the parts can fail to hold each atom once.
TEST_F(ManifestTest, EveryAtomStandsOnce) {
  const auto refused = [&](const std::function<void(Manifest&)>& change, const char* why) {
    Manifest bad = manifest_;
    change(bad);
    EXPECT_THAT(Message(ValidateManifest(bad)), HasSubstr(why));
    const TestDirectory directory;
    const auto written = WriteManifest(directory.path(), table_, bad);
    EXPECT_EQ(written.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(written.status()), HasSubstr(why));
  };
  refused([](Manifest& m) { m.parts.pop_back(); }, "a shard is missing");
  refused([](Manifest& m) { m.parts[0].atoms[0] = m.parts[1].atoms[0]; }, "stands in part-0000");
  refused([](Manifest& m) { m.parts[0].atoms[0] = m.parts[0].atoms[1]; }, "stands in part-00000");
  refused([](Manifest& m) { m.parts[0].atoms[0] = 100000; }, "no atom 100000");
  refused([](Manifest& m) { m.parts[0].atoms[0] = -1; }, "no atom -1");
  refused([](Manifest& m) { m.parts.push_back(m.parts[0]); }, "stands there twice");
}

TEST_F(ManifestTest, WritingRefusesWhatCouldNotBeReadBack) {
  const TestDirectory directory;
  Manifest bad = manifest_;
  bad.config = "\xff\xfe";
  EXPECT_EQ(WriteManifest(directory.path(), table_, bad).status().code(),
            absl::StatusCode::kInvalidArgument);
  bad = manifest_;
  bad.atom_elements = 11;
  EXPECT_EQ(WriteManifest(directory.path(), table_, bad).status().code(),
            absl::StatusCode::kInvalidArgument);
  bad = manifest_;
  bad.samples = -1;
  EXPECT_EQ(WriteManifest(directory.path(), table_, bad).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteManifest(directory_.path(), table_, manifest_).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_F(ManifestTest, PartReportsSurviveTheWire) {
  for (const PartReport& part : manifest_.parts) {
    const auto back = ParsePart(SerializePart(part));
    ASSERT_OK(back.status());
    EXPECT_EQ(back->file, part.file);
    EXPECT_EQ(back->bytes, part.bytes);
    EXPECT_EQ(back->blocks, part.blocks);
    EXPECT_EQ(back->atoms, part.atoms);
    EXPECT_EQ(back->atom_digests, part.atom_digests);
    EXPECT_EQ(back->offsets, part.offsets);
  }
  for (const char* bad : {"", "null", "[]", "{}", "{\"file\":\"part-00000.h5\"}", "\xff"})
    EXPECT_EQ(ParsePart(bad).status().code(), absl::StatusCode::kDataLoss) << bad;
}

// Whatever stands there, the parser answers; and what it takes, it takes unchanged.
TEST_F(ManifestTest, HostileBytesNeverCrash) {
  TestRandom random(42);
  const std::vector<std::string> tokens = {"-1",
                                           "0",
                                           "9223372036854775807",
                                           "18446744073709551615",
                                           "1e308",
                                           "null",
                                           "[]",
                                           "{}",
                                           "\"\"",
                                           "true",
                                           "[[[[",
                                           "\"..\"",
                                           "2147483648",
                                           "-9223372036854775808",
                                           "\"\\u0000\"",
                                           "\xc3"};
  int accepted = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bad = text_;
    for (uint64_t change = random.Below(3); change < 3; ++change) {
      const size_t at = random.Below(bad.size() - kSeal);
      switch (random.Below(4)) {
        case 0:
          bad[at] = static_cast<char>(random.Next());
          break;
        case 1:
          bad.erase(at, random.Below(bad.size() - kSeal - at));
          break;
        case 2:
          bad.insert(at, bad.substr(random.Below(bad.size() - kSeal), random.Below(64)));
          break;
        default: {  // A whole number or word gives way.
          const size_t from = bad.find_first_of("0123456789", at);
          if (from >= bad.size() - kSeal) break;
          const size_t to = bad.find_first_not_of("0123456789", from);
          bad.replace(from, to - from, tokens[random.Below(tokens.size())]);
        }
      }
    }
    const std::string sealed = Sealed(bad);
    const auto parsed = ParseManifest(sealed);
    if (!parsed.ok()) continue;
    ++accepted;
    const auto again = SerializeManifest(*parsed);
    ASSERT_OK(again.status());
    ASSERT_EQ(*again, sealed);
  }
  // Changes of free text and of digests are all that can pass.
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 2000);
}

}  // namespace
}  // namespace perdure
