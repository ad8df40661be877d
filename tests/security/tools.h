// What attackers use: hellos that are not an agent's, and a relay that sits in the network between
// two agents and may do what it likes to what they say.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "runtime/wire/secure_channel.h"
#include "tests/security/attacker.h"
#include "tests/wire/wire_harness.h"

namespace perdure {

using Bytes = std::vector<uint8_t>;

Bytes RandomBytes(size_t count);
Bytes HelloOf(const JobKey& key, const HandshakeTerms& terms, const AgentIdentity& self,
              uint64_t wanted = 0);

// "" when `peer` ends the connection without a word; else what it did.
std::string TurnedAway(RawPeer& peer, absl::Duration within = absl::Seconds(20));
// Connects, says `bytes` and waits for what comes of it.
std::string Say(const WireAddress& to, std::span<const uint8_t> bytes);
// A connection from that address of the loopback interface; closed when there is none.
UniqueFd ConnectFrom(const std::string& source, const WireAddress& to);

// "" when a system call was refused for want of permission.
std::string Denied(const std::string& what, int64_t result);
// The first that was not.
std::string FirstOf(std::initializer_list<std::string> denied);

class Relay {
 public:
  struct Message {
    int connection = 0;  // Through this relay, from 0.
    bool from_initiator = true;
    int index = 0;  // In its direction: hello (answer), confirmation (first frame), frames.
    Bytes bytes;
  };
  struct Verdict {
    Bytes onward;  // In place of the message.
    Bytes back{};  // To who sent it.
    enum class End { kGoOn, kClose, kReset } end = End::kGoOn;
    bool in_pieces = false;   // Onward, a byte at a time.
    bool more_comes = false;  // The next message is changed, too.
  };
  using Hand = std::function<Verdict(const Message&)>;

  Relay(const WireAddress& to, Hand hand) : to_(to), hand_(std::move(hand)) {}
  uint16_t port() const { return listener_.address().port; }
  // Until the test says something, or `done`.
  void Run(
      Talk& talk, const std::function<bool()>& done = [] { return false; });

 private:
  struct Way {
    Bytes bytes;  // Of a message that is not whole yet.
    int index = 0;
  };
  struct Connection {
    int number = 0;
    RawPeer initiator, responder;
    Way onward, back;
  };
  bool Move(Connection& connection, bool from_initiator);
  bool Pass(Connection& connection, const Message& message);

  const WireAddress to_;
  const Hand hand_;
  const RawListener listener_;
  std::list<Connection> connections_;
  int count_ = 0;
};

}  // namespace perdure
