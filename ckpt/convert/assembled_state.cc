#include "ckpt/convert/assembled_state.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

absl::Status CheckBand(std::span<const StateBlock> band, const TensorSpec& tensor,
                       const std::string& what) {
  int64_t col = 0;
  for (const StateBlock& block : band) {
    if (block.rows != band[0].rows || block.rows <= 0 || block.cols <= 0 || block.col != col ||
        block.cols > tensor.cols - col)
      return DataLoss(
          "{}: the piece of {} x {} at row {}, column {} leaves a hole or an overlap at column {}",
          what, block.rows, block.cols, block.row, block.col, col);
    col += block.cols;
  }
  if (col == tensor.cols) return absl::OkStatus();
  return DataLoss("{}: rows {} to {} end at column {} of {}: a piece is missing", what, band[0].row,
                  band[0].row + band[0].rows - 1, col, tensor.cols);
}

absl::Status CheckTiles(std::span<const StateBlock> blocks, const TensorSpec& tensor,
                        const std::string& what) {
  int64_t row = 0;
  while (!blocks.empty()) {
    size_t count = 1;
    while (count < blocks.size() && blocks[count].row == blocks[0].row) ++count;
    if (blocks[0].row != row || blocks[0].rows > tensor.rows - row)
      return DataLoss("{}: a piece of {} rows begins at row {} where row {} is the next", what,
                      blocks[0].rows, blocks[0].row, row);
    RETURN_IF_ERROR(CheckBand(blocks.first(count), tensor, what));
    row += blocks[0].rows;
    blocks = blocks.subspan(count);
  }
  if (row == tensor.rows) return absl::OkStatus();
  return DataLoss("{}: its pieces end at row {} of {}: one is missing", what, row, tensor.rows);
}

}  // namespace

AssembledState::AssembledState(const AtomTable& table)
    : table_(table), tensors_(table.tensors().size()) {}

absl::Status AssembledState::Set(int64_t tensor, int part, std::vector<StateBlock> blocks,
                                 std::string what) {
  std::sort(blocks.begin(), blocks.end(), [](const StateBlock& a, const StateBlock& b) {
    return std::tie(a.row, a.col) < std::tie(b.row, b.col);
  });
  RETURN_IF_ERROR(CheckTiles(blocks, table_.tensors()[static_cast<size_t>(tensor)], what));
  for (const StateBlock& block : blocks)
    PERDURE_CHECK(block.first >= 0 && block.stride >= block.cols &&
                  block.first + (block.rows - 1) * block.stride + block.cols <=
                      block.source->size());
  auto& place = tensors_[static_cast<size_t>(tensor)][static_cast<size_t>(part)];
  PERDURE_CHECK(place.empty());
  place = std::move(blocks);
  return absl::OkStatus();
}

absl::Status AssembledState::CheckComplete() const {
  for (size_t t = 0; t < tensors_.size(); ++t)
    for (size_t part = 0; part < tensors_[t].size(); ++part)
      if (tensors_[t][part].empty())
        return DataLoss("{} of {} is nowhere in the checkpoint", kStateParts[part],
                        table_.tensors()[t].name);
  return absl::OkStatus();
}

absl::Status AssembledState::Read(std::span<const AtomState> wanted) {
  for (const AtomState& state : wanted) {
    PERDURE_CHECK(state.atom >= 0 && state.atom < std::ssize(table_.atoms()));
    const Atom& atom = table_.atoms()[static_cast<size_t>(state.atom)];
    for (int part = 0; part < kStatePartCount; ++part)
      RETURN_IF_ERROR(ReadPart(atom, part, state.parts[static_cast<size_t>(part)]));
  }
  return absl::OkStatus();
}

absl::Status AssembledState::ReadPart(const Atom& atom, int part, float* out) {
  const TensorSpec& tensor = table_.tensors()[static_cast<size_t>(atom.tensor)];
  const std::span<const StateBlock> all =
      tensors_[static_cast<size_t>(atom.tensor)][static_cast<size_t>(part)];
  PERDURE_CHECK(!all.empty());
  const int64_t slice_cols = tensor.SliceCols(atom.slice);
  for (int64_t done = 0; done < atom.count;) {
    const auto [row, col] = table_.Locate(atom, done);
    const auto begin = std::partition_point(
        all.begin(), all.end(),
        [row = row](const StateBlock& block) { return block.row + block.rows <= row; });
    PERDURE_CHECK(begin != all.end());
    int64_t count = slice_cols - (atom.begin + done) % slice_cols;  // To the end of the row.
    // Rows that follow each other in the slice, the tensor and the source are read at once.
    if (slice_cols == tensor.cols && begin->cols == tensor.cols && begin->stride == begin->cols) {
      count = std::min((begin->row + begin->rows - row) * tensor.cols - col, atom.count - done);
      const int64_t first = begin->first + (row - begin->row) * begin->stride + col;
      RETURN_IF_ERROR(begin->source->Read(first, {out + done, static_cast<size_t>(count)}));
    } else {
      count = std::min(count, atom.count - done);
      RETURN_IF_ERROR(ReadRow({begin, all.end()}, row, col, count, out + done));
    }
    done += count;
  }
  return absl::OkStatus();
}

absl::Status AssembledState::ReadRow(std::span<const StateBlock> blocks, int64_t row, int64_t col,
                                     int64_t count, float* out) {
  for (const StateBlock& block : blocks) {
    if (count == 0) break;
    if (block.col + block.cols <= col) continue;
    PERDURE_CHECK(block.row <= row && row < block.row + block.rows && block.col <= col);
    const int64_t taken = std::min(count, block.col + block.cols - col);
    const int64_t first = block.first + (row - block.row) * block.stride + (col - block.col);
    RETURN_IF_ERROR(block.source->Read(first, {out, static_cast<size_t>(taken)}));
    out += taken;
    col += taken;
    count -= taken;
  }
  PERDURE_CHECK(count == 0);
  return absl::OkStatus();
}

}  // namespace perdure
