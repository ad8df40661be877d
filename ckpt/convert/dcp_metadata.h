// The .metadata of a PyTorch distributed checkpoint (DCP): which tensors, cut into which chunks,
// standing where. Read from the pickle as inert values and checked field by field.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ckpt/convert/torch_file.h"

namespace perdure {

// A chunk, or a value that is no tensor: a file of torch.save inside another file.
struct DcpPlace {
  std::string file;  // A plain name in the checkpoint's directory.
  uint64_t offset = 0, bytes = 0;
};

struct DcpChunk {
  std::vector<int64_t> offsets, sizes;
  DcpPlace place;
};

struct DcpTensor {
  TorchType type = TorchType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<DcpChunk> chunks;
};

struct DcpMetadata {
  std::map<std::string, DcpTensor> tensors;
  std::map<std::string, DcpPlace> values;
};

// NotFound: no .metadata, so no checkpoint (it is written last). DataLoss names the entry.
absl::StatusOr<DcpMetadata> ReadDcpMetadata(const std::string& directory);

// The .metadata for these, protocol 4. `paths` gives, for each name, the keys that lead to it in a
// nested state dict.
std::string PickleDcpMetadata(const DcpMetadata& metadata,
                              const std::map<std::string, std::vector<std::string>>& paths);

}  // namespace perdure
