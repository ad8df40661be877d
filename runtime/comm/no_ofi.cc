// Stands in for transport_ofi.cc where libfabric was not found.
#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"

namespace perdure {

bool OfiIsBuilt() { return false; }

absl::StatusOr<std::unique_ptr<Fabric>> NewOfiFabric(const TransportOptions&) {
  return Unimplemented(
      "this build has no libfabric; install libfabric-dev and configure with "
      "-DPERDURE_LIBFABRIC=ON, or choose the transport 'ucx' or 'local'");
}

}  // namespace perdure
