#include "runtime/comm/transport.h"

#include <utility>

#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"
#include "runtime/comm/network_transport.h"
#include "runtime/comm/transport_local.h"

namespace perdure {

absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const std::string& kind,
                                                        const TransportOptions& options,
                                                        std::shared_ptr<LocalHub> hub) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size)
    return InvalidArgument("rank {} of {} ranks", options.rank, options.size);
  if (kind == "local") return NewLocalTransport(options, std::move(hub));
  if (kind == "ucx") return NewNetworkTransport(kind, options, NewUcxFabric(options));
  if (kind == "libfabric") return NewNetworkTransport(kind, options, NewOfiFabric(options));
  return InvalidArgument("unknown transport '{}'; known: ucx, libfabric, local", kind);
}

std::vector<std::string> LinkedTransports() {
  std::vector<std::string> kinds;
  if (UcxIsBuilt()) kinds.emplace_back("ucx");
  if (OfiIsBuilt()) kinds.emplace_back("libfabric");
  kinds.emplace_back("local");
  return kinds;
}

}  // namespace perdure
