// Files that ask a run for something, for people who may write there but neither signal its
// processes nor cancel its jobs: RUN/triggers/stop, RUN/triggers/save. That a file is there is all
// that counts.
#pragma once

#include <string>

namespace perdure {

struct Triggers {
  bool stop = false;  // The job, after its step, with a checkpoint; and its chain.
  bool save = false;  // A checkpoint now.
};

// What is asked for, once: the files are removed. Those that cannot be are passed over, or they
// would ask again and again. Reads a shared file system: may take long.
Triggers TakeTriggers(const std::string& run_directory);

}  // namespace perdure
