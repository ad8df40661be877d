// The model of train_bench.py and data for it, for benchmarks that train by rank threads.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/train/run_config.h"

namespace perdure {

// 26 M parameters, context 512, 8 samples a step, leaves of one micro-batch of 2.
RunConfig BenchConfig(const char* dtype);
// What its mixture names, into `directory`.
void WriteBenchData(const std::string& directory);

// Argument `i` of a bench as a number of at least `least`, `otherwise` where there are fewer; ends
// the program with exit code 2, naming it, if it is none.
int64_t NumberArgument(int argc, char** argv, int i, int64_t otherwise, int64_t least);

}  // namespace perdure
