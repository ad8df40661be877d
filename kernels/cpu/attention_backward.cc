#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {
namespace {

// Working memory of one key/value head.
struct Workspace {
  static int64_t Size(const AttentionShape& shape) {
    const int64_t positions = RoundUpToLanes(shape.sequence);
    const int64_t width = RoundUpToLanes(shape.head_dim);
    return positions * (2 * shape.head_dim + 3 * width) +
           kQueryTile * (3 * width + 2 * kKeyTile + 1);
  }
  Workspace(float* memory, const AttentionShape& shape) {
    const int64_t positions = RoundUpToLanes(shape.sequence);
    const int64_t width = RoundUpToLanes(shape.head_dim);
    Carver carver(memory);
    key_panels = carver.Take(positions * shape.head_dim);
    value_panels = carver.Take(positions * shape.head_dim);
    key_rows = carver.Take(positions * width);
    dkey = carver.Take(positions * width);
    dvalue = carver.Take(positions * width);
    query_rows = carver.Take(kQueryTile * width);
    dout_rows = carver.Take(kQueryTile * width);
    dquery = carver.Take(kQueryTile * width);
    weights = carver.Take(kQueryTile * kKeyTile);
    dscores = carver.Take(kQueryTile * kKeyTile);
    out_dot = carver.Take(kQueryTile);
  }

  float* key_panels;
  float* value_panels;
  float* key_rows;
  float* dkey;        // Summed over the queries of every head of the group, in order.
  float* dvalue;      // Likewise.
  float* query_rows;  // Times the scale of the scores.
  float* dout_rows;
  float* dquery;
  float* weights;  // Scores, then softmax weights.
  float* dscores;  // Gradients of the weights, then of the scores.
  float* out_dot;  // dot(dout, out) of each query.
};

// weights = exp(scores - lse) and dscores = weights * (dweights - dot(dout, out)) in place; zero
// where hidden.
void SoftmaxBackward(const Tile& tile, const float* lse, const Workspace& work) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* weights = work.weights + r * kKeyTile;
    float* dscores = work.dscores + r * kKeyTile;
    const int64_t visible = tile.Visible(r);
    for (int64_t c = 0; c < tile.cols; c += kLanes) {
      if (visible <= c) {
        Store(weights + c, F16::Zero());
        Store(dscores + c, F16::Zero());
        continue;
      }
      F16 weight = Exp(Load(weights + c) - lse[r]);
      F16 dscore = weight * (Load(dscores + c) - work.out_dot[r]);
      if (visible < c + kLanes) {
        weight = FirstLanes(weight, visible - c, 0);
        dscore = FirstLanes(dscore, visible - c, 0);
      }
      Store(weights + c, weight);
      Store(dscores + c, dscore);
    }
  }
}

// to[tile.j + c] += sum over r of s[r][c] * rows[r]: the transposed product, from the first query
// that sees c on.
void AddTransposed(const Tile& tile, const float* s, const float* rows, int64_t d, float* to) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t k = 0; k < width; k += kLanes) {
    for (int64_t c = 0; c < tile.cols; c += kBlockRows) {
      const int64_t first = std::max<int64_t>(tile.j + c - tile.i, 0);
      if (first >= tile.rows) break;
      MultiplyBlock<Order::kColumns, Into::kAdd>(std::min(kBlockRows, tile.cols - c),
                                                 s + first * kKeyTile + c, rows + first * width + k,
                                                 to + (tile.j + c) * width + k, tile.rows - first,
                                                 {.a = kKeyTile, .b = width, .c = width});
    }
  }
}

// One head's queries [i, i + rows): adds to dkey and dvalue, leaves dquery (without the scale).
void BackwardTile(int64_t i, int64_t rows, int64_t d, const float* lse, const Workspace& work) {
  for (int64_t j = 0; j < i + rows; j += kKeyTile) {
    const Tile tile{.i = i, .rows = rows, .j = j, .cols = std::min(kKeyTile, i + rows - j)};
    MultiplyPanels(tile, work.query_rows, work.key_panels, d, work.weights);
    MultiplyPanels(tile, work.dout_rows, work.value_panels, d, work.dscores);
    SoftmaxBackward(tile, lse, work);
    AddTransposed(tile, work.weights, work.dout_rows, d, work.dvalue);
    AddTransposed(tile, work.dscores, work.query_rows, d, work.dkey);
    if (j == 0) {
      MultiplyScores<Into::kOverwrite>(tile, work.dscores, work.key_rows, d, work.dquery);
    } else {
      MultiplyScores<Into::kAdd>(tile, work.dscores, work.key_rows, d, work.dquery);
    }
  }
}

