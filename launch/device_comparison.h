// Says which ranks' devices are slower than the others', once for each generation that this agent's
// coordinator has formed: from what all nodes have written (jobs/<job>/node-*.json).
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "runtime/agent/worker.h"
#include "runtime/control/coordinator.h"

namespace perdure {

class DeviceComparison {
 public:
  // `directory`: the job's. `worker` outlives it, and is drained no more when it is gone.
  DeviceComparison(Worker* worker, std::string directory,
                   std::function<void(const std::string& line)> say);

  void Formed(Generation generation);
  // Several times a second, until all nodes of that generation have written.
  void Look(const Coordinator& lead);

 private:
  Worker* const worker_;
  const std::string directory_;
  const std::function<void(const std::string& line)> say_;
  std::optional<Generation> formed_;
  absl::Time formed_at_;
  bool reading_ = false;
};

}  // namespace perdure
