#include "tests/bench/bench_model.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/strings/numbers.h"
#include "runtime/base/check.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/train/trainer_harness.h"

namespace perdure {

RunConfig BenchConfig(const char* dtype) {
  RunConfig config = TinyConfig(dtype);
  config.model = {.layers = 8,
                  .hidden = 512,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 64,
                  .ffn = 1536,
                  .vocab = 1024};
  config.phases.resize(1);
  config.phases[0].samples = 100000;
  config.phases[0].context = 512;
  config.phases[0].batch = {.initial = 8, .increment = 0, .ramp_samples = 0, .final = 8};
  config.phases[0].mixture = {{"bench", 1.0}};
  config.numerics = {.dtype = dtype, .tensor_shards = 4, .micro_batch = 2, .leaf = 1};
  config.numerics.backend = "cpu";
  return config;
}

void WriteBenchData(const std::string& directory) {
  auto writer = IndexedDatasetWriter::Create(directory + "/bench", 1024);
  PERDURE_CHECK(writer.ok());
  std::vector<int32_t> tokens(100000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 1021);
  for (int document = 0; document < 20; ++document)
    PERDURE_CHECK((*writer)->AddDocument(tokens).ok());
  PERDURE_CHECK((*writer)->Finish().ok());
}

int64_t NumberArgument(int argc, char** argv, int i, int64_t otherwise, int64_t least) {
  if (i >= argc) return otherwise;
  int64_t number = 0;
  if (!absl::SimpleAtoi(argv[i], &number) || number < least) {
    std::fprintf(stderr, "%s: argument %d must be a number of at least %d, not \"%s\"\n", argv[0],
                 i, static_cast<int>(least), argv[i]);
    std::exit(2);
  }
  return number;
}

}  // namespace perdure
