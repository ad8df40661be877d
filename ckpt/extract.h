// The parameters of a checkpoint as one HDF5 file of whole tensors, for other tools.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "ckpt/checkpoint.h"
#include "ckpt/store_hdf5_tensors.h"
#include "ckpt/stream.h"

namespace perdure {

inline constexpr const char* kParametersFile = "params.h5";

// Makes the directory TARGET with params.h5: each tensor a dataset [rows, cols] under its name, in
// fp32 or rounded to bf16. Every atom is compared with its digest. Tensors are written by several
// threads; memory holds a band of rows each. What an interrupted call left in TARGET.partial is
// done anew.
absl::Status ExtractParameters(const std::string& source, const Manifest& manifest,
                               const std::string& target, TensorDType dtype,
                               const StreamOptions& options);

}  // namespace perdure
