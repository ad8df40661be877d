// Runs a body once per rank, in threads over the connected local transport.
#pragma once

#include <functional>

#include "runtime/comm/transport.h"

namespace perdure {

void RunTransportThreads(int ranks, const std::function<void(Transport* transport)>& body);

}  // namespace perdure
