#include "runtime/comm/network_transport.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A transport's own messages.
constexpr uint64_t kOwnTag = uint64_t{1} << kTagBits;
constexpr uint64_t kHelloTag = kOwnTag | 1;
constexpr uint64_t kGoodbyeTag = kOwnTag | 2;

constexpr absl::Duration kFarewellPatience = absl::Seconds(5);
constexpr absl::Duration kBrokenPatience = absl::Milliseconds(200);
constexpr absl::Duration kLeavingPatience = absl::Seconds(5);
constexpr absl::Duration kDrainPatience = absl::Seconds(2);
// Of a peer that has gone, for the receives that it was filling: in all, and while nothing comes.
constexpr absl::Duration kSettlePatience = absl::Milliseconds(200);
constexpr absl::Duration kSettleIdle = absl::Milliseconds(10);
constexpr absl::Duration kSleepMax = absl::Milliseconds(100);  // A safety net, not the mechanism.
constexpr int kDrainRounds = 10000;  // Progress calls in a row that may find something to do.
constexpr int kIdleRounds = 16;      // Idle rounds before sleeping: less than a system call.
constexpr int kIdleRoundsSpinning =
    5000;  // With TransportOptions::spin: some hundred microseconds.
constexpr uint32_t kProgressPerCheck = 64;

// What no library leaves in the sender's memory until the receiver fetches it: the copy is cheaper.
constexpr size_t kNeverFetchedBytes = 1024;

bool HasLongSends(const OperationLink& operations) {
  for (const OperationLink* link = operations.next; link != &operations; link = link->next) {
    const auto& operation = *static_cast<const Operation*>(link);
    if (operation.kind == Operation::Kind::kSend && operation.bytes > kNeverFetchedBytes)
      return true;
  }
  return false;
}

bool AnyHeld(const std::vector<OperationRef>& operations) {
  return std::any_of(operations.begin(), operations.end(),
                     [](const OperationRef& each) { return each->held_by_library != nullptr; });
}

}  // namespace

NetworkTransport::NetworkTransport(std::string kind, const TransportOptions& options,
                                   std::unique_ptr<Fabric> fabric, std::unique_ptr<PeerWatch> watch,
                                   std::shared_ptr<Cancellation> cancellation)
    : kind_(std::move(kind)),
      options_(options),
      name_(fabric->name()),
      cancellation_(std::move(cancellation)),
      fabric_(std::move(fabric)),
      watch_(std::move(watch)),
      peers_(static_cast<size_t>(options.size)) {}

NetworkTransport::~NetworkTransport() {
  if (!Stopped()) Leave();
}

void NetworkTransport::Leave() {
  const absl::Status down = Unavailable("rank {} has shut its transport down", rank());
  self_.FailAll(down);
  std::vector<OperationRef> farewells;
  for (int r = 0; r < size(); ++r) {
    Peer& peer = PeerOf(r);
    peer.goodbye_out.taken = peer.receives_done;
    const bool gives_up = HasLongSends(peer.operations);
    FinishAll(peer, down, down);
    if (peer.state != State::kLive || gives_up) continue;
    farewells.push_back(std::make_shared<Operation>(Operation::Kind::kSend, r, kGoodbyeTag,
                                                    &peer.goodbye_out, sizeof peer.goodbye_out));
    peer.operations.PushBack(*farewells.back());
    fabric_->PostLast(farewells.back());
  }
  const absl::Time deadline = absl::Now() + (broken_ ? kBrokenPatience : kFarewellPatience);
  for (const OperationRef& farewell : farewells) WaitFor(*farewell, deadline);
  for (const OperationRef& farewell : farewells) watch_->SayGoodbye(farewell->peer);
  fabric_.reset();  // Until here the library may write into peers_.
}

NetworkTransport::Peer& NetworkTransport::PeerOf(int rank) {
  PERDURE_CHECK(rank >= 0 && rank < size());
  return peers_[static_cast<size_t>(rank)];
}

