#include "runtime/comm/make_collectives.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/comm/nccl_group.h"
#include "runtime/comm/staged_group.h"

namespace perdure {
namespace {

// Whether every member can use NCCL on a GPU that no other member uses. All come to the same
// answer, because all look at the same table.
absl::StatusOr<bool> EveryoneHasAGpu(Transport* transport, const std::vector<int>& members,
                                     uint32_t channel, Ops* ops) {
  using Identity = std::array<char, 128>;
  Group group(transport, members, channel);
  const std::string name = GpuIdentity(ops);
  Identity own{};
  std::copy_n(name.begin(), std::min(name.size(), own.size()), own.begin());
  std::vector<Identity> all(members.size());
  RETURN_IF_ERROR(group.AllGather(own.data(), sizeof own, all.data()));
  const std::set<Identity> different(all.begin(), all.end());
  return different.size() == all.size() && !different.contains(Identity{});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> MakeCollectives(Transport* transport,
                                                             std::vector<int> members,
                                                             uint32_t channel, Ops* ops,
                                                             const std::string& device_transport,
                                                             StartOrder start_order) {
  if (device_transport != "auto" && device_transport != "nccl" && device_transport != "staged")
    return InvalidArgument("unknown device transport '{}'; known: auto, nccl, staged",
                           device_transport);
  if (ops->DeviceIsHost()) return std::make_unique<Group>(transport, std::move(members), channel);
  bool nccl = device_transport == "nccl";
  if (device_transport == "auto") {
    ASSIGN_OR_RETURN(nccl, EveryoneHasAGpu(transport, members, channel, ops));
  }
  if (nccl) return NewNcclGroup(transport, std::move(members), channel, ops, start_order);
  return std::make_unique<StagedGroup>(transport, std::move(members), channel, ops);
}

}  // namespace perdure
