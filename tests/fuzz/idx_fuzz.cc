// Megatron's .idx beside a .bin of 64 bytes.
#include <fcntl.h>

#include <array>
#include <cstdio>

#include "runtime/data/indexed_dataset.h"
#include "tests/fuzz/fuzz_input.h"

namespace perdure {
namespace {

// Of this process, in memory where there is such a place; removed when it ends.
class Prefix {
 public:
  Prefix() {
    char name[] = "/dev/shm/perdure-fuzz-XXXXXX";
    FuzzCheck(::mkdtemp(name) != nullptr);
    folder_ = name;
    Write(".bin", std::string(64, '\1'));
  }
  ~Prefix() {
    for (const char* ending : {".bin", ".idx"}) ::unlink((path() + ending).c_str());
    ::rmdir(folder_.c_str());
  }
  std::string path() const { return folder_ + "/data"; }
  void Write(const char* ending, std::string_view bytes) const {
    std::FILE* file = std::fopen((path() + ending).c_str(), "wb");
    FuzzCheck(file != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    std::fclose(file);
  }

 private:
  std::string folder_;
};

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  static const Prefix prefix;
  prefix.Write(".idx", FuzzText(data, size));
  const auto dataset = IndexedDataset::Open(prefix.path());
  if (!dataset.ok()) return 0;
  const int64_t tokens = (*dataset)->tokens();
  FuzzCheck(tokens >= 0 && tokens * (*dataset)->token_bytes() <= 64);
  std::array<int32_t, 64> out{};
  (*dataset)->Read(0, std::span(out).first(static_cast<size_t>(tokens)));
  for (int64_t s = 0; s < (*dataset)->sequences(); ++s)
    FuzzCheck((*dataset)->SequenceBegin(s) + (*dataset)->SequenceTokens(s) <= tokens);
  for (int64_t d = 0; d < (*dataset)->documents(); ++d) {
    const auto [first, last] = (*dataset)->Document(d);
    FuzzCheck(0 <= first && first <= last && last <= (*dataset)->sequences());
  }
  (void)(*dataset)->MaxToken();
  return 0;
}