absl::StatusOr<std::string> NetworkTransport::LocalAddress() {
  if (Stopped()) return stopped_;
  RankAddress address;
  address.kind = kind_;
  address.network = options_.network;
  address.rank = rank();
  address.watch = watch_->address();
  ASSIGN_OR_RETURN(address.fabric, fabric_->Address());
  std::string packed = PackAddress(address);
  if (packed.size() > kAddressBytesMax)
    return ResourceExhausted(
        "the address of rank {} takes {} bytes, {} are allowed; name fewer networks than '{}'",
        rank(), packed.size(), kAddressBytesMax, options_.network);
  return packed;
}

absl::StatusOr<std::vector<RankAddress>> NetworkTransport::ParseTable(
    std::span<const std::string> addresses) {
  if (addresses.size() != static_cast<size_t>(size()))
    return InvalidArgument("{} addresses for {} ranks", addresses.size(), size());
  std::vector<RankAddress> table;
  for (size_t r = 0; r < addresses.size(); ++r) {
    absl::StatusOr<RankAddress> address = UnpackAddress(addresses[r]);
    if (!address.ok()) return InvalidArgument("rank {}: {}", r, Message(address.status()));
    if (address->rank != static_cast<int>(r))
      return InvalidArgument("the address at place {} is that of rank {}", r, address->rank);
    if (address->kind != kind_ || address->network != options_.network)
      return InvalidArgument(
          "rank {} uses {} over '{}', rank {} uses {} over '{}'; give all ranks the same transport",
          r, address->kind, address->network, rank(), kind_, options_.network);
    table.push_back(*std::move(address));
  }
  return table;
}

absl::Status NetworkTransport::Connect(std::span<const std::string> addresses,
                                       absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  if (Stopped()) return stopped_;
  ASSIGN_OR_RETURN(const std::vector<RankAddress> table, ParseTable(addresses));
  std::vector<WatchAddress> watched;
  watched.reserve(table.size());
  for (const RankAddress& address : table) watched.push_back(address.watch);
  const absl::Status met = watch_->Connect(watched, deadline, cancellation_.get());
  if (Stopped()) return stopped_;
  RETURN_IF_ERROR(met);
  const std::string& own_host = watch_->address().host;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    const RankAddress& address = table[static_cast<size_t>(r)];
    RETURN_IF_ERROR(fabric_->AddPeer(r, address.fabric, address.watch.host == own_host));
    Peer& peer = PeerOf(r);
    peer.state = State::kLive;
    peer.goodbye = std::make_shared<Operation>(Operation::Kind::kRecv, r, kGoodbyeTag,
                                               &peer.goodbye_in, sizeof peer.goodbye_in);
    peer.goodbye->finished_counter = &goodbyes_;
    fabric_->Post(peer.goodbye);
  }
  const absl::Status greeted = Greet(deadline);
  return Stopped() ? stopped_ : greeted;
}

// An empty message each way: afterwards no send has to wait for a connection to come about.
absl::Status NetworkTransport::Greet(absl::Time deadline) {
  std::vector<OperationRef> hellos;
  for (int r = 0; r < size(); ++r)
    if (r != rank()) hellos.push_back(Start(Operation::Kind::kRecv, r, kHelloTag, nullptr, 0));
  for (int r = 0; r < size(); ++r)
    if (r != rank()) hellos.push_back(SendHello(r));
  std::vector<int> silent;
  absl::Status first;
  for (const OperationRef& hello : hellos) {
    WaitFor(*hello, deadline);
    if (!hello->done())
      silent.push_back(hello->peer);
    else
      first.Update(hello->status());
  }
  RETURN_IF_ERROR(first);
  std::sort(silent.begin(), silent.end());
  silent.erase(std::unique(silent.begin(), silent.end()), silent.end());
  if (!silent.empty())
    return DeadlineExceeded(
        "{}: rank {} reaches the process but gets no message through to rank {}; try another "
        "network than '{}'",
        name(), rank(), fmt::join(silent, ", "), options_.network);
  return absl::OkStatus();
}

