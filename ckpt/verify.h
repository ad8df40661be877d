// Reads a part file back and compares it with what its writers said. VerifyCheckpoint is this for
// every part.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "ckpt/part_plan.h"

namespace perdure {

// Every byte: length, blocks, atoms; then, through HDF5, that its objects are where the report
// says. Past the page cache where the file system allows it. DataLoss names what is wrong first.
// The report may come from anywhere. `progress` is told of bytes of this part.
absl::Status VerifyPart(const std::string& directory, const PartReport& part,
                        const AtomTable& table, const PartStamp& stamp, const Progress& progress);

}  // namespace perdure
