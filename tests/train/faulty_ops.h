// CpuOps of a device that is wrong now and then.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <thread>

#include "runtime/base/status.h"
#include "tests/kernels/forwarding_ops.h"

namespace perdure {

struct Faults {
  int matmul = -1;                    // The matmul, counted from 0, that flips a bit of its result,
  int matmul_bit = 30;                // which one,
  bool matmul_from = false;           // and likewise every one after it.
  int copy = -1;                      // The Copy that changes a byte of its result.
  int download = -1;                  // The Download that does.
  int upload = -1;                    // The Upload that does.
  int sync = -1;                      // The Sync from which on the device is in error.
  std::chrono::microseconds slow{0};  // Each matmul takes so much longer.
};

class FaultyOps final : public ForwardingOps {
 public:
  explicit FaultyOps(const Faults& faults) : ForwardingOps(NewCpuOps(1)), faults_(faults) {}

  void Upload(const void* host, size_t bytes, void* device) override {
    ops_->Upload(host, bytes, device);
    if (uploads_++ == faults_.upload) Flip(device, bytes / 2, 3);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    ops_->Download(device, bytes, host);
    if (downloads_++ == faults_.download) Flip(host, bytes / 2, 3);
  }
  absl::Status Sync() override {
    if (faults_.sync >= 0 && syncs_++ >= faults_.sync) return Unavailable("an illegal access");
    return ops_->Sync();
  }
  void Copy(ConstMatrix src, Matrix dst) override {
    ops_->Copy(src, dst);
    if (copies_++ == faults_.copy) Flip(dst.data, 4096 + 5, 3);
  }
  void Matmul(Transpose transpose_a, Transpose transpose_b, ConstMatrix a, ConstMatrix b, Matrix c,
              bool accumulate) override {
    ops_->Matmul(transpose_a, transpose_b, a, b, c, accumulate);
    std::this_thread::sleep_for(faults_.slow);
    const int matmul = matmuls_++;
    if (matmul == faults_.matmul ||
        (faults_.matmul_from && faults_.matmul >= 0 && matmul > faults_.matmul))
      Flip(c.data, static_cast<size_t>(5 * c.stride + 7) * 4 + faults_.matmul_bit / 8,
           faults_.matmul_bit % 8);
  }
  std::string Describe() const override { return "faulty " + ops_->Describe(); }

 private:
  static void Flip(void* data, size_t byte, int bit) {
    static_cast<unsigned char*>(data)[byte] ^= static_cast<unsigned char>(1 << bit);
  }

  const Faults faults_;
  int matmuls_ = 0, copies_ = 0, uploads_ = 0, downloads_ = 0, syncs_ = 0;
};

}  // namespace perdure