OperationRef NetworkTransport::SendHello(int rank_greeted) {
  auto hello =
      std::make_shared<Operation>(Operation::Kind::kSend, rank_greeted, kHelloTag, nullptr, 0);
  Peer& peer = PeerOf(rank_greeted);
  if (Stopped() || peer.state != State::kLive) {
    hello->Finish(WhyGone(rank_greeted));
    return hello;
  }
  peer.operations.PushBack(*hello);
  fabric_->PostFirst(hello);
  return hello;
}

OperationRef NetworkTransport::Start(Operation::Kind kind, int peer_rank, uint64_t tag, void* data,
                                     size_t bytes) {
  auto operation = std::make_shared<Operation>(kind, peer_rank, tag, data, bytes);
  Peer& peer = PeerOf(peer_rank);
  if (Stopped()) {
    operation->Finish(WhyGone(peer_rank));
  } else if (peer_rank == rank()) {
    if (kind == Operation::Kind::kSend)
      self_.Send(peer_rank, operation);
    else
      self_.Recv(peer_rank, operation);
  } else if (peer.state == State::kUnconnected) {
    operation->Finish(FailedPrecondition("rank {}: no message to or from rank {} before Connect",
                                         rank(), peer_rank));
  } else if (peer.state == State::kGone) {
    StartWithGone(operation);
  } else {
    if (kind == Operation::Kind::kSend)
      ++peer.sends;
    else if (tag < kOwnTag)
      operation->finished_counter = &peer.receives_done;
    peer.operations.PushBack(*operation);
    Post(operation);
  }
  return operation;
}

void NetworkTransport::Post(const OperationRef& operation) {
  if (operation->kind == Operation::Kind::kRecv && operation->bytes > kNeverFetchedBytes &&
      fabric_->FetchesFrom(operation->peer))
    operation->sender = watch_.get();
  fabric_->Post(operation);
}

// Only what has already arrived can still be had.
void NetworkTransport::StartWithGone(const OperationRef& operation) {
  if (operation->kind == Operation::Kind::kRecv) {
    Post(operation);
    Drain();
  }
  if (operation->done()) return;
  operation->Finish(WhyGone(operation->peer));
  if (operation->held_by_library != nullptr) fabric_->Cancel(*operation);
}

absl::Status NetworkTransport::WhyGone(int peer) const {
  const Peer& gone = peers_[static_cast<size_t>(peer)];
  if (cancellation_->set()) return cancelled();
  if (gone.state != State::kGone) return stopped_;
  return Unavailable("rank {} is gone: {}", peer, gone.reason);
}

RequestPtr NetworkTransport::Send(int peer, Tag tag, const void* data, size_t bytes) {
  PERDURE_CHECK(tag < kOwnTag);
  return MakeRequest(Start(Operation::Kind::kSend, peer, tag, const_cast<void*>(data), bytes));
}

RequestPtr NetworkTransport::Recv(int peer, Tag tag, void* data, size_t bytes) {
  PERDURE_CHECK(tag < kOwnTag);
  return MakeRequest(Start(Operation::Kind::kRecv, peer, tag, data, bytes));
}

bool NetworkTransport::Advance() {
  if (Stopped()) return false;
  const bool moved = fabric_->Progress();
  for (const Fabric::LinkFailure& failure : fabric_->TakeLinkFailures()) {
    CheckPeers();  // The watch may know more about it: a clean leave breaks links too.
    Gone(failure.peer, failure.reason);
  }
  if (goodbyes_ != goodbyes_handled_) CheckPeers();
  return moved;
}

void NetworkTransport::Drain() {
  for (int round = 0; round < kDrainRounds && !cancellation_->set(); ++round)
    if (!fabric_->Progress()) return;
}

void NetworkTransport::Progress() {
  for (int round = 0; round < kDrainRounds && Advance(); ++round) {
  }
  if (++progress_calls_ % kProgressPerCheck == 0) CheckPeers();
}

