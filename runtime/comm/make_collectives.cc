#include "runtime/comm/make_collectives.h"

#include "runtime/base/check.h"
#include "runtime/comm/group.h"

namespace perdure {

std::unique_ptr<Collectives> MakeCollectives(Transport* transport, std::vector<int> members,
                                             uint32_t channel, Ops* ops) {
  // A group of one is asked for no bytes of others, so it never touches the memory.
  PERDURE_CHECK(ops->DeviceIsHost() || members.size() == 1);
  return std::make_unique<Group>(transport, std::move(members), channel);
}

}  // namespace perdure
