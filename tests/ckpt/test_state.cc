#include "tests/ckpt/test_state.h"

#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {

uint64_t TestRandom::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::string MemoryDirectory() {
  return ::access("/dev/shm", W_OK | X_OK) == 0 ? "/dev/shm" : testing::TempDir();
}

TestDirectory::TestDirectory(const std::string& parent) {
  std::string name = parent + "/perdure-test-XXXXXX";
  EXPECT_NE(::mkdtemp(name.data()), nullptr) << name;
  path_ = name;
}

TestDirectory::~TestDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TestDirectory::Make(const std::string& name) const {
  const std::string path = path_ + "/" + name;
  EXPECT_TRUE(std::filesystem::create_directory(path)) << path;
  return path;
}

std::vector<TensorSpec> OddTensors() {
  return {
      {.name = "embed", .rows = 37, .cols = 12, .axis = SliceAxis::kRows, .slices = 4, .layer = -1},
      {.name = "norm", .rows = 1, .cols = 12, .decays = false},
      {.name = "wide",
       .rows = 5,
       .cols = 26,
       .axis = SliceAxis::kCols,
       .slices = 4,
       .init_std = 0.02},
      {.name = "one", .rows = 1, .cols = 1, .layer = 3}};
}

std::vector<TensorSpec> BigTensors(int64_t elements) {
  return {{.name = "big", .rows = 4, .cols = elements / 4, .axis = SliceAxis::kRows, .slices = 4}};
}

TestState::TestState(const AtomTable& table, uint64_t seed)
    : memory_(static_cast<size_t>(table.parameters() * kStatePartCount)) {
  TestRandom random(seed);
  for (float& value : memory_) {
    value = static_cast<float>(static_cast<int64_t>(random.Next())) * 0x1p-63f;
    // Bits that a careless copy through arithmetic would lose.
    if (random.Below(16) == 0) value = std::bit_cast<float>(static_cast<uint32_t>(random.Next()));
  }
  float* at = memory_.data();
  for (size_t i = 0; i < table.atoms().size(); ++i) {
    AtomState state{.atom = static_cast<int64_t>(i)};
    for (float*& part : state.parts) {
      part = at;
      at += table.atoms()[i].count;
    }
    states_.push_back(state);
  }
}

bool operator==(const TestState& a, const TestState& b) {
  return a.memory_.size() == b.memory_.size() &&
         std::memcmp(a.memory_.data(), b.memory_.data(), a.memory_.size() * sizeof(float)) == 0;
}

std::vector<std::vector<AtomState>> Deal(const std::vector<AtomState>& states, int parts,
                                         uint64_t seed) {
  TestRandom random(seed);
  std::vector<AtomState> shuffled = states;
  if (seed != 0)  // 0: as they are.
    for (size_t i = shuffled.size(); i > 1; --i)
      std::swap(shuffled[i - 1], shuffled[random.Below(i)]);
  std::vector<std::vector<AtomState>> dealt(static_cast<size_t>(parts));
  for (size_t i = 0; i < shuffled.size(); ++i)
    dealt[i * dealt.size() / shuffled.size()].push_back(shuffled[i]);
  return dealt;
}

Manifest TestManifest(const AtomTable& table, int64_t step) {
  return {.step = step,
          .samples = step * 8,
          .tokens = step * 8 * 64,
          .phase = 1,
          .phase_name = "extension",
          .generation = 3,
          .run_id = "00112233445566778899aabbccddeeff",
          .config = "[run]\nname = \"t\"  # \"quoted\", \\ and \t é\n",
          .trail = {.sample_chain = DigestOf("chain"), .recent = {}},
          .layout = "tensor 2 x pipeline 2 x data 2, zero 1",
          .created = "2026-01-02T03:04:05Z",
          .atom_elements = table.atom_elements(),
          .tensors = table.tensors(),
          .parts = {},
          .certificate = {}};
}

Manifest WriteCheckpoint(const std::string& directory, const AtomTable& table, TestState& state,
                         int parts, uint64_t seed, int64_t step, Digest* digest) {
  Manifest manifest = TestManifest(table, step);
  int index = 0;
  for (const std::vector<AtomState>& states : Deal(state.states(), parts, seed)) {
    auto report = WritePart(directory, fmt::format("part-{:05}.h5", index++), table, states, step,
                            manifest.generation, manifest.run_id);
    EXPECT_TRUE(report.ok()) << report.status();
    if (report.ok()) manifest.parts.push_back(*std::move(report));
  }
  const auto written = WriteManifest(directory, table, manifest);
  EXPECT_TRUE(written.ok()) << written.status();
  if (written.ok() && digest != nullptr) *digest = *written;
  return manifest;
}

std::string Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void Spill(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  EXPECT_TRUE(file.good()) << path;
}

}  // namespace perdure