void NetworkTransport::Sleep(absl::Time until) {
  if (Stopped()) return;
  absl::Duration nap = std::min(kSleepMax, until - absl::Now());
  nap = std::min(nap, fabric_->Arm());
  if (nap <= absl::ZeroDuration()) return;
  std::array<pollfd, 3> fds{pollfd{watch_->fd(), POLLIN, 0}, pollfd{fabric_->fd(), POLLIN, 0},
                            pollfd{cancellation_->fd(), POLLIN, 0}};
  const timespec patience = absl::ToTimespec(nap);
  // poll ignores a negative descriptor; an interrupted call is a short nap.
  const int ready = ::ppoll(fds.data(), fds.size(), &patience, nullptr);
  if (ready > 0 ? fds[0].revents != 0 : leaving_count_ > 0) CheckPeers();
}

void NetworkTransport::WaitFor(const Operation& operation, absl::Time deadline) {
  const int idle_rounds_max = options_.spin ? kIdleRoundsSpinning : kIdleRounds;
  int idle_rounds = 0;
  for (uint32_t round = 1; !operation.done() && !Stopped(); ++round) {
    if (round % kDrainRounds == 0) CheckPeers();  // A busy fabric must not hide a death.
    if (Advance()) {
      idle_rounds = 0;
    } else if (++idle_rounds >= idle_rounds_max && !operation.done()) {
      if (absl::Now() >= deadline) return;
      Sleep(deadline);
    }
  }
}

absl::Status NetworkTransport::WaitAll(std::span<const RequestPtr> requests) {
  for (const RequestPtr& request : requests)
    if (request != nullptr) WaitFor(OperationOf(*request), absl::InfiniteFuture());
  if (Stopped()) RETURN_IF_ERROR(cancelled());
  for (const RequestPtr& request : requests)
    if (request != nullptr) RETURN_IF_ERROR(request->status());
  return absl::OkStatus();
}

void NetworkTransport::CheckPeers() {
  if (Stopped()) return;
  for (const PeerWatch::Event& event : watch_->Poll()) {
    Peer& peer = PeerOf(event.peer);
    if (peer.state != State::kLive) continue;
    if (!event.clean) {
      Drain();
      Gone(event.peer, event.reason);
    } else {
      peer.state = State::kLeaving;
      peer.reason = event.reason;
      peer.leaving_deadline = absl::Now() + kLeavingPatience;
      ++leaving_count_;
    }
  }
  if (goodbyes_ == goodbyes_handled_ && leaving_count_ == 0) return;
  goodbyes_handled_ = goodbyes_;
  for (int r = 0; r < size(); ++r) {
    Peer& peer = PeerOf(r);
    if (peer.state != State::kLive && peer.state != State::kLeaving) continue;
    const bool said_goodbye = peer.goodbye->done();
    if (said_goodbye) Drain();
    if (said_goodbye || (peer.state == State::kLeaving && absl::Now() >= peer.leaving_deadline))
      Gone(r, said_goodbye ? "it has left" : peer.reason);
  }
}

void NetworkTransport::Gone(int rank_gone, std::string reason) {
  if (Stopped()) return;
  Peer& peer = PeerOf(rank_gone);
  if (peer.state != State::kLive && peer.state != State::kLeaving) return;
  const bool said_goodbye = peer.goodbye->done() && peer.goodbye->status().ok();
  const bool in_order = said_goodbye || peer.state == State::kLeaving;
  if (peer.state == State::kLeaving) --leaving_count_;
  peer.state = State::kGone;
  peer.reason = std::move(reason);
  broken_ |= !in_order;
  watch_->Drop(rank_gone, /*lost=*/!in_order);
  const absl::Status status = Unavailable("rank {} is gone: {}", rank_gone, peer.reason);
  const bool took_all = said_goodbye && peer.goodbye_in.taken == peer.sends;
  const std::vector<OperationRef> receives = HeldReceives(peer);
  FinishAll(peer, status, took_all ? absl::OkStatus() : status);
  if (!peer.goodbye->done()) {
    peer.goodbye->Finish(status);
    ++goodbyes_handled_;
    if (peer.goodbye->held_by_library != nullptr) fabric_->Cancel(*peer.goodbye);
  }
  fabric_->DropPeer(rank_gone);
  // It may have been in the middle of filling one of them. It sends nothing any more, or dropping
  // it has made the library refuse that, but what has come may still be on its way through here.
  const absl::Time begin = absl::Now();
  absl::Time moved = begin;
  while (AnyHeld(receives) && !cancellation_->set() && absl::Now() < begin + kSettlePatience &&
         absl::Now() < moved + kSettleIdle)
    if (fabric_->Progress()) moved = absl::Now();
}

