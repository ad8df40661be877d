// What a rank moves to itself in the ops' memory: copies on the ops' stream, never a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>

#include "kernels/ops.h"
#include "runtime/comm/collectives.h"

namespace perdure {

// Enqueues a copy inside the ops' memory; nothing where both places are the same. `bytes` is even:
// what is moved are values of two or four bytes.
void CopyBytes(Ops* ops, const void* from, size_t bytes, void* to);

// Messages to oneself. A send meets the receive of its operation in order of posting, whichever
// comes first, and the copy is enqueued by the later one.
class SelfExchange {
 public:
  explicit SelfExchange(Ops* ops) : ops_(ops) {}

  // True once the copy has been enqueued; shared by both sides of a message.
  using Met = std::shared_ptr<const bool>;
  Met Post(uint32_t operation, const Transfer& transfer);

 private:
  struct Waiting {
    Transfer transfer;
    std::shared_ptr<bool> met;
  };

  Ops* ops_;
  std::map<uint32_t, std::deque<Waiting>> waiting_;  // By operation; of one kind at any time.
};

}  // namespace perdure
