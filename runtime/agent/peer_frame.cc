#include "runtime/agent/peer_frame.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/message_codec.h"

namespace perdure {
namespace {

constexpr char kMessage = 0, kIntroduction = 1, kDirectory = 2;
constexpr size_t kAddressBytes = 16 + 2;
constexpr size_t kEntryBytes = 4 + kAddressBytes;

void PutNumber(uint64_t value, int bytes, std::string& to) {
  for (int i = 0; i < bytes; ++i) to.push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t TakeNumber(std::string_view& from, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i)
    value |= uint64_t{static_cast<uint8_t>(from[static_cast<size_t>(i)])} << (8 * i);
  from.remove_prefix(static_cast<size_t>(bytes));
  return value;
}

void PutAddress(const WireAddress& address, std::string& to) {
  to.append(address.ip.begin(), address.ip.end());
  PutNumber(address.port, 2, to);
}

WireAddress TakeAddress(std::string_view& from) {
  WireAddress address;
  std::copy_n(from.begin(), address.ip.size(), address.ip.begin());
  from.remove_prefix(address.ip.size());
  address.port = static_cast<uint16_t>(TakeNumber(from, 2));
  return address;
}

struct Encoder {
  std::string& bytes;
  void operator()(const ControlMessage& message) const {
    bytes.push_back(kMessage);
    EncodeMessage(message, bytes);
  }
  void operator()(const Introduction& introduction) const {
    bytes.push_back(kIntroduction);
    PutAddress(introduction.address, bytes);
  }
  void operator()(const Directory& directory) const {
    bytes.push_back(kDirectory);
    for (const Directory::Entry& entry : directory.entries) {
      PutNumber(entry.node, 4, bytes);
      PutAddress(entry.address, bytes);
    }
  }
};

}  // namespace

std::string EncodePeerFrame(const PeerFrame& frame) {
  std::string bytes;
  std::visit(Encoder{bytes}, frame);
  return bytes;
}

absl::StatusOr<PeerFrame> DecodePeerFrame(std::string_view bytes) {
  if (bytes.empty()) return DataLoss("an empty frame");
  const char kind = bytes.front();
  bytes.remove_prefix(1);
  switch (kind) {
    case kMessage: {
      ASSIGN_OR_RETURN(ControlMessage message, DecodeMessage(bytes));
      return PeerFrame(std::move(message));
    }
    case kIntroduction:
      if (bytes.size() != kAddressBytes)
        return DataLoss("an introduction of {} bytes", bytes.size());
      return PeerFrame(Introduction{TakeAddress(bytes)});
    case kDirectory: {
      if (bytes.size() % kEntryBytes != 0) return DataLoss("a directory of {} bytes", bytes.size());
      Directory directory;
      directory.entries.reserve(bytes.size() / kEntryBytes);
      while (!bytes.empty()) {
        const auto node = static_cast<NodeId>(TakeNumber(bytes, 4));
        directory.entries.push_back({.node = node, .address = TakeAddress(bytes)});
      }
      return PeerFrame(std::move(directory));
    }
    default:
      return DataLoss("a frame of kind {}", static_cast<uint8_t>(kind));
  }
}

}  // namespace perdure
