// Files of torch.save: the zip, and the tensors of a dict in it.
#include <algorithm>
#include <memory>
#include <vector>

#include "ckpt/convert/torch_file.h"
#include "tests/fuzz/fuzz_input.h"

namespace perdure {
namespace {

void ReadTensor(const TorchFile& file, const PickleView& value) {
  (void)file.Integer(value);
  const auto tensor = file.Tensor(value);
  if (!tensor.ok() || tensor->size() < 1) return;
  std::vector<float> floats(static_cast<size_t>(std::min<int64_t>(tensor->size(), 100)));
  (void)ReadTorchFloats(file.file(), *tensor, 0, floats);
  (void)ReadTorchFloats(file.file(), *tensor, tensor->size() - static_cast<int64_t>(floats.size()),
                        floats);
}

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const auto file = std::make_shared<const File>(FuzzFile(data, size), "fuzz");
  if (!file->is_open()) return 0;
  const auto zip = ZipFile::Open(*file, 0, size, "fuzz");
  if (zip.ok())
    for (const ZipRecord& record : zip->records()) {
      FuzzCheck(record.offset <= size && record.bytes <= size - record.offset);
      (void)VerifyZipRecord(*file, record, "fuzz");
    }
  const auto torch = TorchFile::Open(file, 0, size, "fuzz");
  if (!torch.ok()) return 0;
  ReadTensor(*torch, torch->root());
  const auto pairs = torch->root().Pairs();
  if (!pairs.ok()) return 0;
  for (const auto& [key, value] : *pairs) ReadTensor(*torch, value);
  return 0;
}
