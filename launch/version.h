// What `perdure --version` says: this build, and what of it can be used here.
#pragma once

#include <string>

namespace perdure {

// "0.1.0".
std::string Version();

// Three lines: the version; the backends, with the GPUs that this process sees; the transports. It
// asks the CUDA driver, so it is for a process that ends soon.
std::string VersionText();

}  // namespace perdure
