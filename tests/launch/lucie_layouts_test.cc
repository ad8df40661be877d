// Lucie's move from 512 GPUs to 128 and elsewhere: the checkpoint of 512 writers is loaded by any
// number of ranks, and re-cut for any number of files and back.
#include <gtest/gtest.h>

#include <filesystem>

#include "ckpt/reshard.h"
#include "ckpt/verify.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/tools/lucie_state.h"

namespace perdure {
namespace {

constexpr LayoutConfig kPretrain{.tensor = 4, .pipeline = 4, .data = 32};
constexpr LayoutConfig kExtension{.tensor = 4, .pipeline = 4, .data = 8};

// Of each file, and of the manifest but for the files.
std::vector<std::string> Serialized(const Manifest& manifest) {
  std::vector<std::string> parts;
  for (const PartReport& part : manifest.parts) parts.push_back(SerializePart(part));
  return parts;
}

void MoveFrom512To128(const LucieSize& size, const std::string& parent) {
  TestDirectory directory(parent);
  const auto config = ScaledLucie(size, kPretrain);
  ASSERT_OK(config.status());
  const AtomTable table = LucieTable(*config);
  const std::string source = directory.Make("source");
  const auto written = WriteAsRanks(source, *config, table, 1);
  ASSERT_OK(written.status());
  EXPECT_EQ(written->parts.size(), 512);

  for (const LayoutConfig& layout :
       {kPretrain, kExtension, LayoutConfig{.tensor = 1, .pipeline = 1, .data = 92},
        LayoutConfig{.tensor = 4, .pipeline = 4, .data = 6},
        LayoutConfig{.tensor = 2, .pipeline = 8, .data = 3, .virtual_stages = 2},
        LayoutConfig{.tensor = 1, .pipeline = 1, .data = 1}}) {
    const auto other = ScaledLucie(size, layout);
    ASSERT_OK(other.status());
    const auto certificate = LoadAsRanks(source, *written, *other, table);
    ASSERT_OK(certificate.status());
    EXPECT_EQ(certificate->Hex(), written->certificate.Hex()) << layout.ranks() << " ranks";
  }

  const auto recut = [&](const std::string& from, const Manifest& manifest,
                         const LayoutConfig& layout, const std::string& name) {
    RunConfig target = *config;
    target.layout = layout;
    return Reshard(from, manifest, PlanWriters(target, table, 1).files, directory.path() + name,
                   {.memory_bytes = kStreamMemoryLeast, .threads = 2, .progress = nullptr});
  };
  const auto moved = recut(source, *written, kExtension, "/moved");
  ASSERT_OK(moved.status());
  EXPECT_EQ(moved->manifest.parts.size(), 128);
  EXPECT_EQ(moved->manifest.certificate, written->certificate);
  const auto back = recut(directory.path() + "/moved", moved->manifest, kPretrain, "/back");
  ASSERT_OK(back.status());
  EXPECT_EQ(Serialized(back->manifest), Serialized(*written));
  EXPECT_EQ(Slurp(directory.path() + "/back/manifest.json"), Slurp(source + "/manifest.json"));
  EXPECT_OK(VerifyCheckpoint(directory.path() + "/moved", moved->manifest));
}

TEST(LucieLayoutsTest, From512To128) {
  MoveFrom512To128({.hidden = 64, .vocab = 1024, .atom_elements = 256}, MemoryDirectory());
}

TEST(LucieLayoutsTest, LongFrom512To128OnDisk) {
  MoveFrom512To128(LucieSize{}, testing::TempDir());
}

}  // namespace
}  // namespace perdure
