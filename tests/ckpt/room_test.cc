#include "ckpt/room.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "ckpt/stream.h"
#include "ckpt/view.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

TEST(CheckpointNeed, IsAtLeastWhatACheckpointTakesAndNotMuchMore) {
  for (const std::vector<TensorSpec>& tensors : {OddTensors(), BigTensors(5'000'000)}) {
    const AtomTable table(tensors, 262144);
    TestState state(table, 3);
    for (const int parts : {1, 3}) {
      const TestDirectory directory;
      const Manifest manifest = WriteCheckpoint(directory.path(), table, state, parts);
      ASSERT_OK(WriteView(directory.path(), manifest, table));
      uint64_t bytes = 0, files = 1;
      for (const auto& entry : fs::directory_iterator(directory.path())) {
        bytes += entry.file_size();
        ++files;
      }
      std::vector<PartPlan> plans;
      for (const PartReport& part : manifest.parts)
        plans.push_back({.file = part.file, .atoms = part.atoms, .runs = part.runs});
      const SpaceNeed need = CheckpointNeed(table, plans);
      EXPECT_GE(need.bytes, bytes);
      EXPECT_LE(need.bytes, bytes + (static_cast<uint64_t>(2 * parts + 2) << 20));
      EXPECT_GE(need.files, files);
    }
  }
}

TEST(CheckRoomFor, WhatAnInterruptedCallHasWrittenIsThereAlready) {
  const TestDirectory directory;
  const std::string target = directory.path() + "/target";
  const auto limits = ReadSpace(directory.path());
  ASSERT_TRUE(!limits.empty() && limits[0].bytes.has_value());
  EXPECT_OK(CheckRoomFor(target, "it", {.bytes = 1 << 20, .files = 1}));
  // Others write there, too: far beyond what can change meanwhile.
  const SpaceNeed large{.bytes = *limits[0].bytes + (uint64_t{1} << 50), .files = 1};
  EXPECT_EQ(CheckRoomFor(target, "it", large).code(), absl::StatusCode::kResourceExhausted);
  fs::create_directories(target + ".partial/folder");
  Spill(target + ".partial/folder/file", std::string(1 << 20, 'x'));
  EXPECT_OK(CheckRoomFor(target, "it", {.bytes = 1 << 20, .files = 1}));
}

}  // namespace
}  // namespace perdure
