#include "runtime/comm/make_collectives.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/comm/nccl_group.h"
#include "runtime/comm/staged_group.h"

namespace perdure {
namespace {

using Identity = std::array<char, 128>;  // Of a GPU, and of its machine; zeros: none.

// Of every member. What all decide by it is the same everywhere, whatever each was built with.
absl::StatusOr<std::vector<Identity>> GpusOf(Transport* transport, const std::vector<int>& members,
                                             uint32_t channel, Ops* ops) {
  Group group(transport, members, channel);
  const std::string name = GpuIdentity(ops);
  Identity own{};
  std::copy_n(name.begin(), std::min(name.size(), own.size()), own.begin());
  std::vector<Identity> all(members.size());
  RETURN_IF_ERROR(group.AllGather(own.data(), sizeof own, all.data()));
  return all;
}

// Why `members` on these GPUs do not use NCCL unless they are told to; empty: they do.
std::string WhyNotNccl(const std::vector<Identity>& gpus, const std::vector<int>& members) {
  for (size_t i = 0; i < gpus.size(); ++i) {
    if (gpus[i] == Identity{})
      return fmt::format("rank {} has no GPU, or no NCCL in its build", members[i]);
    const auto first =
        static_cast<size_t>(std::find(gpus.begin(), gpus.end(), gpus[i]) - gpus.begin());
    if (first == i) continue;
    const std::string name = gpus[i].data();
    return fmt::format("ranks {} and {} share GPU {}", members[first], members[i],
                       name.substr(name.find(' ') + 1));
  }
  return "";
}

// For tests where there is one GPU: NCCL has no mode for members that share one, it refuses them.
// It looks for them among those on one host, so each process claims to be a host of its own; then
// messages must take what connects hosts, here sockets, and each kernel must be small enough to
// leave room for the others'. The order of messages and the failures are real, the speed is not.
// NCCL reads these once, at its first call that needs one: before it, this has to be called. What
// the user has set stays.
void LetMembersShareAGpu(int rank) {
  const std::pair<const char*, std::string> settings[] = {
      {"NCCL_HOSTID", fmt::format("perdure-rank-{}", rank)},
      {"NCCL_SOCKET_IFNAME", "lo"},
      {"NCCL_IB_DISABLE", "1"},
      {"NCCL_P2P_DISABLE", "1"},
      {"NCCL_SHM_DISABLE", "1"},
      {"NCCL_NVLS_ENABLE", "0"},
      {"NCCL_MNNVL_ENABLE", "0"},
      {"NCCL_MAX_CTAS", "1"},
      {"NCCL_BUFFSIZE", "1048576"}};
  for (const auto& [name, value] : settings) ::setenv(name, value.c_str(), /*overwrite=*/0);
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
  if (device_transport == "staged")
    return std::make_unique<StagedGroup>(transport, std::move(members), channel, ops);
  ASSIGN_OR_RETURN(const std::vector<Identity> gpus, GpusOf(transport, members, channel, ops));
  std::string why = WhyNotNccl(gpus, members);
  if (device_transport == "auto" && !why.empty())
    return std::make_unique<StagedGroup>(transport, std::move(members), channel, ops,
                                         std::move(why));
  const bool share_one = gpus.size() > 1 && gpus[0] != Identity{} &&
                         std::set<Identity>(gpus.begin(), gpus.end()).size() == 1;
  if (share_one) LetMembersShareAGpu(transport->rank());
  return NewNcclGroup(transport, std::move(members), channel, ops, start_order);
}

}  // namespace perdure
