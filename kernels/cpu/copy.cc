#include <cstring>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/kernels.h"

namespace perdure::cpu {

void Zero(Matrix x) {
  const size_t element = SizeOf(x.dtype);
  if (x.size() == 0) return;
  if (x.contiguous()) {
    std::memset(x.data, 0, x.bytes());
    return;
  }
  for (int64_t r = 0; r < x.rows; ++r) {
    std::memset(static_cast<char*>(x.data) + r * x.stride * element, 0, x.cols * element);
  }
}

void Copy(ConstMatrix src, Matrix dst) {
  PERDURE_CHECK(SameShape(src, dst));
  if (src.dtype == dst.dtype) {
    const size_t element = SizeOf(src.dtype);
    for (int64_t r = 0; r < src.rows; ++r) {
      std::memmove(static_cast<char*>(dst.data) + r * dst.stride * element,
                   static_cast<const char*>(src.data) + r * src.stride * element,
                   src.cols * element);
    }
    return;
  }
  WithType(src.dtype, [&]<typename From>(TypeTag<From>) {
    WithType(dst.dtype, [&]<typename To>(TypeTag<To>) {
      for (int64_t r = 0; r < src.rows; ++r) {
        const From* from = Row<From>(src, r);
        To* to = Row<To>(dst, r);
        ForLanes(src.cols, [&](int64_t i, auto count)
                               PERDURE_INLINE { Store(to + i, Load(from + i, count), count); });
      }
    });
  });
}

}  // namespace perdure::cpu
