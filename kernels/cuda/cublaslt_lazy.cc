// cuBLASLt, loaded when it is first called: merely linked, it costs every process 150 MB of memory,
// and a rank that computes on the CPU, or `perdure status`, has no use for it. These definitions
// stand in for the library's and hand each call on; without the library they say so by
// CUBLAS_STATUS_NOT_INITIALIZED.
#include <cublasLt.h>
#include <dlfcn.h>

namespace perdure::cuda {
namespace {

// The library where the loader finds it, else where it was when this was built; null: nowhere.
void* Library() {
  static void* const library = [] {
    void* found = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    return found != nullptr ? found : dlopen(PERDURE_CUBLASLT, RTLD_NOW | RTLD_LOCAL);
  }();
  return library;
}

void* Find(const char* name) { return Library() == nullptr ? nullptr : dlsym(Library(), name); }

}  // namespace
}  // namespace perdure::cuda

// The body of a function that calls the library's of the same name, or returns `absent`.
#define PERDURE_FORWARD(name, absent, ...)                                                        \
  static const auto function = reinterpret_cast<decltype(&name)>(perdure::cuda::Find(#name));     \
  return function != nullptr ? function(__VA_ARGS__) : absent

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  PERDURE_FORWARD(cublasLtCreate, CUBLAS_STATUS_NOT_INITIALIZED, handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  PERDURE_FORWARD(cublasLtDestroy, CUBLAS_STATUS_NOT_INITIALIZED, handle);
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  PERDURE_FORWARD(cublasLtGetStatusString, "libcublasLt.so.13 was not found", status);
}

size_t cublasLtGetVersion() { PERDURE_FORWARD(cublasLtGetVersion, 0, ); }

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* work, size_t work_bytes,
                              cudaStream_t stream) {
  PERDURE_FORWARD(cublasLtMatmul, CUBLAS_STATUS_NOT_INITIALIZED, handle, product, alpha, a,
                  a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, work,
                  work_bytes, stream);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[],
    int* found) {
  PERDURE_FORWARD(cublasLtMatmulAlgoGetHeuristic, CUBLAS_STATUS_NOT_INITIALIZED, handle, product,
                  a, b, c, d, preference, wanted, results, found);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t product, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  PERDURE_FORWARD(cublasLtMatmulDescInit_internal, CUBLAS_STATUS_NOT_INITIALIZED, product, size,
                  compute, scale);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  PERDURE_FORWARD(cublasLtMatmulDescSetAttribute, CUBLAS_STATUS_NOT_INITIALIZED, product,
                  attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size) {
  PERDURE_FORWARD(cublasLtMatmulPreferenceInit_internal, CUBLAS_STATUS_NOT_INITIALIZED, preference,
                  size);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  PERDURE_FORWARD(cublasLtMatmulPreferenceSetAttribute, CUBLAS_STATUS_NOT_INITIALIZED, preference,
                  attribute, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t stride) {
  PERDURE_FORWARD(cublasLtMatrixLayoutInit_internal, CUBLAS_STATUS_NOT_INITIALIZED, layout, size,
                  type, rows, cols, stride);
}

}  // extern "C"
