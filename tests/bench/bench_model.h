// The model of train_bench.py and data for it, for benchmarks that train by rank threads.
#pragma once

#include <string>

#include "runtime/train/run_config.h"

namespace perdure {

// 26 M parameters, context 512, 8 samples a step, leaves of one micro-batch of 2.
RunConfig BenchConfig(const char* dtype);
// What its mixture names, into `directory`.
void WriteBenchData(const std::string& directory);

}  // namespace perdure
