// Who comes: from a TCP connection of anybody to an open one of an agent of this job.
#include <sys/epoll.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire_connection.h"
#include "runtime/wire/wire_limits.h"

namespace perdure {
namespace {

// Descriptors are given out from below, so all before `fd` are in use.
bool IsSpare(int fd) {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
         static_cast<rlim_t>(fd) + kSpareDescriptors >= limit.rlim_cur;
}

}  // namespace

absl::Status Wire::Listen() {
  ASSIGN_OR_RETURN(WireAddress address, InterfaceAddress(options_.interface));
  address.port = options_.port;
  ASSIGN_OR_RETURN(WireListener listener, ListenAt(address));
  listener_ = std::move(listener.fd);
  terms_.address = listener.address;
  return loop_->AddFd(listener_.get(), EPOLLIN, [this](uint32_t) { AcceptSome(); });
}

void Wire::AcceptSome() {
  for (int i = 0; i < kAcceptsTurn; ++i) {
    AcceptedSocket accepted = AcceptFrom(listener_.get());
    if (accepted.fd.open()) {
      ++counters_.accepted;
      Greet(std::move(accepted.fd), accepted.from);
    } else if (accepted.error == EMFILE || accepted.error == ENFILE || accepted.error == ENOBUFS ||
               accepted.error == ENOMEM) {
      // The listener stays readable: without a pause the loop would spin.
      Count(Refusal::kNoRoom);
      loop_->ChangeFd(listener_.get(), 0);
      accept_again_ = loop_->AddTimer(MonotonicNow() + kAcceptPause,
                                      [this] { loop_->ChangeFd(listener_.get(), EPOLLIN); });
      return;
    } else if (accepted.error == EAGAIN || accepted.error == EWOULDBLOCK) {
      return;
    }
    // Other errors belong to the connection that was to be accepted.
  }
}

void Wire::Refuse(Refusal refusal, UniqueFd fd) {
  Count(refusal);
  ResetWhenClosed(fd.get());
}

Wire::Progress Wire::ReadHello(HalfOpen* half_open) {
  const Received received =
      ReceiveSome(half_open->fd.get(), std::span(half_open->hello).subspan(half_open->got));
  if (received.bytes < 0) return {.refusal = Refusal::kGone};
  half_open->got += static_cast<size_t>(received.bytes);
  const std::span<const uint8_t> beginning = std::span(half_open->hello).first(half_open->got);
  return {.refusal = ResponderHandshake::Look(beginning), .whole = half_open->got == kHelloBytes};
}

void Wire::Greet(UniqueFd fd, const WireAddress& from) {
  HalfOpen newcomer{.fd = std::move(fd), .from = from};
  const Progress progress = ReadHello(&newcomer);
  if (progress.refusal != Refusal::kNone) return Refuse(progress.refusal, std::move(newcomer.fd));
  if (progress.whole) {
    (void)Prove(std::move(newcomer.fd), newcomer.hello);
    return;
  }
  if (IsSpare(newcomer.fd.get())) return Refuse(Refusal::kNoRoom, std::move(newcomer.fd));
  const Admission::Place place = admission_.Take(SourceOf(from), MonotonicNow());
  if (!place.place.has_value()) return Refuse(Refusal::kNoTokens, std::move(newcomer.fd));
  if (*place.place >= half_open_.size()) half_open_.resize(*place.place + 1);
  HalfOpen& half_open = half_open_[*place.place];
  if (place.pushed_out) {
    loop_->RemoveFd(half_open.fd.get());
    Refuse(Refusal::kPushedOut, std::move(half_open.fd));
  }
  half_open = std::move(newcomer);
  const absl::Status watched = loop_->AddFd(
      half_open.fd.get(), EPOLLIN, [this, index = *place.place](uint32_t) { OnHalfOpen(index); });
  if (!watched.ok()) {
    admission_.Leave(*place.place, /*proved=*/false);
    return Refuse(Refusal::kNoRoom, std::move(half_open.fd));
  }
  ArmSweep();
}

void Wire::OnHalfOpen(uint32_t place) {
  HalfOpen& half_open = half_open_[place];
  const Progress progress = ReadHello(&half_open);
  if (progress.refusal == Refusal::kNone && !progress.whole) return;
  loop_->RemoveFd(half_open.fd.get());
  bool proved = false;
  if (progress.refusal != Refusal::kNone)
    Refuse(progress.refusal, std::move(half_open.fd));
  else
    proved = Prove(std::move(half_open.fd), half_open.hello);
  admission_.Leave(place, proved);
}

bool Wire::Prove(UniqueFd fd, std::span<const uint8_t, kHelloBytes> hello) {
  ResponderHandshake handshake(key_, terms_, options_.self, options_.nodes);
  const auto refuse = [&](Refusal refusal) {
    Refuse(refusal, std::move(fd));
    return false;
  };
  if (const Refusal refusal = handshake.TakeHello(hello); refusal != Refusal::kNone)
    return refuse(refusal);
  // What follows costs ten times as much, and an old hello is the most that others can have.
  if (replays_.Repeats(hello.last<16>())) return refuse(Refusal::kReplayedHello);
  if (connections_count_ >= options_.connections_max) return refuse(Refusal::kNoRoom);
  AnswerBytes answer{};
  Handshaken done = handshake.Answer(SecretKey::Random(), &answer);
  if (done.refusal != Refusal::kNone) return refuse(done.refusal);
  TuneConnection(fd.get(), options_.silence);
  if (!SendWhole(fd.get(), answer)) return refuse(Refusal::kGone);
  WireConnection* connection = NewConnection();
  connection->state = WireState::kConfirming;
  connection->incoming = true;
  connection->fd = std::move(fd);
  connection->peer = {
      .job = options_.job, .node = done.peer.node, .incarnation = done.peer.incarnation};
  connection->channel = std::move(done.channel);
  connection->channel->LimitFrames(options_.frames_max);
  connection->confirmation = std::make_unique<WireConfirmation>();
  ++unconfirmed_count_;
  if (!Watch(connection, EPOLLIN).ok()) {
    Count(Refusal::kNoRoom);
    Forget(connection);
    return false;
  }
  unconfirmed_.push_back(
      {.deadline = MonotonicNow() + options_.admission.place_time, .connection = connection->id});
  ArmSweep();
  return true;
}

void Wire::ReadConfirmation(WireConnection* connection) {
  WireConfirmation& confirmation = *connection->confirmation;
  // Not a byte more: the frames behind it are read by ReadFrames.
  const Received received =
      ReceiveSome(connection->fd.get(), std::span(confirmation.bytes).subspan(confirmation.got));
  Refusal refusal = received.bytes < 0 ? Refusal::kGone : Refusal::kNone;
  if (refusal == Refusal::kNone) {
    confirmation.got += static_cast<size_t>(received.bytes);
    if (confirmation.got < kConfirmationBytes) return;
    refusal = connection->channel->OpenConfirmation(confirmation.bytes);
  }
  if (refusal != Refusal::kNone) {
    Count(refusal);
    ResetWhenClosed(connection->fd.get());
    return Forget(connection);
  }
  --unconfirmed_count_;
  Opened(connection);
}

void Wire::ArmSweep() {
  if (sweep_.number != 0) return;
  sweep_ = loop_->AddTimer(MonotonicNow() + kSweepEvery, [this] { Sweep(); });
}

void Wire::Sweep() {
  sweep_ = {};
  const absl::Time now = MonotonicNow();
  SweepStrangers(now);
  SweepFrames(now);
  if (admission_.held() > 0 || !unconfirmed_.empty() || incoming_bytes_ > 0) ArmSweep();
}

void Wire::SweepStrangers(absl::Time now) {
  while (const std::optional<uint32_t> place = admission_.Overdue(now)) {
    admission_.Leave(*place, /*proved=*/false);
    loop_->RemoveFd(half_open_[*place].fd.get());
    Refuse(Refusal::kTooSlow, std::move(half_open_[*place].fd));
  }
  while (!unconfirmed_.empty() && unconfirmed_.front().deadline <= now) {
    WireConnection* connection = Find(unconfirmed_.front().connection);
    unconfirmed_.pop_front();
    if (connection == nullptr || connection->state != WireState::kConfirming) continue;
    Count(Refusal::kTooSlow);
    ResetWhenClosed(connection->fd.get());
    Forget(connection);
  }
}

}  // namespace perdure
