// The hub has one mailbox per rank: a matcher under a mutex, and a bell that the rank sleeps on. No
// thread ever holds two of these locks.
#include "runtime/comm/transport_local.h"

#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/cancellation.h"
#include "runtime/comm/matcher.h"

namespace perdure {
namespace {

constexpr int kSpinRounds = 20000;  // With TransportOptions::spin: some ten microseconds.

// Wakes one sleeper: something that it waits for may have come about.
class Bell {
 public:
  void Ring() {
    {
      const std::lock_guard lock(mutex_);
      ++count_;
    }
    rung_.notify_all();
  }
  uint64_t Count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  // Returns once Count() is no longer `seen`, or at `until`.
  void Await(uint64_t seen, absl::Time until) {
    std::unique_lock lock(mutex_);
    const auto changed = [&] { return count_ != seen; };
    if (until == absl::InfiniteFuture())
      rung_.wait(lock, changed);
    else
      rung_.wait_until(lock, absl::ToChronoTime(until), changed);
  }

 private:
  std::mutex mutex_;
  std::condition_variable rung_;
  uint64_t count_ = 0;
};

// Why nothing goes from a peer to a mailbox any more; OK while it does.
struct Cut {
  absl::Status receives;  // What the mailbox's owner is told.
  absl::Status sends;     // What the peer is told.
};

struct Mailbox {
  std::mutex mutex;
  Matcher matcher;        // Sends to this rank, and its receives.
  std::vector<Cut> cuts;  // [peer].
  bool present = false;   // A transport of this rank has been made.
  Bell bell;
};

}  // namespace

class LocalHub {
 public:
  explicit LocalHub(int size) : mailboxes_(static_cast<size_t>(size)) {
    for (Mailbox& mailbox : mailboxes_) mailbox.cuts.resize(mailboxes_.size());
  }

  int size() const { return static_cast<int>(mailboxes_.size()); }
  Mailbox& Of(int rank) { return mailboxes_[static_cast<size_t>(rank)]; }
  Bell& arrivals() { return arrivals_; }

  // Ends both directions between two ranks, telling each why.
  void CutBetween(int a, const absl::Status& told_a, int b, const absl::Status& told_b) {
    CutInto(a, b, {told_a, told_b});
    CutInto(b, a, {told_b, told_a});
    Of(a).bell.Ring();
    Of(b).bell.Ring();
  }

  // Ends everything of one rank: told `status`, and the others that it is gone.
  void Remove(int rank, const absl::Status& status) {
    const absl::Status elsewhere = Unavailable("rank {} is gone: it was {}", rank, Message(status));
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank) CutBetween(rank, status, peer, elsewhere);
    {
      const std::lock_guard lock(Of(rank).mutex);
      Of(rank).matcher.Fail(rank, status, status);
    }
    Of(rank).bell.Ring();
    arrivals_.Ring();
  }

 private:
  void CutInto(int owner, int peer, Cut cut) {
    Mailbox& mailbox = Of(owner);
    const std::lock_guard lock(mailbox.mutex);
    Cut& current = mailbox.cuts[static_cast<size_t>(peer)];
    if (!current.receives.ok()) return;
    mailbox.matcher.Fail(peer, cut.receives, cut.sends);
    current = std::move(cut);
  }

  std::vector<Mailbox> mailboxes_;
  Bell arrivals_;
};

namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(const TransportOptions& options, std::shared_ptr<LocalHub> hub,
                 std::shared_ptr<Cancellation> cancellation)
      : options_(options), hub_(std::move(hub)), cancellation_(std::move(cancellation)) {}

  ~LocalTransport() override {
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank()) CutOff(peer, "this rank has left", "it has left");
    Mailbox& own = hub_->Of(rank());
    const std::lock_guard lock(own.mutex);
    own.matcher.FailAll(Unavailable("rank {} has shut its transport down", rank()));
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  std::string name() const override { return "local"; }
  absl::StatusOr<std::string> LocalAddress() override {
    RETURN_IF_ERROR(cancelled());
    return AddressOf(rank());
  }
  absl::Status Connect(std::span<const std::string> addresses, absl::Duration timeout) override;

  RequestPtr Send(int peer, Tag tag, const void* data, size_t bytes) override {
    return Start(Operation::Kind::kSend, peer, tag, const_cast<void*>(data), bytes);
  }
  RequestPtr Recv(int peer, Tag tag, void* data, size_t bytes) override {
    return Start(Operation::Kind::kRecv, peer, tag, data, bytes);
  }
  void Progress() override { (void)Stopped(); }  // Whoever comes second does the work.
  absl::Status WaitAll(std::span<const RequestPtr> requests) override;
  void FailPeer(int peer, const std::string& reason) override {
    PERDURE_CHECK(peer >= 0 && peer < size() && peer != rank());
    CutOff(peer, reason, "it has dropped this rank: " + reason);
  }
  void Cancel(const std::string& reason) override;
  absl::Status cancelled() const override { return cancellation_->status(); }

 private:
  std::string AddressOf(int rank) const {
    return fmt::format("local {} {}", static_cast<const void*>(hub_.get()), rank);
  }
  void CutOff(int peer, const std::string& told_here, const std::string& told_there) {
    hub_->CutBetween(rank(), Unavailable("rank {} is gone: {}", peer, told_here), peer,
                     Unavailable("rank {} is gone: {}", rank(), told_there));
  }
  std::vector<int> Absent() const;
  bool Stopped();
  RequestPtr Start(Operation::Kind kind, int peer, Tag tag, void* data, size_t bytes);
  bool Meet(const OperationRef& operation);

  const TransportOptions options_;
  const std::shared_ptr<LocalHub> hub_;
  const std::shared_ptr<Cancellation> cancellation_;
};

