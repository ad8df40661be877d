#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/kernels.h"

namespace perdure::cuda {
namespace {

// dst = src, bits as they are; N is 1 or kVectorSize<T>.
template <typename T>
struct MoveBody {
  RowsOf<const T> src;
  RowsOf<T> dst;

  template <int N>
  struct Held {
    std::conditional_t<N == 1, T, uint4> bits;
  };
  template <int N>
  __device__ void Load(int64_t row, int64_t column, Held<N>& held) const {
    if constexpr (N == 1) {
      held.bits = src[row][column];
    } else {
      held.bits = LoadWord(src[row] + column);
    }
  }
  template <int N>
  __device__ void Store(int64_t row, int64_t column, const Held<N>& held) const {
    if constexpr (N == 1) {
      dst[row][column] = held.bits;
    } else {
      StoreWord(dst[row] + column, held.bits);
    }
  }
};

template <typename From, typename To>
struct ConvertBody {
  RowsOf<const From> src;
  RowsOf<To> dst;

  template <int N>
  struct Held {
    float value[N];
  };
  template <int N>
  __device__ void Load(int64_t row, int64_t column, Held<N>& held) const {
    Read(src[row] + column, held.value);
  }
  template <int N>
  __device__ void Store(int64_t row, int64_t column, const Held<N>& held) const {
    Write(dst[row] + column, held.value);
  }
};

// N columns to a group, kUnroll groups to a thread.
template <int N, int kUnroll, typename Body>
void Launch(const Stream& stream, ConstMatrix src, Matrix dst) {
  LaunchElementwise<N, kUnroll>(stream, "Copy",
                                Body{decltype(Body::src)(src), decltype(Body::dst)(dst)}, dst.rows,
                                dst.cols, GroupsAligned<N>(src) && GroupsAligned<N>(dst));
}

}  // namespace

void Zero(const Stream& stream, Matrix x) {
  if (x.size() == 0) return;
  const size_t element = SizeOf(x.dtype);
  if (WithoutGaps(x)) {
    stream.errors->Note(cudaMemsetAsync(x.data, 0, x.bytes(), stream.stream), "cudaMemset");
  } else {
    stream.errors->Note(cudaMemset2DAsync(x.data, static_cast<size_t>(x.stride) * element, 0,
                                          static_cast<size_t>(x.cols) * element,
                                          static_cast<size_t>(x.rows), stream.stream),
                        "cudaMemset2D");
  }
}

void Copy(const Stream& stream, ConstMatrix src, Matrix dst) {
  PERDURE_CHECK(SameShape(src, dst));
  if (dst.size() == 0) return;
  if (src.dtype != dst.dtype) {
    JoinRows(src, dst);
    if (src.dtype == DType::kF32) {
      Launch<4, 4, ConvertBody<float, BFloat16>>(stream, src, dst);
    } else {
      Launch<4, 4, ConvertBody<BFloat16, float>>(stream, src, dst);
    }
    return;
  }
  if (src.data == dst.data && src.stride == dst.stride) return;
  if (WithoutGaps(src) && WithoutGaps(dst)) {
    stream.errors->Note(
        cudaMemcpyAsync(dst.data, src.data, dst.bytes(), cudaMemcpyDeviceToDevice, stream.stream),
        "cudaMemcpy on the device");
    return;
  }
  WithType(dst.dtype, [&]<typename T>(TypeTag<T>) {
    Launch<kVectorSize<T>, 4, MoveBody<T>>(stream, src, dst);
  });
}

}  // namespace perdure::cuda
