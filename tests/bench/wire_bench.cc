// What the wire costs between two processes of one machine: handshakes, frames against plain TCP,
// and one listener with thousands of connections. One line per number; the fastest of several
// rounds, the machine being shared.
//
//   wire_bench [connections]     4000
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>

#include "tests/wire/wire_harness.h"

namespace perdure {
namespace {

constexpr int kRounds = 5;

double SecondsOf(const std::function<void()>& what) {
  const absl::Time begin = MonotonicNow();
  what();
  return absl::ToDoubleSeconds(MonotonicNow() - begin);
}

void Must(bool holds, const char* what) {
  if (holds) return;
  fmt::print("FAILED: {}\n", what);
  std::_Exit(1);
}

// ---- The other process --------------------------------------------------------------------------

// Answers by the first byte of a frame: d nothing, p itself, r resident memory, a says q to all and
// tells the seconds until all have answered.
void Serve(int tell) {
  const std::unique_ptr<EventLoop> loop = *EventLoop::New();
  WireNode node(loop.get(), {.node = 1});
  ConnectionId asker = 0;
  size_t answered = 0;
  absl::Time begin;
  const auto reply = [&](ConnectionId id, std::string_view text) {
    Must(node.wire().Send(id, text).ok(), "reply");
  };
  node.on_frame = [&](ConnectionId id, std::string_view bytes) {
    if (bytes[0] == 'p') reply(id, bytes);
    if (bytes[0] == 'r') reply(id, std::to_string(ResidentBytes()));
    if (bytes[0] == 'a') {
      asker = id;
      answered = 0;
      begin = MonotonicNow();
      for (const WireNode::Opened& each : node.opened) reply(each.id, std::string(1024, 'q'));
    }
    if (bytes[0] == 'q' && ++answered == node.opened.size())
      reply(asker, std::to_string(absl::ToDoubleSeconds(MonotonicNow() - begin)));
  };
  const WireAddress address = node.wire().address();
  Must(::write(tell, &address, sizeof address) == sizeof address, "tell the address");
  loop->Run();
}

// A process with Serve in it, and a node of ours.
class Pair {
 public:
  Pair() {
    std::array<int, 2> ends{};
    Must(::pipe(ends.data()) == 0, "pipe");
    child_ = ::fork();
    if (child_ == 0) {
      Serve(ends[1]);
      std::_Exit(0);
    }
    Must(::read(ends[0], &address_, sizeof address_) == sizeof address_, "hear the address");
    ::close(ends[0]);
    ::close(ends[1]);
    loop_ = *EventLoop::New();
    node_.emplace(loop_.get(), NodeParts{.node = 2, .listens = false});
    node_->on_frame = [this](ConnectionId id, std::string_view bytes) {
      if (bytes[0] == 'q')
        Must(node_->wire().Send(id, bytes).ok(), "answer");
      else
        reply_ = bytes;
    };
  }
  ~Pair() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }

  // So many more connections, at most `together` at once. The last one's id.
  ConnectionId Connect(size_t count, size_t together) {
    const size_t until = node_->opened.size() + count;
    size_t begun = node_->opened.size();
    const bool done = RunUntil(*loop_, [&] {
      for (; begun < until && begun < node_->opened.size() + together; ++begun)
        node_->wire().Connect(address_, 1, 0, MonotonicNow() + absl::Minutes(1));
      return node_->opened.size() == until || !node_->closed.empty();
    });
    Must(done && node_->closed.empty(), "connect");
    return node_->opened.back().id;
  }
  std::string Ask(ConnectionId id, std::string_view bytes) {
    reply_.clear();
    Must(node_->wire().Send(id, bytes).ok(), "ask");
    Must(RunUntil(*loop_, [&] { return !reply_.empty(); }), "be answered");
    return reply_;
  }
  // Frames one way, and the answer to the last.
  void Stream(ConnectionId id, const std::string& frame, size_t count) {
    size_t sent = 0;
    Must(RunUntil(*loop_,
                  [&] {
                    while (sent < count && node_->wire().Send(id, frame).ok()) ++sent;
                    return sent == count;
                  }),
         "stream");
    absl::Status status;
    Must(RunUntil(*loop_,
                  [&] {
                    reply_.clear();
                    status = node_->wire().Send(id, "p");
                    return status.ok();
                  }),
         "end the stream");
    Must(RunUntil(*loop_, [&] { return !reply_.empty(); }), "hear of the stream's end");
  }
  void CloseAll() {
    for (const WireNode::Opened& each : node_->opened) node_->wire().Close(each.id);
    node_->opened.clear();
  }

