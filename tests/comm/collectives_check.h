// What every implementation of Collectives over device memory must do: the same bits as a Group on
// the host, in its place in the order of the ops' stream.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/ops.h"
#include "runtime/comm/collectives.h"
#include "runtime/comm/group.h"

namespace perdure {

// Device memory with the values of a vector.
template <typename T>
class OnDevice {
 public:
  OnDevice(Ops* ops, const std::vector<T>& values)
      : ops_(ops),
        size_(values.size()),
        host_(ops->AllocateHost(bytes())),
        back_(ops->AllocateHost(bytes())),
        device_(ops->Allocate(bytes())) {
    if (bytes() > 0) std::memcpy(host_, values.data(), bytes());
    ops_->Upload(host_, bytes(), device_);
  }
  ~OnDevice() {
    (void)ops_->Sync();
    ops_->FreeHost(host_);
    ops_->FreeHost(back_);
    ops_->Free(device_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() { return static_cast<T*>(device_); }
  size_t bytes() const { return size_ * sizeof(T); }
  std::vector<T> Values() {
    ops_->Download(device_, bytes(), back_);
    EXPECT_TRUE(ops_->Sync().ok());
    std::vector<T> values(size_);
    if (bytes() > 0) std::memcpy(values.data(), back_, bytes());
    return values;
  }

 private:
  Ops* ops_;
  size_t size_;
  void* host_;  // What was uploaded, perhaps not yet.
  void* back_;  // What was downloaded.
  void* device_;
};

// Values of very different size, so that another order of additions gives other bits.
std::vector<float> Partial(int member, int64_t count);

// Every collective at several sizes. `reference` has the same members, in the same order.
void CheckCollectives(Collectives& group, Group& reference, Ops* ops);
// Exchanges between all members, oneself included, several under way at once.
void CheckExchanges(Collectives& group, Ops* ops);
// Results and operands are never waited for on the host.
void CheckStreamOrder(Collectives& group, Ops* ops);

}  // namespace perdure
