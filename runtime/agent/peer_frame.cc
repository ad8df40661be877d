#include "runtime/agent/peer_frame.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/control/message_codec.h"

namespace perdure {
namespace {

constexpr char kMessage = 0, kIntroduction = 1, kDirectory = 2, kWhere = 3, kFetch = 4, kPiece = 5,
               kRefused = 6;
constexpr size_t kAddressBytes = 16 + 2;
constexpr size_t kEntryBytes = 4 + kAddressBytes;
constexpr size_t kNodeBytes = 4;
constexpr size_t kFetchBytes = 8 + 8 + 8 + 4 + 8 + 4;
constexpr size_t kPieceHeadBytes = 8 + 8;
constexpr size_t kRefusedBytes = 8 + 1;

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
  void operator()(const Where& where) const {
    bytes.push_back(kWhere);
    for (const NodeId node : where.nodes) PutNumber(node, 4, bytes);
  }
  void operator()(const Fetch& fetch) const {
    bytes.push_back(kFetch);
    PutNumber(fetch.number, 8, bytes);
    PutNumber(fetch.generation, 8, bytes);
    PutNumber(static_cast<uint64_t>(fetch.step), 8, bytes);
    PutNumber(static_cast<uint32_t>(fetch.rank), 4, bytes);
    PutNumber(fetch.offset, 8, bytes);
    PutNumber(fetch.bytes, 4, bytes);
  }
  void operator()(const SnapshotPiece& piece) const {
    bytes.reserve(1 + kPieceHeadBytes + piece.bytes.size());
    bytes.push_back(kPiece);
    PutNumber(piece.number, 8, bytes);
    PutNumber(piece.file_bytes, 8, bytes);
    bytes += piece.bytes;
  }
  void operator()(const Refused& refused) const {
    bytes.push_back(kRefused);
    PutNumber(refused.number, 8, bytes);
    bytes.push_back(static_cast<char>(refused.why));
  }
};

absl::StatusOr<PeerFrame> TakeFetch(std::string_view bytes) {
  if (bytes.size() != kFetchBytes) return DataLoss("a fetch of {} bytes", bytes.size());
  Fetch fetch;
  fetch.number = TakeNumber(bytes, 8);
  fetch.generation = TakeNumber(bytes, 8);
  fetch.step = static_cast<StepIndex>(TakeNumber(bytes, 8));
  fetch.rank = static_cast<int32_t>(TakeNumber(bytes, 4));
  fetch.offset = TakeNumber(bytes, 8);
  fetch.bytes = static_cast<uint32_t>(TakeNumber(bytes, 4));
  if (fetch.step < 0 || fetch.rank < 0 || fetch.offset > kFetchOffsetMax || fetch.bytes == 0 ||
      fetch.bytes > kPieceBytesMax)
    return DataLoss("a fetch of {} bytes at {} of rank {} at step {}", fetch.bytes, fetch.offset,
                    fetch.rank, fetch.step);
  return PeerFrame(fetch);
}

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
    case kWhere: {
      if (bytes.size() % kNodeBytes != 0 || bytes.size() > kNodeBytes * kWhereNodesMax)
        return DataLoss("a question of {} bytes", bytes.size());
      Where where;
      while (!bytes.empty()) where.nodes.push_back(static_cast<NodeId>(TakeNumber(bytes, 4)));
      return PeerFrame(std::move(where));
    }
    case kFetch:
      return TakeFetch(bytes);
    case kPiece: {
      if (bytes.size() <= kPieceHeadBytes || bytes.size() > kPieceHeadBytes + kPieceBytesMax)
        return DataLoss("a piece of {} bytes", bytes.size());
      SnapshotPiece piece;
      piece.number = TakeNumber(bytes, 8);
      piece.file_bytes = TakeNumber(bytes, 8);
      if (piece.file_bytes > kFetchOffsetMax)
        return DataLoss("a piece of a file of {} bytes", piece.file_bytes);
      piece.bytes = bytes;
      return PeerFrame(std::move(piece));
    }
    case kRefused: {
      if (bytes.size() != kRefusedBytes) return DataLoss("a refusal of {} bytes", bytes.size());
      const uint64_t number = TakeNumber(bytes, 8);
      const auto why = static_cast<uint8_t>(bytes.front());
      if (why > static_cast<uint8_t>(Refused::Why::kBusy))
        return DataLoss("a refusal for reason {}", why);
      return PeerFrame(Refused{.number = number, .why = static_cast<Refused::Why>(why)});
    }
    default:
      return DataLoss("a frame of kind {}", static_cast<uint8_t>(kind));
  }
}

}  // namespace perdure
