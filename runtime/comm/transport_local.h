// The transport between threads of one process: tests, and the meaning that the network transports
// must agree with.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/comm/transport.h"

namespace perdure {

// InvalidArgument if the hub is missing or of another size; AlreadyExists if it has had a transport
// of that rank.
absl::StatusOr<std::unique_ptr<Transport>> NewLocalTransport(const TransportOptions& options,
                                                             std::shared_ptr<LocalHub> hub);

}  // namespace perdure
