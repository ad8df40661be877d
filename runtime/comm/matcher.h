// Pairs the sends to one rank with that rank's receives, in the memory of one process: per (sender,
// tag), in order of posting. The whole of the local transport's matching, and a rank's messages to
// itself in every transport.
//
// A send of at most kEagerBytes is copied and done at once; a longer one is done when its receive
// has been filled. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "runtime/comm/operation.h"

namespace perdure {

class Matcher {
 public:
  static constexpr size_t kEagerBytes = 8192;

  // True if the send met its receive: both are done.
  bool Send(int source, OperationRef send);
  // True if the receive met its send: both are done.
  bool Recv(int source, OperationRef receive);
  // Whether a receive from `source` with this tag would be met at once.
  bool HasSend(int source, uint64_t tag) const;

  // Finishes the receives that wait for `source`, and its sends that have not been copied.
  void Fail(int source, const absl::Status& receives, const absl::Status& sends);
  void FailAll(const absl::Status& status);

 private:
  using Key = std::pair<int, uint64_t>;
  using Queues = std::map<Key, std::deque<OperationRef>>;

  static OperationRef Pop(Queues& queues, const Key& key);

  Queues sends_;
  Queues receives_;
};

}  // namespace perdure
