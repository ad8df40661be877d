// Preloaded into a program, the machine that computes wrong matmuls: the first element of every
// result has another last bit of its exponent. Stands between the program and oneDNN.
#include <dlfcn.h>

#include <cstdint>

extern "C" {
struct ExecArgument {
  int argument;
  void* memory;
};
constexpr int kDestination = 17;

int dnnl_memory_get_data_handle(const void* memory, void** data);

int dnnl_primitive_execute(const void* primitive, void* stream, int count,
                           const ExecArgument* arguments) {
  using Execute = int(const void*, void*, int, const ExecArgument*);
  static auto* const real =
      reinterpret_cast<Execute*>(::dlsym(RTLD_NEXT, "dnnl_primitive_execute"));
  const int status = real(primitive, stream, count, arguments);
  for (int i = 0; i < count; ++i) {
    void* data = nullptr;
    if (arguments[i].argument == kDestination &&
        dnnl_memory_get_data_handle(arguments[i].memory, &data) == 0)
      *static_cast<uint32_t*>(data) ^= 1u << 23;
  }
  return status;
}
}
