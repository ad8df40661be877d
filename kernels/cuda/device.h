// What every file of the CUDA backend shares: checked runtime calls, and the stream they enqueue
// on.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace perdure::cuda {

// A device error lives on in its context, so the first one is kept and reported by Ops::Sync().
// REQUIRES: one thread.
class ErrorLatch {
 public:
  // Remembers `error`, if it is one and the first; `what` names the call or kernel.
  void Note(cudaError_t error, const char* what);
  // Likewise for a library's status, 0 being success; `text` is the library's name of it.
  void Note(int status, const char* text, const char* what);
  bool ok() const { return message_.empty(); }
  const std::string& message() const { return message_; }

 private:
  std::string message_;
};

// Where kernels go. Cheap to copy; the CudaOps that made it outlives it.
struct Stream {
  cudaStream_t stream = nullptr;
  ErrorLatch* errors = nullptr;
  int multiprocessors = 1;

  // Right after a launch: remembers its error.
  void Launched(const char* kernel) const { errors->Note(cudaGetLastError(), kernel); }
};

// Device memory that grows to the largest request and is given back at the end: work space of
// kernels on one stream, each of which may overwrite what the one before left there.
class Workspace {
 public:
  explicit Workspace(const Stream* stream) : stream_(stream) {}
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least `bytes`, aligned to 256. Growing waits for the stream.
  void* Reserve(size_t bytes);

 private:
  const Stream* stream_;
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace perdure::cuda
