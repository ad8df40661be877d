// Brings about the connections of a PeerWatch: lower ranks are dialled, higher ones accepted, each
// end proves that it knows the other's token, all at the same time and before a deadline.
#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/comm/address.h"
#include "runtime/comm/cancellation.h"
#include "runtime/comm/sockets.h"

namespace perdure {

// The connections by rank, the caller's own closed. Unavailable if a peer refuses, DeadlineExceeded
// if one is silent; both name the peers. `cancellation` (may be null) ends it at once.
absl::StatusOr<std::vector<UniqueFd>> ConnectMesh(int rank, int listener,
                                                  std::span<const WatchAddress> addresses,
                                                  absl::Time deadline,
                                                  const Cancellation* cancellation);

}  // namespace perdure