// The caller's thread wakes the transport's, and both do the same: whoever comes second finds
// nothing to do. What Meet() starts either is seen to be cancelled there, or is in a mailbox before
// one of them comes to it. Nothing of the transport is used but what was read before it could hear
// of this, and be destroyed.
void LocalTransport::Cancel(const std::string& reason) {
  const std::shared_ptr<LocalHub> hub = hub_;
  const std::shared_ptr<Cancellation> cancellation = cancellation_;
  const int own = rank();
  cancellation->Set(reason);
  hub->Remove(own, cancellation->status());
}

bool LocalTransport::Stopped() {
  if (!cancellation_->set()) return false;
  hub_->Remove(rank(), cancelled());
  return true;
}

std::vector<int> LocalTransport::Absent() const {
  std::vector<int> absent;
  for (int r = 0; r < size(); ++r) {
    Mailbox& mailbox = hub_->Of(r);
    const std::lock_guard lock(mailbox.mutex);
    if (!mailbox.present) absent.push_back(r);
  }
  return absent;
}

absl::Status LocalTransport::Connect(std::span<const std::string> addresses,
                                     absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  if (Stopped()) return cancelled();
  if (addresses.size() != static_cast<size_t>(size()))
    return InvalidArgument("{} addresses for {} ranks", addresses.size(), size());
  for (int r = 0; r < size(); ++r)
    if (addresses[static_cast<size_t>(r)] != AddressOf(r))
      return InvalidArgument("'{}' is not the address of rank {} in this hub",
                             addresses[static_cast<size_t>(r)], r);
  while (true) {
    const uint64_t seen = hub_->arrivals().Count();
    if (Stopped()) return cancelled();
    const std::vector<int> absent = Absent();
    if (absent.empty()) return absl::OkStatus();
    if (absl::Now() >= deadline)
      return DeadlineExceeded("rank {} waited in vain for rank {}", rank(),
                              fmt::join(absent, ", "));
    hub_->arrivals().Await(seen, deadline);
  }
}

RequestPtr LocalTransport::Start(Operation::Kind kind, int peer, Tag tag, void* data,
                                 size_t bytes) {
  PERDURE_CHECK(peer >= 0 && peer < size());
  PERDURE_CHECK(tag >> kTagBits == 0);
  auto operation = std::make_shared<Operation>(kind, peer, tag, data, bytes);
  if (Meet(operation) && peer != rank()) hub_->Of(peer).bell.Ring();
  return MakeRequest(std::move(operation));
}

// True if the other side's operation is done too.
bool LocalTransport::Meet(const OperationRef& operation) {
  const int peer = operation->peer;
  const bool sends = operation->kind == Operation::Kind::kSend;
  Mailbox& mailbox = hub_->Of(sends ? peer : rank());
  const std::lock_guard lock(mailbox.mutex);
  if (cancellation_->set()) {
    operation->Finish(cancelled());
    return false;
  }
  const Cut& cut = mailbox.cuts[static_cast<size_t>(sends ? rank() : peer)];
  if (sends) {
    if (cut.sends.ok()) return mailbox.matcher.Send(rank(), operation);
    operation->Finish(cut.sends);
    return false;
  }
  // What a peer had sent before it left can still be had.
  if (cut.receives.ok() || mailbox.matcher.HasSend(peer, operation->tag))
    return mailbox.matcher.Recv(peer, operation);
  operation->Finish(cut.receives);
  return false;
}

absl::Status LocalTransport::WaitAll(std::span<const RequestPtr> requests) {
  Bell& bell = hub_->Of(rank()).bell;
  for (const RequestPtr& request : requests) {
    if (request == nullptr) continue;
    for (int round = 0; options_.spin && round < kSpinRounds && !request->done(); ++round) {
    }
    while (true) {
      const uint64_t seen = bell.Count();
      if (request->done()) break;
      bell.Await(seen, absl::InfiniteFuture());
    }
  }
  if (Stopped()) return cancelled();
  for (const RequestPtr& request : requests)
    if (request != nullptr) RETURN_IF_ERROR(request->status());
  return absl::OkStatus();
}

}  // namespace

std::shared_ptr<LocalHub> NewLocalHub(int size) {
  PERDURE_CHECK(size > 0);
  return std::make_shared<LocalHub>(size);
}

absl::StatusOr<std::unique_ptr<Transport>> NewLocalTransport(const TransportOptions& options,
                                                             std::shared_ptr<LocalHub> hub) {
  if (hub == nullptr)
    return InvalidArgument("the transport 'local' needs the hub that its threads share");
  if (hub->size() != options.size)
    return InvalidArgument("a hub of {} ranks for a transport of {}", hub->size(), options.size);
  ASSIGN_OR_RETURN(std::shared_ptr<Cancellation> cancellation, Cancellation::New());
  {
    Mailbox& mailbox = hub->Of(options.rank);
    const std::lock_guard lock(mailbox.mutex);
    if (mailbox.present)
      return AlreadyExists("this hub has had a transport of rank {}; make a new hub", options.rank);
    mailbox.present = true;
  }
  hub->arrivals().Ring();
  return std::make_unique<LocalTransport>(options, std::move(hub), std::move(cancellation));
}

}  // namespace perdure
