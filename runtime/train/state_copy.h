// Atoms' state between the device and the host. In host memory the parts stand one behind the
// other, each atom by atom, so that neighbours on the device are neighbours here and one copy takes
// them all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ckpt/checkpoint.h"
#include "kernels/ops.h"
#include "runtime/base/atoms.h"

namespace perdure {

class StateCopy {
 public:
  // `device`: atoms with pointers into device memory; a part that is null is left out, and so is
  // its place in `memory`. `memory`: BytesOf(device, table) of host memory, from Ops::AllocateHost;
  // it outlives this.
  StateCopy(std::span<const AtomState> device, const AtomTable& table, void* memory);
  static size_t BytesOf(std::span<const AtomState> atoms, const AtomTable& table);

  // The same atoms with pointers into `memory`.
  std::span<AtomState> host() { return host_; }
  std::span<const AtomState> host() const { return host_; }
  // Copies of all of it, enqueued.
  void Upload(Ops* ops) const;
  void Download(Ops* ops) const;
  void DownloadBehind(Ops* ops) const;

 private:
  struct Piece {
    float* device = nullptr;
    float* host = nullptr;
    size_t count = 0;
  };

  std::vector<AtomState> host_;
  std::vector<Piece> pieces_;
};

}  // namespace perdure
