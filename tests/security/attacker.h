// Somebody else on the same machine: a child process that has become a user of its own, without
// groups, capabilities or descriptors of ours, and what it says of how its attack went.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace perdure {

// Neither has an entry in passwd, nor do they share a group.
inline constexpr uid_t kJobUser = 54321, kAttackerUser = 54322;

// Whether this process may make processes of both: it is root, of a whole machine.
bool CanBecomeOthers();
// For good. False: not possible.
bool BecomeUser(uid_t user);

// How an attacker and the test speak while the attack is on: numbers, in order.
class Talk {
 public:
  explicit Talk(int socket) : socket_(socket) {}
  void Tell(uint64_t number);
  // Nothing: the other side has ended.
  std::optional<uint64_t> Hear();
  // Whether there is something to hear.
  bool Pending(absl::Duration within) const;
  int fd() const { return socket_; }

 private:
  const int socket_;
};

class Attacker {
 public:
  // It runs in the attacker's process, which has no Board. Says "" when all that it tried was
  // refused as it should be, else what was not.
  using Attack = std::function<std::string(Talk&)>;

  explicit Attacker(Attack attack, uid_t user = kAttackerUser);
  ~Attacker();  // Kills it if it goes on.
  Attacker(const Attacker&) = delete;
  Attacker& operator=(const Attacker&) = delete;

  void Tell(uint64_t number) { Talk(socket_.get()).Tell(number); }
  // 0: it has ended without another word.
  uint64_t Hear() { return Talk(socket_.get()).Hear().value_or(0); }
  bool Done() const;
  // What the attack says, or how its process ended.
  std::string Wait();
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  UniqueFd socket_, result_;
};

// One that needs no talk.
std::string Attack(const std::function<std::string()>& attack, uid_t user = kAttackerUser);

}  // namespace perdure
