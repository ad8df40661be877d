// Small training states and checkpoints of them, for tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"

namespace perdure {

#define ASSERT_OK(expr)                               \
  do {                                                \
    const absl::Status assert_status = (expr);        \
    ASSERT_TRUE(assert_status.ok()) << assert_status; \
  } while (false)
#define EXPECT_OK(expr)                               \
  do {                                                \
    const absl::Status expect_status = (expr);        \
    EXPECT_TRUE(expect_status.ok()) << expect_status; \
  } while (false)

// Deterministic, whatever the standard library.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t Next();
  uint64_t Below(uint64_t bound) { return Next() % bound; }

 private:
  uint64_t state_;
};

// Where syncing costs nothing, if there is such a place: for tests that do it thousands of times.
std::string MemoryDirectory();

// A new directory, gone with the object.
class TestDirectory {
 public:
  TestDirectory() : TestDirectory(testing::TempDir()) {}
  explicit TestDirectory(const std::string& parent);
  ~TestDirectory();
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  const std::string& path() const { return path_; }
  // Of a new subdirectory.
  std::string Make(const std::string& name) const;

 private:
  std::string path_;
};

// Vectors, sliced rows and columns, extents that do not divide, an atom of one element.
std::vector<TensorSpec> OddTensors();
// One tensor of so many elements, in four slices.
std::vector<TensorSpec> BigTensors(int64_t elements);

// All atoms of a table with random floats, special values among them.
class TestState {
 public:
  TestState(const AtomTable& table, uint64_t seed);
  std::vector<AtomState>& states() { return states_; }
  float& at(int64_t atom, int part, int64_t element) {
    return states_[static_cast<size_t>(atom)].parts[static_cast<size_t>(part)][element];
  }
  // Whether all bits are equal.
  friend bool operator==(const TestState& a, const TestState& b);

 private:
  std::vector<float> memory_;
  std::vector<AtomState> states_;
};

// The atoms dealt to `parts` writers: each gets some, in an order that `seed` fixes.
std::vector<std::vector<AtomState>> Deal(const std::vector<AtomState>& states, int parts,
                                         uint64_t seed);

Manifest TestManifest(const AtomTable& table, int64_t step);

// Writes a whole checkpoint into `directory`; returns what its manifest says. `digest`: of
// manifest.json.
Manifest WriteCheckpoint(const std::string& directory, const AtomTable& table, TestState& state,
                         int parts, uint64_t seed = 1, int64_t step = 120,
                         Digest* digest = nullptr);

std::string Slurp(const std::string& path);
void Spill(const std::string& path, const std::string& bytes);

}  // namespace perdure
