#include "launch/instruction_set.h"

#include <string>

#include "kernels/ops.h"
#include "runtime/base/status.h"

namespace perdure {

absl::Status ResolveIsa(RunConfig& config, const RunConfig* frozen) {
  const std::string here = CpuIsa();
  std::string& isa = config.numerics.isa;
  if (isa == "auto") isa = frozen != nullptr ? frozen->numerics.isa : here;
  if (isa != here)
    return FailedPrecondition(
        "numerics.isa is {} but this machine's matmul library uses {}: the bits would differ. Run "
        "on the same kind of "
        "CPU, or start the run anew with ONEDNN_MAX_CPU_ISA set to what all machines have",
        isa, here);
  return absl::OkStatus();
}

}  // namespace perdure