// Packed rows back into a matrix, times `scale`.
template <typename T>
void UnpackRows(const float* from, int64_t rows, int64_t d, float scale, T* to, int64_t stride) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t r = 0; r < rows; ++r, from += width, to += stride) {
    ForLanes(d, [&](int64_t k, auto count)
                    PERDURE_INLINE { Store(to + k, Load(from + k) * scale, count); });
  }
}

// dot(dout, out) of each row, in 16 lanes; dout packed already.
template <typename T>
void DotRows(const float* dout_rows, const T* out, int64_t stride, int64_t rows, int64_t d,
             float* dot) {
  const int64_t width = RoundUpToLanes(d);
  for (int64_t r = 0; r < rows; ++r) {
    F16 sum = F16::Zero();
    ForLanes(d, [&](int64_t k, auto count) PERDURE_INLINE {
      sum = MulAdd(Load(dout_rows + r * width + k), Load(out + r * stride + k, count), sum);
    });
    dot[r] = SumHalves(sum);
  }
}

struct Operands {
  ConstMatrix dout;
  ConstMatrix qkv;
  ConstMatrix out;
  const float* lse;
  Matrix dqkv;
};

template <typename T>
void BackwardKvHead(const Operands& x, const AttentionShape& shape, int64_t sample, int64_t kv_head,
                    const Workspace& work) {
  const int64_t d = shape.head_dim;
  const int64_t sequence = shape.sequence;
  const int64_t group = shape.q_heads / shape.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const int64_t key_column = (shape.q_heads + kv_head) * d;
  const int64_t value_column = key_column + shape.kv_heads * d;
  const int64_t first_row = sample * sequence;
  const T* base = Row<T>(x.qkv, first_row);

  PackPanels(base + key_column, x.qkv.stride, sequence, d, work.key_panels);
  PackPanels(base + value_column, x.qkv.stride, sequence, d, work.value_panels);
  PackRows(base + key_column, x.qkv.stride, sequence, d, 1.0f, work.key_rows);
  std::fill_n(work.dkey, sequence * RoundUpToLanes(d), 0.0f);
  std::fill_n(work.dvalue, sequence * RoundUpToLanes(d), 0.0f);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const float* lse = x.lse + (sample * shape.q_heads + head) * sequence;
    for (int64_t i = 0; i < sequence; i += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, sequence - i);
      const int64_t row = first_row + i;
      PackRows(Row<T>(x.qkv, row) + head * d, x.qkv.stride, rows, d, scale, work.query_rows);
      PackRows(Row<T>(x.dout, row) + head * d, x.dout.stride, rows, d, 1.0f, work.dout_rows);
      DotRows(work.dout_rows, Row<T>(x.out, row) + head * d, x.out.stride, rows, d, work.out_dot);
      BackwardTile(i, rows, d, lse + i, work);
      UnpackRows(work.dquery, rows, d, scale, Row<T>(x.dqkv, row) + head * d, x.dqkv.stride);
    }
  }
  T* to = Row<T>(x.dqkv, first_row);
  UnpackRows(work.dkey, sequence, d, 1.0f, to + key_column, x.dqkv.stride);
  UnpackRows(work.dvalue, sequence, d, 1.0f, to + value_column, x.dqkv.stride);
}

}  // namespace

void AttentionBackward(ConstMatrix dout, ConstMatrix qkv, ConstMatrix out, const float* lse,
                       const AttentionShape& shape, Matrix dqkv, Scratch& scratch) {
  CheckAttentionShape(shape);
  PERDURE_CHECK(qkv.rows == shape.rows() && qkv.cols == shape.qkv_cols());
  PERDURE_CHECK(out.rows == shape.rows() && out.cols == shape.out_cols());
  PERDURE_CHECK(SameShape(dout, out) && SameShape(dqkv, qkv));
  PERDURE_CHECK(out.dtype == qkv.dtype && dout.dtype == qkv.dtype && dqkv.dtype == qkv.dtype);
  const Workspace work(scratch.Reserve<float>(Workspace::Size(shape) + 8 * kLanes), shape);
  const Operands operands{dout, qkv, out, lse, dqkv};
  WithType(qkv.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t sample = 0; sample < shape.batch; ++sample) {
      for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        BackwardKvHead<T>(operands, shape, sample, kv_head, work);
      }
    }
  });
}

}  // namespace perdure::cpu
