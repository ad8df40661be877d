// The socket calls of the wire, with owned descriptors and statuses; all non-blocking and
// close-on-exec. Addresses are numeric: nothing here asks a name server.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"
#include "runtime/wire/wire_address.h"

namespace perdure {

// InvalidArgument: not a numeric IPv4 or IPv6 address.
absl::StatusOr<WireAddress> ParseWireAddress(const std::string& ip, uint16_t port);
// "10.0.0.5:4711", "[fd00::5]:4711": how records and people see an address.
std::string WireAddressText(const WireAddress& address);
// "10.0.0.5", "fd00::5": without the port.
std::string HostText(const WireAddress& address);
// InvalidArgument: not one of those forms.
absl::StatusOr<WireAddress> ParseWireAddressText(std::string_view text);

// Of "ib0" or "10.0.0.5", with port 0: where to listen. An interface's first IPv4 address, else its
// first IPv6 address that is not link-local. InvalidArgument: no such interface, or "any address":
// what is not asked for is not opened.
absl::StatusOr<WireAddress> InterfaceAddress(const std::string& interface);

struct WireListener {
  UniqueFd fd;
  WireAddress address;  // With the port that was given.
};
// As below, but nobody is listened to yet: the address is kept for whoever is to have it.
absl::StatusOr<WireListener> BindAt(const WireAddress& address);
// Port 0: one of the kernel's choice. Nobody else can bind the same address and port meanwhile.
// Connections are reported once their first bytes are there, where the kernel can do that.
absl::StatusOr<WireListener> ListenAt(const WireAddress& address);

struct AcceptedSocket {
  UniqueFd fd;    // Closed: nothing to accept, see `error`.
  int error = 0;  // EAGAIN: none waits. EMFILE and the like: no room.
  WireAddress from;
};
AcceptedSocket AcceptFrom(int listener);

// A connection under way. Unavailable: not even that.
absl::StatusOr<UniqueFd> BeginConnect(const WireAddress& to);
// Once writable: the errno with which the connection attempt ended, 0 for success.
int EndConnect(int fd);

// No waiting for more to send; `silence`: give up on a peer that does not acknowledge what was sent
// for so long.
void TuneConnection(int fd, absl::Duration silence);
// Closing tells the peer so at once and keeps nothing of the connection.
void ResetWhenClosed(int fd);

// Bytes that came; 0: none are there now; -1: the peer has closed, or `error`.
struct Received {
  ssize_t bytes = 0;
  int error = 0;
};
Received ReceiveSome(int fd, std::span<uint8_t> into);
// All of a few bytes at once, as the buffer of a fresh connection takes them.
bool SendWhole(int fd, std::span<const uint8_t> bytes);

}  // namespace perdure