 private:
  pid_t child_ = -1;
  WireAddress address_;
  std::unique_ptr<EventLoop> loop_;
  std::optional<WireNode> node_;
  std::string reply_;
};

// ---- Plain TCP ----------------------------------------------------------------------------------

bool ReadAll(int fd, char* bytes, size_t count) {
  while (count > 0) {
    const ssize_t got = ::read(fd, bytes, count);
    if (got <= 0) return false;
    bytes += got;
    count -= static_cast<size_t>(got);
  }
  return true;
}

bool WriteAll(int fd, const char* bytes, size_t count) {
  while (count > 0) {
    const ssize_t sent = ::send(fd, bytes, count, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes += sent;
    count -= static_cast<size_t>(sent);
  }
  return true;
}

// A blocking connection to another process, in which `other` has the other end.
void WithPlain(const std::function<void(int fd)>& other, const std::function<void(int fd)>& ours) {
  const RawListener listener;
  const pid_t child = ::fork();
  const auto blocking = [](int fd) {
    TuneConnection(fd, absl::Minutes(1));
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
  };
  if (child == 0) {
    const RawPeer peer = listener.Accept();
    other(blocking(peer.fd()));
    std::_Exit(0);
  }
  const RawPeer peer(listener.address());
  Must(WriteAll(peer.fd(), "x", 1), "wake");  // The listener waits for a first byte.
  ours(blocking(peer.fd()));
  ::waitpid(child, nullptr, 0);
}

// Seconds to send `total` bytes with so many a call; they are read in pieces of up to 256 KiB.
double PlainStream(size_t a_call, size_t total) {
  double seconds = 0;
  WithPlain(
      [&](int fd) {
        std::string bytes(EventLoop::kReadBytes, '\0');
        for (size_t got = 0; got < total + 1;) {
          const ssize_t more = ::read(fd, bytes.data(), bytes.size());
          if (more <= 0) std::_Exit(1);
          got += static_cast<size_t>(more);
        }
        (void)WriteAll(fd, "e", 1);
      },
      [&](int fd) {
        const std::string bytes(a_call, 'd');
        seconds = SecondsOf([&] {
          char end = 0;
          for (size_t sent = 0; sent < total; sent += a_call)
            Must(WriteAll(fd, bytes.data(), a_call), "send plainly");
          Must(ReadAll(fd, &end, 1), "plain end");
        });
      });
  return seconds;
}

double PlainRoundTrip(size_t bytes, int calls) {
  double seconds = 0;
  WithPlain(
      [&](int fd) {
        std::string text(bytes, '\0');
        if (!ReadAll(fd, text.data(), 1)) std::_Exit(1);
        while (ReadAll(fd, text.data(), bytes) && WriteAll(fd, text.data(), bytes)) {
        }
      },
      [&](int fd) {
        std::string text(bytes, 'p');
        seconds = SecondsOf([&] {
          for (int i = 0; i < calls; ++i)
            Must(WriteAll(fd, text.data(), bytes) && ReadAll(fd, text.data(), bytes), "ping");
        });
        ::shutdown(fd, SHUT_RDWR);
      });
  return seconds / calls;
}

// ---- Measurements -------------------------------------------------------------------------------

template <typename Call>
double Microseconds(const Call& call) {
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round)
    best = std::min(best, SecondsOf([&] {
                      for (int i = 0; i < 1000; ++i) call();
                    }));
  return best * 1e3;
}

void Computing() {
  const JobKey key = TestKey(), other = TestKey({.file_key = 1});
  const InitiatorHandshake stranger(other, TestTerms(), kTestInitiator, 0, SecretKey::Random());
  fmt::print("a handshake, both sides, without sockets: {:.0f} us\n",
             Microseconds([] { (void)MakeChannelPair(); }));
  fmt::print("a hello without the key, refused: {:.1f} us\n", Microseconds([&] {
               ResponderHandshake responder(key, TestTerms(), kTestResponder);
               Must(responder.TakeHello(stranger.hello()) == Refusal::kHelloNotAuthentic, "refuse");
             }));
}

void Handshakes() {
  Pair pair;
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    best = std::min(best, SecondsOf([&] { pair.Connect(2000, 64); }));
    pair.CloseAll();
  }
  fmt::print("connections opened, 64 at a time: {:.0f}/s\n", 2000 / best);
}

