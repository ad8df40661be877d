#include "kernels/cpu/matmul.h"

#include <dnnl.h>
#include <omp.h>

#include <array>
#include <cstring>
#include <dnnl.hpp>
#include <optional>
#include <unordered_map>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/scratch.h"

namespace perdure {
namespace cpu {
namespace {

// From this size of b on, the library's sgemm is faster than its matmul primitive also where
// nothing is transposed (Zen 4, fp32: 107 against 112 GF/s; below it they are equal, or sgemm is
// slower).
constexpr int64_t kSgemmElements = int64_t{1} << 19;

// One product's shape: op(a) [m, k] times op(b) [k, n] into c [m, n].
struct Problem {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  DType dtype = DType::kF32, c_dtype = DType::kF32;
  bool accumulate = false;

  bool operator==(const Problem&) const = default;

  bool UsesSgemm() const {
    return dtype == DType::kF32 && transpose_b == Transpose::kNo &&
           (transpose_a == Transpose::kYes || n * k >= kSgemmElements);
  }
};

struct ProblemHash {
  size_t operator()(const Problem& p) const {
    const std::array<int64_t, 7> words = {
        p.m,
        p.n,
        p.k,
        p.a_stride,
        p.b_stride,
        p.c_stride,
        static_cast<int64_t>(p.transpose_a) | static_cast<int64_t>(p.transpose_b) << 8 |
            static_cast<int64_t>(p.dtype) << 16 | static_cast<int64_t>(p.c_dtype) << 24 |
            static_cast<int64_t>(p.accumulate) << 32};
    uint64_t hash = 0;
    for (int64_t word : words) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

dnnl::memory::data_type LibraryType(DType dtype) {
  return dtype == DType::kF32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

dnnl::memory::desc Describe(int64_t rows, int64_t cols, DType dtype, Transpose transpose,
                            int64_t stride) {
  const dnnl::memory::dims strides =
      transpose == Transpose::kNo ? dnnl::memory::dims{stride, 1} : dnnl::memory::dims{1, stride};
  return {{rows, cols}, LibraryType(dtype), strides};
}

// A primitive with its memory objects, whose addresses change from call to call.
struct Prepared {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, scratch;
  size_t scratch_bytes = 0;
};

void CheckLibrary(dnnl_status_t status) { PERDURE_CHECK(status == dnnl_success); }

}  // namespace

class MatmulLibrary::Impl {
 public:
  explicit Impl(int threads)
      : threads_(threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    PERDURE_CHECK(threads >= 1);
    omp_set_num_threads(threads);
  }

  void Multiply(const Problem& p, const void* a, const void* b, void* c) {
    // The setting belongs to the calling thread, and other ranks' objects may have lived in it.
    if (omp_get_max_threads() != threads_) omp_set_num_threads(threads_);
    if (p.UsesSgemm()) {
      const auto letter = [](Transpose t) { return t == Transpose::kNo ? 'N' : 'T'; };
      CheckLibrary(dnnl_sgemm(letter(p.transpose_a), letter(p.transpose_b), p.m, p.n, p.k, 1.0f,
                              static_cast<const float*>(a), p.a_stride,
                              static_cast<const float*>(b), p.b_stride, p.accumulate ? 1.0f : 0.0f,
                              static_cast<float*>(c), p.c_stride));
      return;
    }
    auto found = prepared_.find(p);
    if (found == prepared_.end()) found = prepared_.emplace(p, Prepare(p)).first;
    if (found->second.has_value()) {
      Execute(*found->second, a, b, c);
    } else {
      MultiplyWidened(p, a, b, c);
    }
  }

 private:
  // Nothing where the library has no fast kernel: bf16 on machines without AVX-512.
  std::optional<Prepared> Prepare(const Problem& p) {
    const dnnl::memory::desc a = Describe(p.m, p.k, p.dtype, p.transpose_a, p.a_stride);
    const dnnl::memory::desc b = Describe(p.k, p.n, p.dtype, p.transpose_b, p.b_stride);
    const dnnl::memory::desc c = Describe(p.m, p.n, p.c_dtype, Transpose::kNo, p.c_stride);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (p.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, engine_,
                                                   /*allow_empty=*/true);
    if (p.dtype == DType::kBF16) {
      const bool slow = !description || std::strncmp(description.impl_info_str(), "ref", 3) == 0;
      if (slow) return std::nullopt;
    }
    PERDURE_CHECK(static_cast<bool>(description));
    const dnnl::memory::desc scratch = description.scratchpad_desc();
    return Prepared{.primitive = dnnl::matmul(description),
                    .a = dnnl::memory(a, engine_, DNNL_MEMORY_NONE),
                    .b = dnnl::memory(b, engine_, DNNL_MEMORY_NONE),
                    .c = dnnl::memory(c, engine_, DNNL_MEMORY_NONE),
                    .scratch = dnnl::memory(scratch, engine_, DNNL_MEMORY_NONE),
                    .scratch_bytes = scratch.get_size()};
  }

  void Execute(const Prepared& prepared, const void* a, const void* b, void* c) {
    void* scratch = scratch_.Reserve<char>(prepared.scratch_bytes);
    // The C interface, which spares building a hash map per call.
    CheckLibrary(dnnl_memory_set_data_handle(prepared.a.get(), const_cast<void*>(a)));
    CheckLibrary(dnnl_memory_set_data_handle(prepared.b.get(), const_cast<void*>(b)));
    CheckLibrary(dnnl_memory_set_data_handle(prepared.c.get(), c));
    CheckLibrary(dnnl_memory_set_data_handle(prepared.scratch.get(), scratch));
    const std::array<dnnl_exec_arg_t, 4> arguments = {
        {{DNNL_ARG_SRC, prepared.a.get()},
         {DNNL_ARG_WEIGHTS, prepared.b.get()},
         {DNNL_ARG_DST, prepared.c.get()},
         {DNNL_ARG_SCRATCHPAD, prepared.scratch.get()}}};
    CheckLibrary(dnnl_primitive_execute(prepared.primitive.get(), stream_.get(),
                                        static_cast<int>(arguments.size()), arguments.data()));
    CheckLibrary(dnnl_stream_wait(stream_.get()));
  }

  // bf16 operands widened to fp32, multiplied there, the result rounded to c's type once.
  void MultiplyWidened(const Problem& p, const void* a, const void* b, void* c) {
    const bool a_transposed = p.transpose_a == Transpose::kYes;
    const bool b_transposed = p.transpose_b == Transpose::kYes;
    ConstMatrix narrow_a(a, p.dtype, a_transposed ? p.k : p.m, a_transposed ? p.m : p.k);
    ConstMatrix narrow_b(b, p.dtype, b_transposed ? p.n : p.k, b_transposed ? p.k : p.n);
    Matrix narrow_c(c, p.c_dtype, p.m, p.n);
    narrow_a.stride = p.a_stride;
    narrow_b.stride = p.b_stride;
    narrow_c.stride = p.c_stride;
    const bool round = p.c_dtype == DType::kBF16;
    float* memory =
        wide_.Reserve<float>(narrow_a.size() + narrow_b.size() + (round ? narrow_c.size() : 0));
    const Matrix wide_a(memory, DType::kF32, narrow_a.rows, narrow_a.cols);
    const Matrix wide_b(memory + wide_a.size(), DType::kF32, narrow_b.rows, narrow_b.cols);
    const Matrix wide_c =
        round ? Matrix(memory + wide_a.size() + wide_b.size(), DType::kF32, p.m, p.n) : narrow_c;
    Copy(narrow_a, wide_a);
    Copy(narrow_b, wide_b);
    if (round && p.accumulate) Copy(narrow_c, wide_c);
    Problem wide = p;
    wide.dtype = DType::kF32;
    wide.c_dtype = DType::kF32;
    wide.a_stride = wide_a.stride;
    wide.b_stride = wide_b.stride;
    wide.c_stride = wide_c.stride;
    Multiply(wide, wide_a.data, wide_b.data, wide_c.data);
    if (round) Copy(wide_c, narrow_c);
  }

  const int threads_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<Problem, std::optional<Prepared>, ProblemHash> prepared_;
  Scratch scratch_;
  Scratch wide_;
};

namespace {

// The library throws; a shape that it refuses although we checked ours is our error.
template <typename F>
auto Guard(F&& f) {
  try {
    return f();
  } catch (const dnnl::error& error) {
    CheckFailed(__FILE__, __LINE__, error.message);
  }
}

}  // namespace

MatmulLibrary::MatmulLibrary(int threads)
    : impl_(Guard([&] { return std::make_unique<Impl>(threads); })) {}
MatmulLibrary::~MatmulLibrary() = default;

void MatmulLibrary::Multiply(Transpose transpose_a, Transpose transpose_b, ConstMatrix a,
                             ConstMatrix b, Matrix c, bool accumulate) {
  const bool a_transposed = transpose_a == Transpose::kYes;
  const bool b_transposed = transpose_b == Transpose::kYes;
  const int64_t k = a_transposed ? a.rows : a.cols;
  PERDURE_CHECK((a_transposed ? a.cols : a.rows) == c.rows);
  PERDURE_CHECK((b_transposed ? b.rows : b.cols) == c.cols);
  PERDURE_CHECK((b_transposed ? b.cols : b.rows) == k);
  PERDURE_CHECK(a.dtype == b.dtype && (c.dtype == DType::kF32 || c.dtype == a.dtype));
  PERDURE_CHECK(a.stride >= a.cols && b.stride >= b.cols && c.stride >= c.cols);
  if (c.size() == 0) return;
  if (k == 0) {
    if (!accumulate) Zero(c);
    return;
  }
  const Problem problem{.m = c.rows,
                        .n = c.cols,
                        .k = k,
                        .a_stride = a.stride,
                        .b_stride = b.stride,
                        .c_stride = c.stride,
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .dtype = a.dtype,
                        .c_dtype = c.dtype,
                        .accumulate = accumulate};
  Guard([&] { impl_->Multiply(problem, a.data, b.data, c.data); });
}

}  // namespace cpu

std::string CpuLibrary() {
  const dnnl_version_t* version = dnnl_version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

std::string CpuIsa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "sse41";
    case dnnl::cpu_isa::avx:
      return "avx";
    case dnnl::cpu_isa::avx2:
      return "avx2";
    case dnnl::cpu_isa::avx2_vnni:
      return "avx2_vnni";
    case dnnl::cpu_isa::avx512_core:
      return "avx512_core";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "avx512_core_vnni";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "avx512_core_amx";
    default:
      return "generic";
  }
}

bool CpuHasBF16() {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

}  // namespace perdure
