// What strangers and holders of the key may say to an agent. The first byte chooses: bytes as a
// hello, an answer, a frame; any content of a hello and of an answer that are sealed rightly; and
// frames on open connections of a real wire, cut anywhere, some of them wrong.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <vector>

#include "tests/fuzz/fuzz_input.h"
#include "tests/wire/channel_pair.h"
#include "tests/wire/wire_harness.h"

namespace perdure {
namespace {

// Numbers from the input; zeros behind its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : bytes_(data, size) {}
  bool empty() const { return bytes_.empty(); }
  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  size_t Number() {
    const size_t low = Byte();
    return low | size_t{Byte()} << 8;
  }
  template <size_t N>
  std::array<uint8_t, N> Bytes() {
    std::array<uint8_t, N> bytes{};
    for (uint8_t& byte : bytes) byte = Byte();
    return bytes;
  }

 private:
  std::span<const uint8_t> bytes_;
};

const JobKey& Key() {
  static const JobKey key = TestKey();
  return key;
}

uint64_t NumberAt(std::span<const uint8_t> bytes, size_t offset, size_t count) {
  uint64_t number = 0;
  for (size_t i = 0; i < count; ++i) number |= uint64_t{bytes[offset + i]} << (8 * i);
  return number;
}

// ---- The handshake ------------------------------------------------------------------------------

Refusal TakeHello(const HelloBytes& hello) {
  return ResponderHandshake(Key(), TestTerms(), kTestResponder, 16).TakeHello(hello);
}

InitiatorHandshake Initiator(uint64_t wanted) {
  return InitiatorHandshake(Key(), TestTerms(), kTestInitiator, wanted, CountingSecret(1));
}

void HelloFromAnybody(Input input, std::span<const uint8_t> beginning) {
  (void)ResponderHandshake::Look(beginning);
  const HelloBytes hello = input.Bytes<kHelloBytes>();
  static const HelloBytes right = Initiator(99).hello();
  const Refusal refusal = TakeHello(hello);
  // Only who holds the key can make one, and this is the only one that was ever made.
  FuzzCheck((refusal == Refusal::kNone) == (hello == right));
}

void AnswerFromAnybody(Input input) {
  const AnswerBytes answer = input.Bytes<kAnswerBytes>();
  InitiatorHandshake initiator = Initiator(99);
  static const AnswerBytes right = [&] {
    std::array<uint8_t, 24> plain{};
    plain[0] = 7;
    plain[8] = 99;
    return AnswerOf(Key(), initiator.hello(), plain);
  }();
  const Handshaken done = initiator.TakeAnswer(answer);
  FuzzCheck((done.refusal == Refusal::kNone) == (answer == right));
  FuzzCheck(done.channel.has_value() == (answer == right));
}

void HelloOfAHolder(Input input) {
  const auto plain = input.Bytes<40>();
  const PublicKey ephemeral = input.Bytes<32>();
  const uint64_t node = NumberAt(plain, 0, 4), wanted = NumberAt(plain, 16, 8);
  const bool good = NumberAt(plain, 4, 4) == 0 && NumberAt(plain, 24, 8) == 0 &&
                    NumberAt(plain, 32, 8) == 0 && (node < 16 || node == kGuestNode) &&
                    node != kTestResponder.node && NumberAt(plain, 8, 8) != 0 &&
                    (wanted == 0 || wanted == kTestResponder.incarnation);
  ResponderHandshake responder(Key(), TestTerms(), kTestResponder, 16);
  FuzzCheck((responder.TakeHello(HelloOf(Key(), ephemeral, plain)) == Refusal::kNone) == good);
  if (!good) return;
  AnswerBytes answer{};
  const Handshaken done = responder.Answer(CountingSecret(201), &answer);
  FuzzCheck(done.channel.has_value() == (done.refusal == Refusal::kNone));
  FuzzCheck(done.refusal == Refusal::kNone || answer == AnswerBytes{});
}

void AnswerOfAHolder(Input input) {
  const uint64_t wanted = input.Byte();
  const auto plain = input.Bytes<24>();
  const uint64_t incarnation = NumberAt(plain, 8, 8);
  const bool good = NumberAt(plain, 0, 4) == 7 && NumberAt(plain, 4, 4) == 0 &&
                    NumberAt(plain, 16, 8) == 0 && incarnation != 0 &&
                    (wanted == 0 || wanted == incarnation);
  InitiatorHandshake initiator = Initiator(wanted);
  const Handshaken done = initiator.TakeAnswer(AnswerOf(Key(), initiator.hello(), plain));
  FuzzCheck((done.refusal == Refusal::kNone) == good && done.channel.has_value() == good);
}

// ---- Frames -------------------------------------------------------------------------------------

void FrameFromAnybody(std::span<const uint8_t> bytes) {
  static const std::vector<uint8_t> right = [] {
    SecureChannel sender(CountingSecret(1), CountingSecret(2));
    return SealText(sender, "a frame");
  }();
  if (bytes.size() <= kFrameOverheadBytes) return;
  std::vector<uint8_t> frame(bytes.begin(), bytes.end());
  SecureChannel receiver(CountingSecret(2), CountingSecret(1));
  const SecureChannel::Opened opened = receiver.Open(frame);
  FuzzCheck((opened.refusal == Refusal::kNone) == std::ranges::equal(bytes, right));
}

constexpr size_t kIncomingBytes = size_t{24} << 10;

// A wire with little memory for frames that come in part.
struct Listener {
  std::unique_ptr<EventLoop> loop = *EventLoop::New();
  WireNode node{loop.get(), {.node = 1, .change = [](WireOptions* options) {
                               options->incoming_bytes_total = kIncomingBytes;
                             }}};
};

// One connection of it, and what is said on it.
struct Talk {
  std::unique_ptr<RawAgent> agent;
  std::vector<uint8_t> stream;
  size_t sent = 0;
  bool wrong = false;
  ConnectionId id = 0;
  std::vector<std::string> texts;  // That must arrive: up to the first wrong byte.
  size_t arrived = 0;

