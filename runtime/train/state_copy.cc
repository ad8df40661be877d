#include "runtime/train/state_copy.h"

namespace perdure {
namespace {

size_t CountOf(const AtomState& state, const AtomTable& table) {
  return static_cast<size_t>(table.atoms()[static_cast<size_t>(state.atom)].count);
}

}  // namespace

size_t StateCopy::BytesOf(std::span<const AtomState> atoms, const AtomTable& table) {
  size_t bytes = 0;
  for (const AtomState& state : atoms) bytes += CountOf(state, table) * sizeof(float);
  return bytes * kStatePartCount;
}

StateCopy::StateCopy(std::span<const AtomState> device, const AtomTable& table, void* memory)
    : host_(device.begin(), device.end()) {
  auto* at = static_cast<float*>(memory);
  for (size_t part = 0; part < kStatePartCount; ++part)
    for (size_t i = 0; i < device.size(); ++i) {
      const size_t count = CountOf(device[i], table);
      float* from = device[i].parts[part];
      host_[i].parts[part] = at;
      // Host memory has no gaps but for parts left out: where the device has none, the copy grows.
      if (!pieces_.empty() && pieces_.back().device + pieces_.back().count == from &&
          pieces_.back().host + pieces_.back().count == at)
        pieces_.back().count += count;
      else if (from != nullptr)
        pieces_.push_back({from, at, count});
      at += count;
    }
}

void StateCopy::Upload(Ops* ops) const {
  for (const Piece& p : pieces_) ops->Upload(p.host, p.count * sizeof(float), p.device);
}

void StateCopy::Download(Ops* ops) const {
  for (const Piece& p : pieces_) ops->Download(p.device, p.count * sizeof(float), p.host);
}

void StateCopy::DownloadBehind(Ops* ops) const {
  for (const Piece& p : pieces_) ops->DownloadBehind(p.device, p.count * sizeof(float), p.host);
}

}  // namespace perdure
