#include "launch/device_comparison.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "launch/agent_record.h"
#include "launch/job_health.h"
#include "runtime/wire/event_loop.h"

namespace perdure {
namespace {

using Json = nlohmann::json;

// How long a generation's nodes may take to say what their devices reach.
constexpr absl::Duration kDevicesMax = absl::Seconds(30);

// What every rank's device reaches, as their nodes have written it; fewer: some have not yet.
std::vector<JobHealth::Member> ReadDevices(const std::string& directory,
                                           const std::vector<NodeId>& nodes) {
  std::vector<JobHealth::Member> members;
  for (const Json& node : AgentRecord::ReadNodes(directory, nodes))
    for (const Json& rank : node.value("ranks", Json::array()))
      for (const Json& device : node.value("devices", Json::array()))
        if (device.value("local_rank", -1) == rank.value("local_rank", -2))
          members.push_back({.rank = rank.value("rank", -1),
                             .node = node.value("node", -1),
                             .device = device.value("device", ""),
                             .rates = device.value("rates", Json::object())});
  return members;
}

}  // namespace

DeviceComparison::DeviceComparison(Worker* worker, std::string directory,
                                   std::function<void(const std::string& line)> say)
    : worker_(worker), directory_(std::move(directory)), say_(std::move(say)) {}

void DeviceComparison::Formed(Generation generation) {
  formed_ = generation;
  formed_at_ = MonotonicNow();
}

void DeviceComparison::Look(const Coordinator& lead) {
  if (!formed_.has_value() || reading_) return;
  if (lead.layout().generation != *formed_ || MonotonicNow() - formed_at_ > kDevicesMax) {
    formed_.reset();
    return;
  }
  reading_ = true;
  worker_->Post([this, nodes = lead.members(), generation = *formed_,
                 ranks = lead.layout().seats.size()]() -> Worker::Then {
    return [this, generation, ranks, members = ReadDevices(directory_, nodes)] {
      reading_ = false;
      if (members.size() < ranks || formed_ != generation) return;
      formed_.reset();
      for (const std::string& line : JobHealth::Compare(members)) say_(line);
    };
  });
}

}  // namespace perdure