  // At most `count` bytes more, and no more than the kernel takes.
  void Send(size_t count) {
    count = std::min(count, stream.size() - sent);
    if (count == 0) return;
    const ssize_t done =
        ::send(agent->peer().fd(), stream.data() + sent, count, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done > 0) sent += static_cast<size_t>(done);
    if (done < 0 && errno != EAGAIN) sent = stream.size();  // It has been dropped.
  }
};

Talk OpenTalk(Listener& listener) {
  Talk talk;
  WireNode& node = listener.node;
  const WireAddress address = node.wire().address();
  talk.agent = std::make_unique<RawAgent>(address, RawAgent::Parts{.terms = TermsOf(address, 1)});
  FuzzCheck(talk.agent->peer().open());
  std::array<uint8_t, kAnswerBytes> answer{};
  FuzzCheck(RunUntil(*listener.loop, [&] {
    return ::recv(talk.agent->peer().fd(), answer.data(), answer.size(), MSG_PEEK | MSG_DONTWAIT) ==
           ssize_t{kAnswerBytes};
  }));
  FuzzCheck(talk.agent->Open());
  FuzzCheck(RunUntil(*listener.loop, [&] { return !node.opened.empty(); }));
  talk.id = node.opened[0].id;
  node.opened.clear();
  return talk;
}

void AddFrames(Talk* talk, Input* input) {
  const size_t frames = input->Byte() % 4;
  for (size_t i = 0; i < frames; ++i) {
    const size_t size = input->Number();
    std::string text(size == 0 ? 70000 : size, static_cast<char>(i));
    const std::vector<uint8_t> frame = SealText(talk->agent->channel(), text);
    talk->stream.insert(talk->stream.end(), frame.begin(), frame.end());
    talk->texts.push_back(std::move(text));
  }
  if (const uint8_t bit = input->Byte(); bit < 8 && !talk->stream.empty()) {
    const size_t at = input->Number() % talk->stream.size();
    talk->stream[at] ^= static_cast<uint8_t>(1U << bit);
    talk->wrong = true;
    size_t end = 0, whole = 0;
    for (; whole < talk->texts.size(); ++whole) {
      end += talk->texts[whole].size() + kFrameOverheadBytes;
      if (at < end) break;
    }
    talk->texts.resize(whole);
  }
}

void FramesOnOpenConnections(Input input) {
  static Listener listener;
  WireNode& node = listener.node;
  node.closed.clear();
  std::vector<Talk> talks(1 + input.Byte() % 3);
  node.on_frame = [&](ConnectionId id, std::string_view text) {
    const auto talk =
        std::find_if(talks.begin(), talks.end(), [&](const Talk& each) { return each.id == id; });
    FuzzCheck(talk != talks.end() && talk->arrived < talk->texts.size() &&
              talk->texts[talk->arrived] == text);
    ++talk->arrived;
    FuzzCheck(node.wire().Usage().incoming_bytes <=
              kIncomingBytes + kFrameBytesMost + kFrameOverheadBytes + 3 * 4096);
  };
  for (Talk& talk : talks) {
    talk = OpenTalk(listener);
    AddFrames(&talk, &input);
  }
  while (!input.empty()) {
    Talk& talk = talks[input.Byte() % talks.size()];
    talk.Send(input.Number());
    listener.loop->RunOnce(MonotonicNow());
  }
  // All of the rest arrives. A frame whose length is wrong may wait for bytes that never come, and
  // others for its memory: as heartbeats do it, such a connection is closed.
  FuzzCheck(RunUntil(*listener.loop, [&] {
    bool done = true;
    for (Talk& talk : talks) {
      talk.Send(talk.stream.size());
      const bool arrived = talk.arrived == talk.texts.size();
      if (arrived && talk.wrong) node.wire().Close(talk.id);
      done &= arrived;
    }
    return done;
  }));
  for (Talk& talk : talks) {
    FuzzCheck(talk.wrong || !node.closed.contains(talk.id));
    talk.agent->peer().Reset();
  }
  FuzzCheck(RunUntil(*listener.loop, [&] { return node.wire().Usage().connections == 0; }));
  FuzzCheck(node.wire().Usage().incoming_bytes == 0);
}

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  if (size == 0) return 0;
  const std::span<const uint8_t> rest(data + 1, size - 1);
  const Input input(rest.data(), rest.size());
  switch (data[0] % 6) {
    case 0:
      HelloFromAnybody(input, rest);
      break;
    case 1:
      AnswerFromAnybody(input);
      break;
    case 2:
      HelloOfAHolder(input);
      break;
    case 3:
      AnswerOfAHolder(input);
      break;
    case 4:
      FrameFromAnybody(rest);
      break;
    default:
      FramesOnOpenConnections(input);
  }
  return 0;
}
