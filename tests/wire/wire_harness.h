// Nodes of a job for tests: a wire each, and what happened to it. And a socket that speaks to one
// without being one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/wire/event_loop.h"
#include "runtime/wire/wire.h"
#include "tests/wire/channel_pair.h"

namespace perdure {

struct NodeParts {
  uint32_t node = 0;
  uint64_t incarnation = 0;  // 0: 1000 + node.
  KeyParts key;
  std::string_view run_id = kTestRun;
  uint64_t job = 4711;
  bool listens = true;
  std::function<void(WireOptions*)> change;  // Whatever else.
};

// For `change`: an attempt that goes wrong is not repeated, and on_close follows at once.
void TryOnce(WireOptions* options);

// An address of the loopback interface whose ports no other process takes.
std::string OwnLoopback();

// A wire and its story. The loop is shared by the nodes of one test. Its times are so long that no
// slow machine exceeds them; a test of one of them makes it short by `change`.
class WireNode {
 public:
  WireNode(EventLoop* loop, const NodeParts& parts);

  Wire& wire() { return *wire_; }
  void Destroy() { wire_.reset(); }

  struct Opened {
    ConnectionId id = 0;
    WirePeer peer;
    bool incoming = false;
  };
  std::vector<Opened> opened;
  std::vector<std::pair<ConnectionId, std::string>> frames;
  std::map<ConnectionId, absl::Status> closed;
  std::function<void(ConnectionId, std::string_view)> on_frame;  // Instead of `frames`.
  std::function<void(ConnectionId)> on_open;
  // Connects to a node that listens in this process.
  ConnectionId ConnectTo(WireNode& other, uint32_t node, absl::Duration within = absl::Seconds(20));

 private:
  std::unique_ptr<Wire> wire_;
};

// Rounds of the loop until `done`; false after a time that is long even under sanitizers.
bool RunUntil(EventLoop& loop, const std::function<bool()>& done,
              absl::Duration within = absl::Seconds(60));
// Rounds of the loop in this thread until `body`, in another one, has returned: for what blocks.
void During(EventLoop& loop, const std::function<void()>& body);
// Rounds for so long, whatever happens.
void RunFor(EventLoop& loop, absl::Duration time);

// A blocking TCP socket that says what it is told to.
class RawPeer {
 public:
  explicit RawPeer(const WireAddress& to);  // Connected, or open() is false.
  explicit RawPeer(UniqueFd fd);

  bool open() const { return fd_.open(); }
  int fd() const { return fd_.get(); }
  bool SendBytes(std::span<const uint8_t> bytes);
  // So many bytes, or fewer at the end of the stream (or after a minute).
  std::vector<uint8_t> Read(size_t bytes);
  // Whether the other side has closed or reset it; waits for at most `within`.
  bool Closed(absl::Duration within = absl::Seconds(60));
  void Reset();  // Closes with RST.
  void Close() { fd_.Close(); }
  uint16_t port() const;

 private:
  UniqueFd fd_;
};

// Listens, blocking.
class RawListener {
 public:
  explicit RawListener(const std::string& ip = "127.0.0.1");
  const WireAddress& address() const { return address_; }
  int fd() const { return fd_.get(); }
  RawPeer Accept() const;

 private:
  UniqueFd fd_;
  WireAddress address_;
};

// An agent by hand, over a RawPeer: a handshake done right or wrong, frames as bytes.
class RawAgent {
 public:
  struct Parts {
    KeyParts key;
    HandshakeTerms terms;  // What it believes.
    AgentIdentity self{.node = 90, .incarnation = 7};
    uint64_t wanted = 0;
  };
  // Says hello. `secret`: of its ephemeral key.
  RawAgent(const WireAddress& to, Parts parts);

  RawPeer& peer() { return peer_; }
  const HelloBytes& hello() const { return handshake_.hello(); }
  // Reads the answer; false: there is none, or a wrong one.
  bool TakeAnswer();
  bool Confirm();
  // All of it.
  bool Open() { return TakeAnswer() && Confirm(); }
  SecureChannel& channel() { return *channel_; }
  bool SendText(std::string_view text) { return peer_.SendBytes(SealText(*channel_, text)); }
  std::optional<std::string> ReadText();

 private:
  JobKey key_;
  RawPeer peer_;
  InitiatorHandshake handshake_;
  std::optional<SecureChannel> channel_;
};

HandshakeTerms TermsOf(const WireAddress& address, uint32_t node);

// Resident memory of this process, in bytes.
size_t ResidentBytes();
// Memory is then the sanitizer's: nothing to compare.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kSanitized =
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool kSanitized = false;
#endif

// Descriptors that this process may open, after asking for as many as it may have.
size_t DescriptorsMax();

}  // namespace perdure
