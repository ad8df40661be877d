#include <cstring>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

void EmbeddingForward(const int32_t* tokens, ConstMatrix table, int64_t row_begin, Matrix out) {
  PERDURE_CHECK(table.cols == out.cols);
  PERDURE_CHECK(table.dtype == out.dtype);
  WithType(out.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t t = 0; t < out.rows; ++t) {
      const int64_t row = tokens[t] - row_begin;
      T* to = Row<T>(out, t);
      if (row < 0 || row >= table.rows) {
        std::memset(static_cast<void*>(to), 0, out.cols * sizeof(T));
        continue;
      }
      const T* from = Row<T>(table, row);
      ForLanes(out.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        Store(to + i, Load(from + i, count) + 0.0f, count);
      });
    }
  });
}

void EmbeddingBackward(const int32_t* tokens, ConstMatrix dout, int64_t row_begin, Matrix dtable) {
  PERDURE_CHECK(dtable.cols == dout.cols);
  PERDURE_CHECK(dtable.dtype == DType::kF32);
  WithType(dout.dtype, [&]<typename T>(TypeTag<T>) {
    for (int64_t t = 0; t < dout.rows; ++t) {
      const int64_t row = tokens[t] - row_begin;
      if (row < 0 || row >= dtable.rows) continue;
      const T* from = Row<T>(dout, t);
      float* to = Row<float>(dtable, row);
      ForLanes(dout.cols, [&](int64_t i, auto count) PERDURE_INLINE {
        Store(to + i, Load(to + i, count) + Load(from + i, count), count);
      });
    }
  });
}

}  // namespace perdure::cpu
