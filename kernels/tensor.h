// Views of two-dimensional arrays in a device's memory. A view owns nothing; the caller keeps the
// memory alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/base/check.h"

namespace perdure {

enum class DType : uint8_t { kF32 = 1, kBF16 = 2 };

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// Row-major [rows, cols]; element (r, c) is at data[r * stride + c]; stride >= cols, in elements.
template <typename Pointer>
struct MatrixView {
  Pointer data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  int64_t size() const { return rows * cols; }
  bool contiguous() const { return stride == cols; }
  size_t bytes() const { return static_cast<size_t>(size()) * SizeOf(dtype); }

  // Rows [begin, begin + count).
  MatrixView Rows(int64_t begin, int64_t count) const {
    PERDURE_CHECK(begin >= 0 && count >= 0 && begin + count <= rows);
    return {Advance(begin * stride), dtype, count, cols, stride};
  }
  // Columns [begin, begin + count), same stride.
  MatrixView Cols(int64_t begin, int64_t count) const {
    PERDURE_CHECK(begin >= 0 && count >= 0 && begin + count <= cols);
    return {Advance(begin), dtype, rows, count, stride};
  }

 private:
  Pointer Advance(int64_t elements) const {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
    return static_cast<Byte*>(data) + elements * static_cast<int64_t>(SizeOf(dtype));
  }
};

struct Matrix : MatrixView<void*> {
  Matrix() = default;
  Matrix(const MatrixView<void*>& view) : MatrixView<void*>(view) {}  // NOLINT: a view of a view
  Matrix(void* at, DType type, int64_t row_count, int64_t col_count)
      : MatrixView<void*>{at, type, row_count, col_count, col_count} {}
};

struct ConstMatrix : MatrixView<const void*> {
  ConstMatrix() = default;
  ConstMatrix(const MatrixView<const void*>& view) : MatrixView<const void*>(view) {}  // NOLINT
  ConstMatrix(const MatrixView<void*>& view)                                           // NOLINT
      : MatrixView<const void*>{view.data, view.dtype, view.rows, view.cols, view.stride} {}
  ConstMatrix(const void* at, DType type, int64_t row_count, int64_t col_count)
      : MatrixView<const void*>{at, type, row_count, col_count, col_count} {}
};

template <typename A, typename B>
bool SameShape(const A& a, const B& b) {
  return a.rows == b.rows && a.cols == b.cols;
}

}  // namespace perdure
