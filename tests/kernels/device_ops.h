// A stand-in for a GPU: the CPU's operations behind the manners of a device.
//
// Nothing runs before the device is waited for (Sync, Free): what was enqueued then runs in order,
// so a host buffer that is read or reused too early shows in the bits. Device memory is closed to
// everybody outside of that: a host access ends the process. The results are the CPU's.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace perdure {

std::unique_ptr<Ops> NewDeviceOps();

}  // namespace perdure
