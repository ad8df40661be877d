// view.h5: its pieces cover every element once, from the right place, and are few. What HDF5 reads
// through it is compared by tensors_oracle.py.
#include "ckpt/view.h"

#include <gmock/gmock.h>

#include <chrono>
#include <filesystem>

#include "ckpt/atom_reader.h"
#include "ckpt/stream.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

// Each element of each tensor, read through the pieces, is the one that its atom has.
void ExpectCovers(const Manifest& manifest, const AtomTable& table) {
  const auto places = LocateAtoms(manifest, table);
  const auto pieces = ViewPieces(manifest, table);
  for (size_t t = 0; t < table.tensors().size(); ++t) {
    const TensorSpec& spec = table.tensors()[t];
    std::vector<std::pair<int32_t, int64_t>> seen(static_cast<size_t>(spec.size()), {-1, -1});
    for (const ViewPiece& piece : pieces[t])
      for (int64_t i = 0; i < piece.rows * piece.cols; ++i) {
        const int64_t row = piece.row + i / piece.cols, col = piece.col + i % piece.cols;
        ASSERT_LT(row, spec.rows);
        ASSERT_LT(col, spec.cols);
        auto& at = seen[static_cast<size_t>(row * spec.cols + col)];
        ASSERT_EQ(at.first, -1) << spec.name << " twice";
        at = {piece.part, piece.element + i};
      }
    const IndexRange atoms = table.TensorAtoms(static_cast<int64_t>(t));
    for (int64_t a = atoms.first; a < atoms.last; ++a) {
      const Atom& atom = table.atoms()[static_cast<size_t>(a)];
      for (int64_t i = 0; i < atom.count; ++i) {
        const AtomTable::Place place = table.Locate(atom, i);
        const AtomPlace& stands = places[static_cast<size_t>(a)];
        const auto& at = seen[static_cast<size_t>(place.row * spec.cols + place.col)];
        ASSERT_EQ(at.first, stands.part);
        ASSERT_EQ(at.second, stands.element + i);
      }
    }
  }
}

TEST(View, PiecesCoverEveryElementOnce) {
  TestRandom random(3);
  for (int round = 0; round < 30; ++round) {
    const TestDirectory directory;
    const AtomTable table(OddTensors(), 1 + static_cast<int64_t>(random.Below(100)));
    TestState state(table, random.Next());
    ExpectCovers(WriteCheckpoint(directory.path(), table, state,
                                 1 + static_cast<int>(random.Below(4)), random.Below(3)),
                 table);
  }
}

TEST(View, EqualManifestsGiveEqualBytes) {
  const TestDirectory directory;
  const AtomTable table(OddTensors(), 16);
  TestState state(table, 1);
  const Manifest manifest = WriteCheckpoint(directory.path(), table, state, 3);
  ASSERT_OK(WriteView(directory.path(), manifest, table));
  const std::string bytes = Slurp(directory.path() + "/view.h5");
  EXPECT_TRUE(bytes.starts_with("\x89HDF\r\n\x1a\n"));
  ASSERT_OK(WriteView(directory.path(), manifest, table));
  EXPECT_TRUE(Slurp(directory.path() + "/view.h5") == bytes);
  EXPECT_OK(VerifyCheckpoint(directory.path(), manifest));
  EXPECT_FALSE(WriteView(directory.path() + "/none", manifest, table).ok());
}

// The tensors of a model of 6.7 billion parameters, in 32 files: seconds would be too many.
TEST(View, ALargeModelsIsCheap) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols, SliceAxis axis) {
    tensors.push_back({.name = name,
                       .rows = rows,
                       .cols = cols,
                       .axis = axis,
                       .slices = axis == SliceAxis::kNone ? 1 : 8});
  };
  add("embed", 65'024, 4'096, SliceAxis::kRows);
  for (int layer = 0; layer < 32; ++layer) {
    const std::string of = std::to_string(layer) + ".";
    for (const char* name : {"q", "k", "v"}) add(of + name, 4'096, 4'096, SliceAxis::kRows);
    add(of + "o", 4'096, 4'096, SliceAxis::kCols);
    for (const char* name : {"gate", "up"}) add(of + name, 11'008, 4'096, SliceAxis::kRows);
    add(of + "down", 4'096, 11'008, SliceAxis::kCols);
    add(of + "norm", 1, 4'096, SliceAxis::kNone);
  }
  add("head", 65'024, 4'096, SliceAxis::kRows);
  const AtomTable table(tensors, 262'144);
  Manifest manifest = TestManifest(table, 1);
  manifest.tensors = tensors;
  // Atoms dealt one by one are the worst case: nothing joins.
  for (const bool worst : {false, true}) {
    manifest.parts.clear();
    std::vector<PartPlan> plans = CutParts(table, 32);
    if (worst) {
      for (PartPlan& plan : plans) plan.atoms.clear();
      for (size_t a = 0; a < table.atoms().size(); ++a)
        plans[a % 32].atoms.push_back(static_cast<int64_t>(a));
    }
    for (const PartPlan& plan : plans) {
      PartReport part;
      part.file = plan.file;
      part.atoms = plan.atoms;
      part.runs = {static_cast<int64_t>(plan.atoms.size())};
      manifest.parts.push_back(part);
    }
    size_t count = 0;
    for (const auto& pieces : ViewPieces(manifest, table)) count += pieces.size();
    const TestDirectory directory;
    const auto began = std::chrono::steady_clock::now();
    ASSERT_OK(WriteView(directory.path(), manifest, table));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    const auto bytes = std::filesystem::file_size(directory.path() + "/view.h5");
    RecordProperty(worst ? "worst" : "usual", std::to_string(count) + " pieces, " +
                                                  std::to_string(bytes) + " bytes, " +
                                                  std::to_string(seconds.count()) + " s");
    std::printf("%zu atoms, %zu pieces, %zu bytes, %.2f s\n", table.atoms().size(), count,
                static_cast<size_t>(bytes), seconds.count());
    EXPECT_LT(count, 4 * table.atoms().size());
  }
}

}  // namespace
}  // namespace perdure