std::vector<OperationRef> NetworkTransport::HeldReceives(const Peer& peer) {
  std::vector<OperationRef> receives;
  for (const OperationLink* link = peer.operations.next; link != &peer.operations;
       link = link->next) {
    const OperationRef& operation = static_cast<const Operation*>(link)->held_by_library;
    if (operation != nullptr && operation->kind == Operation::Kind::kRecv)
      receives.push_back(operation);
  }
  return receives;
}

// Everything under way with a peer is done, and the library is asked to forget it.
void NetworkTransport::FinishAll(Peer& peer, const absl::Status& receives,
                                 const absl::Status& sends) {
  while (peer.operations.linked()) {
    auto* operation = static_cast<Operation*>(peer.operations.next);
    const bool receive = operation->kind == Operation::Kind::kRecv;
    const OperationRef keep = operation->held_by_library;
    operation->Finish(receive ? receives : sends);
    if (receive && keep != nullptr) fabric_->Cancel(*operation);
  }
}

void NetworkTransport::FailPeer(int rank_lost, const std::string& reason) {
  PERDURE_CHECK(rank_lost != rank());
  Peer& peer = PeerOf(rank_lost);
  CheckPeers();
  if (peer.state != State::kLive && peer.state != State::kLeaving) return;
  const std::vector<OperationRef> receives = HeldReceives(peer);
  Gone(rank_lost, reason);
  // The peer may be alive and in the middle of filling one of them.
  const absl::Time deadline = absl::Now() + kDrainPatience;
  while (!Stopped() && AnyHeld(receives)) {
    if (absl::Now() >= deadline)
      return Stop(Unavailable(
          "this transport has stopped: rank {} was lost in the middle of a message ({})", rank_lost,
          reason));
    if (!Advance()) absl::SleepFor(absl::Microseconds(100));
  }
}

bool NetworkTransport::Stopped() {
  if (stopped_.ok() && cancellation_->set()) Stop(cancelled());
  return !stopped_.ok();
}

// In this order: nothing more comes in or goes out; the peers know that what they are fetching is
// not to be trusted; and only then memory is given back.
void NetworkTransport::Stop(const absl::Status& why) {
  stopped_ = why;
  fabric_.reset();
  for (int r = 0; r < size(); ++r) watch_->Drop(r, /*lost=*/true);
  for (Peer& peer : peers_) {
    FinishAll(peer, stopped_, stopped_);
    if (peer.goodbye != nullptr) peer.goodbye->Finish(stopped_);
  }
  self_.FailAll(stopped_);
}

absl::StatusOr<std::unique_ptr<Transport>> NewNetworkTransport(
    const std::string& kind, const TransportOptions& options,
    absl::StatusOr<std::unique_ptr<Fabric>> fabric) {
  RETURN_IF_ERROR(fabric.status());
  ASSIGN_OR_RETURN(std::unique_ptr<PeerWatch> watch, PeerWatch::Listen(options.rank));
  ASSIGN_OR_RETURN(std::shared_ptr<Cancellation> cancellation, Cancellation::New());
  return std::make_unique<NetworkTransport>(kind, options, *std::move(fabric), std::move(watch),
                                            std::move(cancellation));
}

}  // namespace perdure
