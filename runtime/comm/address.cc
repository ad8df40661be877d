#include "runtime/comm/address.h"

#include <cstring>
#include <limits>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr std::string_view kMagic = "PRDUADR1";

class Writer {
 public:
  void Integer(uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) out_ += static_cast<char>(value >> shift);
  }
  void Text(std::string_view text) {
    Integer(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void Raw(std::string_view bytes) { out_ += bytes; }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads what Writer wrote; once something is missing every further read yields nothing and ok() is
// false.
class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}

  std::string_view Raw(size_t bytes) {
    if (bytes > in_.size()) {
      ok_ = false;
      in_ = {};
      return {};
    }
    const std::string_view piece = in_.substr(0, bytes);
    in_.remove_prefix(bytes);
    return piece;
  }
  uint32_t Integer() {
    const std::string_view piece = Raw(4);
    uint32_t value = 0;
    for (size_t i = 0; i < piece.size(); ++i)
      value |= uint32_t{static_cast<uint8_t>(piece[i])} << (8 * i);
    return value;
  }
  std::string Text() { return std::string(Raw(Integer())); }
  bool ok() const { return ok_; }
  bool finished() const { return ok_ && in_.empty(); }

 private:
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace

std::string PackAddress(const RankAddress& address) {
  Writer writer;
  writer.Raw(kMagic);
  writer.Text(address.kind);
  writer.Text(address.network);
  writer.Integer(static_cast<uint32_t>(address.rank));
  writer.Text(address.watch.host);
  writer.Integer(static_cast<uint32_t>(address.watch.ips.size()));
  for (const std::string& ip : address.watch.ips) writer.Text(ip);
  writer.Integer(address.watch.port);
  writer.Raw(
      {reinterpret_cast<const char*>(address.watch.token.data()), address.watch.token.size()});
  writer.Text(address.fabric);
  return writer.Take();
}

absl::StatusOr<RankAddress> UnpackAddress(std::string_view packed) {
  Reader reader(packed);
  RankAddress address;
  const bool known = reader.Raw(kMagic.size()) == kMagic;
  address.kind = reader.Text();
  address.network = reader.Text();
  const uint32_t rank = reader.Integer();
  address.watch.host = reader.Text();
  const uint32_t ips = reader.Integer();
  for (uint32_t i = 0; i < ips && reader.ok(); ++i) address.watch.ips.push_back(reader.Text());
  const uint32_t port = reader.Integer();
  const std::string_view token = reader.Raw(address.watch.token.size());
  address.fabric = reader.Text();
  if (!known || !reader.finished() || rank > std::numeric_limits<int32_t>::max() || port == 0 ||
      port > std::numeric_limits<uint16_t>::max())
    return InvalidArgument(
        "{} bytes are not a rank's address; pass on what LocalAddress() gave, unchanged",
        packed.size());
  address.rank = static_cast<int>(rank);
  address.watch.port = static_cast<uint16_t>(port);
  std::memcpy(address.watch.token.data(), token.data(), token.size());
  return address;
}

}  // namespace perdure
