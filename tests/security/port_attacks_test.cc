// Ports that somebody else has taken, or tries to.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "tests/security/security_test.h"

namespace perdure {
namespace {

using testing::HasSubstr;

class PortAttack : public SecurityTest {};

TEST_F(PortAttack, AConfiguredPortIsTaken) {
  Attacker attacker([](Talk& talk) {
    const RawListener listener;
    talk.Tell(listener.address().port);
    (void)talk.Hear();
    return "";
  });
  const auto port = static_cast<uint16_t>(attacker.Hear());
  job().StartNode(kLateNode, port);
  EXPECT_EQ(WEXITSTATUS(job().WaitFor(kLateNode)), 1);
  EXPECT_THAT(job().Log(kLateNode),
              HasSubstr(fmt::format("bind 127.0.0.1:{}: Address already in use", port)));
  EXPECT_EQ(job().at(kLateNode).port, 0u);  // No other one in its place.
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
}

// Listens at `ip`; closed, with errno, when that cannot be.
UniqueFd Take(const std::string& ip, uint16_t port, bool reuse_address, bool reuse_port) {
  sockaddr_in6 v6{};
  sockaddr_in v4{};
  const bool six = ip.find(':') != std::string::npos;
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(port);
  const WireAddress address = *ParseWireAddress(ip, port);
  std::memcpy(&v6.sin6_addr, address.ip.data(), 16);
  std::memcpy(&v4.sin_addr, address.ip.data() + 12, 4);
  UniqueFd fd(::socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
  const int zero = 0, one = 1;
  if (six) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  if (reuse_address) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (reuse_port) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  const sockaddr* where =
      six ? reinterpret_cast<const sockaddr*>(&v6) : reinterpret_cast<const sockaddr*>(&v4);
  const socklen_t bytes = six ? sizeof v6 : sizeof v4;
  if (fd.open() && ::bind(fd.get(), where, bytes) == 0 && ::listen(fd.get(), 5) == 0) return fd;
  const int error = errno;
  fd.Close();
  errno = error;
  return fd;
}

// Whether somebody could listen there, too.
std::string Steal(const std::string& ip, uint16_t port, bool reuse_address, bool reuse_port) {
  if (Take(ip, port, reuse_address, reuse_port).open())
    return fmt::format("{}:{} could be had as well", ip, port);
  // The last: there is no IPv6 here.
  return errno == EADDRINUSE || errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL
             ? ""
             : fmt::format("{}: {}", ip, std::strerror(errno));
}

TEST_F(PortAttack, ALivePortIsStolen) {
  EXPECT_EQ(Attack([port = LeadAddress().port] {
              for (const char* ip : {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"})
                for (int options = 0; options < 4; ++options)
                  if (std::string what = Steal(ip, port, options & 1, options & 2); !what.empty())
                    return what;
              return std::string();
            }),
            "");
}

TEST_F(PortAttack, TheSamePortOfOtherAddresses) {
  const uint16_t port = LeadAddress().port;
  Attacker attacker([port](Talk& talk) -> std::string {
    const auto other = ListenAt(*ParseWireAddress("127.0.0.2", port));
    if (!other.ok()) return Message(other.status());
    talk.Tell(1);
    (void)talk.Hear();
    pollfd wait{.fd = other->fd.get(), .events = POLLIN, .revents = 0};
    return ::poll(&wait, 1, 0) > 0 ? "somebody came" : "";
  });
  EXPECT_EQ(attacker.Hear(), 1u);
  const uint64_t attempts = job().at(job().Member()).attempts;
  job().Redirect(job().Member(), port, 0);  // It has to connect again.
  EXPECT_TRUE(Job::Until([&] { return job().at(job().Member()).attempts > attempts; }));
  EXPECT_TRUE(LateNodeJoins());
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
}

// What an impostor does with the hellos that he gets.
Bytes ImpostorsAnswer(int number, const Bytes& hello) {
  if (number % 3 == 0) return {};
  if (number % 3 == 1) return RandomBytes(kAnswerBytes);
  return {hello.begin() + 8, hello.begin() + 80};
}

std::string Impersonate(Talk& talk) {
  const RawListener listener;
  talk.Tell(listener.address().port);
  int visitors = 0;
  while (!talk.Pending(absl::Milliseconds(5))) {
    RawPeer visitor(AcceptFrom(listener.fd()).fd);
    if (!visitor.open()) continue;
    const Bytes hello = visitor.Read(kHelloBytes);
    if (hello.size() != kHelloBytes) continue;
    (void)visitor.SendBytes(ImpostorsAnswer(visitors++, hello));
    ::shutdown(visitor.fd(), SHUT_WR);
    if (!visitor.Read(1).empty()) return "he was believed";
  }
  return visitors > 2 ? "" : fmt::format("{} came to him", visitors);
}

// The coordinator dies, and somebody else listens where it listened. (The kernel keeps the port
// closed for a minute, because connections of it ended here; so the network leads to him instead.)
TEST_F(PortAttack, ADeadCoordinatorsPort) {
  ASSERT_TRUE(LateNodeJoins());  // It will take the dead node's place.
  const uint32_t dead = job().Lead();
  const uint16_t port = LeadAddress().port;
  const uint64_t generation = lead().generation;
  Attacker attacker(Impersonate);
  const auto his = static_cast<uint16_t>(attacker.Hear());
  for (const auto& [node, _] : job().pids())
    if (node != dead) {
      job().at(node).redirect_to = his;
      job().at(node).redirect_from = port;
    }
  job().KillNode(dead);
  EXPECT_TRUE(Job::Until([&] {
    for (const auto& [node, _] : job().pids())
      if (job().at(node).generation <= generation || job().at(node).step < 5) return false;
    return true;
  }));
  EXPECT_GT(job().Refused(Refusal::kAnswerNotAuthentic), 0u);
  // The dead node comes back, elsewhere.
  job().StartNode(dead);
  EXPECT_TRUE(Job::Until([&] { return job().at(dead).frames_received >= 2; }));
  attacker.Tell(0);
  EXPECT_EQ(attacker.Wait(), "");
  EndJob();
}

// Everybody knows where to look for a name that is not a path.
TEST_F(PortAttack, AbstractNamesAreNotUsed) {
  for (uint32_t node = 0; node < kLateNode; ++node) {
    EXPECT_EQ(job().at(node).unix_sockets, 0u);
    EXPECT_EQ(job().at(node).inherited, 0u);
  }
}

}  // namespace
}  // namespace perdure
