// A network of its own for each node of a job on this machine, joined by a switch: so that a node
// can be cut off from all others and still reach the file system, as on a real machine. All of it
// goes when the object or its process does. Needs root, and `ip` and `nsenter`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace perdure {

class Network {
 public:
  // Unavailable: the machine does not let us.
  static absl::StatusOr<Network> Create(int nodes);
  ~Network();
  Network(Network&& other) noexcept { *this = std::move(other); }
  Network& operator=(Network&& other) noexcept {
    std::swap(nodes_, other.nodes_);
    std::swap(hub_, other.hub_);
    return *this;
  }

  // Calls `start` where a process that it starts is on that node.
  int On(int node, const std::function<int()>& start) const;
  std::string Address(int node) const;
  // Its cable.
  absl::Status Cut(int node) const { return Cable(node, "down"); }
  absl::Status Mend(int node) const { return Cable(node, "up"); }

 private:
  Network() = default;
  absl::Status Cable(int node, const char* state) const;

  std::vector<int> nodes_;  // Processes that hold the namespaces,
  int hub_ = 0;             // and that of the switch.
};

}  // namespace perdure