void Frames() {
  Pair pair;
  const ConnectionId id = pair.Connect(1, 1);
  fmt::print("{:>9} {:>12} {:>8} {:>9} {:>17} {:>15}\n", "frame, B", "frames/s", "MB/s", "plain",
             "ratio to a call a", "ratio to 256 KiB");
  fmt::print("{:>9} {:>12} {:>8} {:>9} {:>17} {:>15}\n", "", "", "", "MB/s", "frame", "calls");
  for (const size_t bytes : {size_t{64}, size_t{1024}, size_t{16384}, size_t{1} << 20}) {
    const size_t count = std::clamp<size_t>((size_t{512} << 20) / bytes, 512, 400000);
    const std::string frame(bytes, 'd');
    double wire = 1e30, plain = 1e30, best = 1e30;
    for (int round = 0; round < kRounds; ++round) {
      wire = std::min(wire, SecondsOf([&] { pair.Stream(id, frame, count); }));
      plain = std::min(plain, PlainStream(bytes, bytes * count));
      const size_t large = EventLoop::kReadBytes;
      best = std::min(best, PlainStream(large, bytes * count / large * large));
    }
    const double megabytes = static_cast<double>(bytes * count) / 1e6;
    fmt::print("{:>9} {:>12.0f} {:>8.0f} {:>9.0f} {:>17.2f} {:>15.2f}\n", bytes,
               static_cast<double>(count) / wire, megabytes / wire, megabytes / plain, plain / wire,
               best / wire);
  }
  const std::string kilobyte(1024, 'p');
  double wire = 1e30, plain = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    wire = std::min(wire, SecondsOf([&] {
                            for (int i = 0; i < 5000; ++i) pair.Ask(id, kilobyte);
                          }) / 5000);
    plain = std::min(plain, PlainRoundTrip(1024, 5000));
  }
  fmt::print("there and back, 1 KiB: {:.1f} us; plain {:.1f} us\n", wire * 1e6, plain * 1e6);
}

void Crowd(size_t connections) {
  Must(DescriptorsMax() > connections + 100, "more descriptors: ulimit -n");
  Pair pair;
  const ConnectionId first = pair.Connect(1, 1);
  const double before = std::stod(pair.Ask(first, "r"));
  ConnectionId last = 0;
  const double seconds = SecondsOf([&] { last = pair.Connect(connections - 1, connections); });
  // The listener has opened the last one when it answers on it; others may be a moment behind.
  (void)pair.Ask(last, "p");
  ::usleep(200000);
  const double after = std::stod(pair.Ask(first, "r"));
  fmt::print("{} connections at once: {:.2f} s; {:.0f} B of the listener's memory for each\n",
             connections, seconds, (after - before) / static_cast<double>(connections));
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round)
    best = std::min(best, std::stod(pair.Ask(first, "a")));
  fmt::print("1 KiB to each and 1 KiB back from each: {:.1f} ms\n", best * 1e3);
}

}  // namespace
}  // namespace perdure

int main(int argc, char** argv) {
  // First: what others would leave in the heap would hide what it takes.
  perdure::Crowd(argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 4000);
  perdure::Computing();
  perdure::Handshakes();
  perdure::Frames();
  return 0;
}
