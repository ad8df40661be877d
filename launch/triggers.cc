#include "launch/triggers.h"

#include <unistd.h>

namespace perdure {

Triggers TakeTriggers(const std::string& run_directory) {
  const auto take = [&](const char* name) {
    return ::unlink((run_directory + "/triggers/" + name).c_str()) == 0;
  };
  return {.stop = take("stop"), .save = take("save")};
}

}  // namespace perdure
