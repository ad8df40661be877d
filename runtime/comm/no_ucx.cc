// Stands in for transport_ucx.cc where UCX was not found.
#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"

namespace perdure {

bool UcxIsBuilt() { return false; }

absl::StatusOr<std::unique_ptr<Fabric>> NewUcxFabric(const TransportOptions&) {
  return Unimplemented(
      "this build has no UCX; install libucx-dev and configure with -DPERDURE_UCX=ON, or choose "
      "the transport 'libfabric' or 'local'");
}

}  // namespace perdure
