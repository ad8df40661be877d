// Whom we go to: attempts, with random pauses, until one is answered or the time is over.
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/wire/wire.h"
#include "runtime/wire/wire_connection.h"

namespace perdure {

ConnectionId Wire::Connect(const WireAddress& to, uint32_t node, uint64_t incarnation,
                           absl::Time deadline) {
  WireConnection* connection = NewConnection();
  connection->peer = {.job = options_.job, .node = node, .incarnation = incarnation};
  connection->attempt = std::make_unique<WireAttempt>(
      WireAttempt{.to = to, .node = node, .incarnation = incarnation, .deadline = deadline});
  // Not from here: the caller hears of it only after it has the id.
  const ConnectionId id = connection->id;
  connection->attempt->timer = loop_->AddTimer(MonotonicNow(), [this, id] { BeginAttempt(id); });
  return id;
}

void Wire::BeginAttempt(ConnectionId id) {
  WireConnection* connection = Find(id);
  WireAttempt& attempt = *connection->attempt;
  ++attempt.tries;
  ++counters_.attempts;
  if (connections_count_ > options_.connections_max)
    return RetryLater(connection, fmt::format("{} connections are the most there may be here",
                                              options_.connections_max));
  absl::StatusOr<UniqueFd> fd = BeginConnect(attempt.to);
  if (!fd.ok()) return RetryLater(connection, Message(fd.status()));
  connection->fd = *std::move(fd);
  TuneConnection(connection->fd.get(), options_.silence);
  connection->state = WireState::kConnecting;
  if (const absl::Status status = Watch(connection, EPOLLOUT); !status.ok()) {
    connection->fd.Close();
    return RetryLater(connection, Message(status));
  }
  const absl::Time until = std::min(attempt.deadline, MonotonicNow() + options_.attempt_time);
  attempt.timer = loop_->AddTimer(until, [this, id] {
    Count(Refusal::kTooSlow);
    RetryLater(Find(id), "it did not answer in time");
  });
}

void Wire::SendHello(WireConnection* connection) {
  WireAttempt& attempt = *connection->attempt;
  if (const int error = EndConnect(connection->fd.get()); error != 0)
    return RetryLater(connection, std::strerror(error));
  const HandshakeTerms terms{.run_id = options_.run_id,
                             .job = options_.job,
                             .responder = attempt.node,
                             .address = attempt.to};
  attempt.handshake.emplace(key_, terms, options_.self, attempt.incarnation, SecretKey::Random());
  attempt.got = 0;
  if (!SendWhole(connection->fd.get(), attempt.handshake->hello()))
    return RetryLater(connection, "it closed the connection before the hello");
  connection->state = WireState::kAsking;
  SetEvents(connection);
}

void Wire::ReadAnswer(WireConnection* connection) {
  WireAttempt& attempt = *connection->attempt;
  const Received received =
      ReceiveSome(connection->fd.get(), std::span(attempt.answer).subspan(attempt.got));
  if (received.bytes < 0) {
    Count(Refusal::kGone);
    return RetryLater(connection,
                      "it closed the connection at the hello: another run, job, key or address, or "
                      "it is crowded");
  }
  attempt.got += static_cast<size_t>(received.bytes);
  if (attempt.got < kAnswerBytes) return;
  Handshaken done = attempt.handshake->TakeAnswer(attempt.answer);
  if (done.refusal != Refusal::kNone) {
    Count(done.refusal);
    ResetWhenClosed(connection->fd.get());
    return RetryLater(connection, fmt::format("what answers there is not that agent ({})",
                                              RefusalName(done.refusal)));
  }
  loop_->CancelTimer(attempt.timer);
  connection->peer.node = done.peer.node;
  connection->peer.incarnation = done.peer.incarnation;
  connection->channel = std::move(done.channel);
  connection->channel->LimitFrames(options_.frames_max);
  // It leaves together with what on_open has to say.
  const auto confirmation = connection->channel->SealConfirmation();
  const std::span<uint8_t> space = QueueSpace(connection, confirmation.size());
  std::copy(confirmation.begin(), confirmation.end(), space.begin());
  MarkDirty(connection);
  Opened(connection);
}

void Wire::RetryLater(WireConnection* connection, std::string why) {
  WireAttempt& attempt = *connection->attempt;
  loop_->CancelTimer(attempt.timer);
  loop_->RemoveFd(connection->fd.get());
  connection->fd.Close();
  connection->state = WireState::kPausing;
  attempt.handshake.reset();
  uint64_t random = 0;
  FillRandom(std::span(reinterpret_cast<uint8_t*>(&random), sizeof random));
  const uint32_t doublings = std::min(attempt.tries - 1, 16U);
  const absl::Duration pause =
      std::min(options_.retry_first * (int64_t{1} << doublings), options_.retry_last);
  // Half to one and a half: who failed together does not come back together.
  const absl::Time next =
      MonotonicNow() + pause / 2 + pause * static_cast<int64_t>(random % 1024) / 1024;
  if (next >= attempt.deadline)
    return Drop(connection, Unavailable("connect to node {} at {}: {} ({} tries)", attempt.node,
                                        WireAddressText(attempt.to), why, attempt.tries));
  const ConnectionId id = connection->id;
  attempt.timer = loop_->AddTimer(next, [this, id] { BeginAttempt(id); });
}

}  // namespace perdure
