// What the attention kernels share: tiles of scores, and fp32 operands packed for the microkernel.
//
// Letters: S sequence, d head_dim, D head_dim rounded up to whole lanes; i a query's position, j a
// key's. Packed rows are [S][D], zero beyond d; packed panels are [S / 16][d][16]: sixteen
// positions side by side, transposed, zero beyond S.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/microkernel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops.h"

namespace perdure::cpu {

// A tile of scores is at most 48 queries by 96 keys (18 KiB): whole blocks of the microkernel both
// ways, also transposed.
inline constexpr int64_t kQueryTile = 48;
inline constexpr int64_t kKeyTile = 96;
static_assert(kQueryTile % kBlockRows == 0 && kKeyTile % kBlockRows == 0);
static_assert(kKeyTile % kLanes == 0);

constexpr int64_t RoundUpToLanes(int64_t x) { return (x + kLanes - 1) / kLanes * kLanes; }

inline void CheckAttentionShape(const AttentionShape& shape) {
  PERDURE_CHECK(shape.kv_heads > 0 && shape.q_heads % shape.kv_heads == 0);
  PERDURE_CHECK(shape.head_dim > 0 && shape.head_dim % 8 == 0 && shape.head_dim <= 256);
}

// Queries [i, i + rows) against keys [j, j + cols).
struct Tile {
  int64_t i = 0;
  int64_t rows = 0;
  int64_t j = 0;
  int64_t cols = 0;

  // How many of the columns row r may see (<= 0: none).
  int64_t Visible(int64_t r) const { return std::min(cols, i + r + 1 - j); }
};

// rows of `from` as packed rows, times `scale`.
template <typename T>
void PackRows(const T* from, int64_t stride, int64_t rows, int64_t d, float scale, float* to) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t r = 0; r < rows; ++r, from += stride, to += width) {
    ForLanes(d, [&](int64_t i, auto count)
                    PERDURE_INLINE { Store(to + i, Load(from + i, count) * scale); });
  }
}

// rows of `from` as packed panels.
template <typename T>
void PackPanels(const T* from, int64_t stride, int64_t rows, int64_t d, float* to) {
  for (int64_t base = 0; base < rows; base += kLanes, to += d * kLanes) {
    const int64_t here = std::min(kLanes, rows - base);
    for (int64_t r = 0; r < kLanes; ++r) {
      const T* row = from + (base + r) * stride;
      for (int64_t k = 0; k < d; ++k) to[k * kLanes + r] = r < here ? ToFloat(row[k]) : 0.0f;
    }
  }
}

// s[r][c] = dot(row r of `rows`, position tile.j + c of `panels`), for every block that the
// diagonal does not hide whole.
inline void MultiplyPanels(const Tile& tile, const float* rows, const float* panels, int64_t d,
                           float* s) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t c = 0; c < tile.cols; c += kLanes) {
    const float* panel = panels + (tile.j + c) * d;
    for (int64_t r = 0; r < tile.rows; r += kBlockRows) {
      const int64_t count = std::min(kBlockRows, tile.rows - r);
      if (tile.Visible(r + count - 1) <= c) continue;
      MultiplyBlock<Order::kRows, Into::kOverwrite>(count, rows + r * width, panel,
                                                    s + r * kKeyTile + c, d,
                                                    {.a = width, .b = kLanes, .c = kKeyTile});
    }
  }
}

// to[r] = (or +=) sum over visible c of s[r][c] * row tile.j + c of `rows` (packed); s is zero
// where hidden.
template <Into kInto>
void MultiplyScores(const Tile& tile, const float* s, const float* rows, int64_t d, float* to) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t k = 0; k < width; k += kLanes) {
    const float* from = rows + tile.j * width + k;
    for (int64_t r = 0; r < tile.rows; r += kBlockRows) {
      const int64_t count = std::min(kBlockRows, tile.rows - r);
      const int64_t depth = tile.Visible(r + count - 1);
      if (depth <= 0) continue;
      MultiplyBlock<Order::kRows, kInto>(count, s + r * kKeyTile, from, to + r * width + k, depth,
                                         {.a = kKeyTile, .b = width, .c = width});
    }
  }
}

// Hands out consecutive pieces of a scratch buffer, each aligned to 64 bytes.
class Carver {
 public:
  explicit Carver(float* memory) : next_(memory) {}
  float* Take(int64_t count) {
    float* piece = next_;
    next_ += RoundUpToLanes(count);
    return piece;
  }

 private:
  float* next_;
};

}  // namespace perdure::cpu
