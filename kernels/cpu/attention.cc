#include <limits>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {
namespace {

// The running softmax of one tile of queries (Milakov & Gimelshein 2018; Dao et al. 2022).
struct Softmax {
  float* largest;   // [kQueryTile]: the largest score so far.
  float* lane_sum;  // [kQueryTile][16]: the sum of exponentials so far, lane by lane.
  float* out;       // [kQueryTile][D]: exponentials times values so far.
};

// Working memory of one key/value head.
struct Workspace {
  static int64_t Size(const AttentionShape& shape) {
    const int64_t positions = RoundUpToLanes(shape.sequence);
    const int64_t width = RoundUpToLanes(shape.head_dim);
    return positions * (shape.head_dim + width) + kQueryTile * (2 * width + kKeyTile + kLanes + 1);
  }
  Workspace(float* memory, const AttentionShape& shape) {
    const int64_t positions = RoundUpToLanes(shape.sequence);
    const int64_t width = RoundUpToLanes(shape.head_dim);
    Carver carver(memory);
    key_panels = carver.Take(positions * shape.head_dim);
    value_rows = carver.Take(positions * width);
    query_rows = carver.Take(kQueryTile * width);
    scores = carver.Take(kQueryTile * kKeyTile);
    softmax.out = carver.Take(kQueryTile * width);
    softmax.lane_sum = carver.Take(kQueryTile * kLanes);
    softmax.largest = carver.Take(kQueryTile);
  }

  float* key_panels;
  float* value_rows;
  float* query_rows;
  float* scores;
  Softmax softmax;
};

// Row r's scores become exponentials relative to the largest score so far; what was summed before
// is rescaled.
void UpdateRow(const Tile& tile, int64_t r, int64_t width, float* scores, const Softmax& softmax) {
  float* row = scores + r * kKeyTile;
  const int64_t last = std::min(r - r % kBlockRows + kBlockRows, tile.rows) - 1;
  const int64_t read = tile.Visible(last);  // Columns that the whole block of rows will read.
  const int64_t visible = std::max<int64_t>(tile.Visible(r), 0);
  constexpr float kHidden = -std::numeric_limits<float>::infinity();

  if (visible > 0) {
    F16 lanes = F16::Broadcast(kHidden);
    int64_t c = 0;
    for (; c + kLanes <= visible; c += kLanes) lanes = Max(lanes, Load(row + c));
    if (c < visible) {
      const F16 edge = FirstLanes(Load(row + c), visible - c, kHidden);
      Store(row + c, edge);
      lanes = Max(lanes, edge);
    }
    const float before = softmax.largest[r];
    const float in_tile = MaxHalves(lanes);
    const float largest = before > in_tile ? before : in_tile;
    if (largest != before) {
      softmax.largest[r] = largest;
      if (tile.j > 0) {
        const F16 shrink = Exp(F16::Broadcast(before - largest));
        float* sum = softmax.lane_sum + r * kLanes;
        Store(sum, Load(sum) * shrink);
        float* out = softmax.out + r * width;
        for (int64_t k = 0; k < width; k += kLanes) Store(out + k, Load(out + k) * shrink);
      }
    }
    F16 sum = Load(softmax.lane_sum + r * kLanes);
    for (c = 0; c < visible; c += kLanes) {
      const F16 e = Exp(Load(row + c) - largest);
      Store(row + c, e);
      sum = sum + e;
    }
    Store(softmax.lane_sum + r * kLanes, sum);
  }
  for (int64_t c = RoundUpToLanes(visible); c < read; c += kLanes) Store(row + c, F16::Zero());
}

// One head's queries [i, i + rows): out rows and their log-sum-exp.
template <typename T>
void ForwardTile(int64_t i, int64_t rows, int64_t d, const Workspace& work, T* out,
                 int64_t out_stride, float* lse) {
  const int64_t width = RoundUpToLanes(d);
  const Softmax& softmax = work.softmax;
  for (int64_t r = 0; r < rows; ++r) {
    softmax.largest[r] = -std::numeric_limits<float>::infinity();
    Store(softmax.lane_sum + r * kLanes, F16::Zero());
  }
  for (int64_t j = 0; j < i + rows; j += kKeyTile) {
    const Tile tile{.i = i, .rows = rows, .j = j, .cols = std::min(kKeyTile, i + rows - j)};
    MultiplyPanels(tile, work.query_rows, work.key_panels, d, work.scores);
    for (int64_t r = 0; r < rows; ++r) UpdateRow(tile, r, width, work.scores, softmax);
    if (j == 0) {
      MultiplyScores<Into::kOverwrite>(tile, work.scores, work.value_rows, d, softmax.out);
    } else {
      MultiplyScores<Into::kAdd>(tile, work.scores, work.value_rows, d, softmax.out);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float sum = SumHalves(Load(softmax.lane_sum + r * kLanes));
    const float inverse = 1.0f / sum;
    const float* from = softmax.out + r * width;
    T* to = out + r * out_stride;
    ForLanes(d, [&](int64_t k, auto count)
                    PERDURE_INLINE { Store(to + k, Load(from + k) * inverse, count); });
    lse[r] = softmax.largest[r] + Log(sum);
  }
}

}  // namespace

void AttentionForward(ConstMatrix qkv, const AttentionShape& shape, Matrix out, float* lse,
                      Scratch& scratch) {
  CheckAttentionShape(shape);
  PERDURE_CHECK(qkv.rows == shape.rows() && qkv.cols == shape.qkv_cols());
  PERDURE_CHECK(out.rows == shape.rows() && out.cols == shape.out_cols());
  PERDURE_CHECK(qkv.dtype == out.dtype);
  const int64_t d = shape.head_dim;
  const int64_t group = shape.q_heads / shape.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const Workspace work(scratch.Reserve<float>(Workspace::Size(shape) + 8 * kLanes), shape);
  WithType(qkv.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t unit = 0; unit < shape.batch * shape.kv_heads; ++unit) {
      const int64_t sample = unit / shape.kv_heads;
      const int64_t kv_head = unit % shape.kv_heads;
      const T* base = Row<T>(qkv, sample * shape.sequence);
      const T* keys = base + (shape.q_heads + kv_head) * d;
      PackPanels(keys, qkv.stride, shape.sequence, d, work.key_panels);
      PackRows(keys + shape.kv_heads * d, qkv.stride, shape.sequence, d, 1.0f, work.value_rows);
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t i = 0; i < shape.sequence; i += kQueryTile) {
          const int64_t rows = std::min(kQueryTile, shape.sequence - i);
          PackRows(base + i * qkv.stride + head * d, qkv.stride, rows, d, scale, work.query_rows);
          ForwardTile(i, rows, d, work, Row<T>(out, sample * shape.sequence + i) + head * d,
                      out.stride, lse + (sample * shape.q_heads + head) * shape.sequence + i);
        }
      }
    }
  });
}

}  // namespace perdure::cpu
