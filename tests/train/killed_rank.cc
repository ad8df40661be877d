#include "tests/train/killed_rank.h"

#include <algorithm>
#include <utility>

namespace perdure {

class KilledRank::KilledTransport final : public Transport {
 public:
  KilledTransport(KilledRank* killed, std::unique_ptr<Transport> transport)
      : killed_(killed), transport_(std::move(transport)) {}

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string name() const override { return transport_->name(); }
  absl::StatusOr<std::string> LocalAddress() override { return transport_->LocalAddress(); }
  absl::Status Connect(std::span<const std::string> addresses, absl::Duration timeout) override {
    return transport_->Connect(addresses, timeout);
  }
  RequestPtr Send(int peer, Tag tag, const void* data, size_t bytes) override {
    killed_->Event(rank());
    return transport_->Send(peer, tag, data, bytes);
  }
  RequestPtr Recv(int peer, Tag tag, void* data, size_t bytes) override {
    killed_->Event(rank());
    return transport_->Recv(peer, tag, data, bytes);
  }
  void Progress() override {
    killed_->Event(rank());
    transport_->Progress();
  }
  absl::Status WaitAll(std::span<const RequestPtr> requests) override {
    killed_->Event(rank());
    return transport_->WaitAll(requests);
  }
  void FailPeer(int peer, const std::string& reason) override {
    transport_->FailPeer(peer, reason);
  }
  void Cancel(const std::string& reason) override { transport_->Cancel(reason); }
  absl::Status cancelled() const override { return transport_->cancelled(); }

 private:
  KilledRank* killed_;
  std::unique_ptr<Transport> transport_;
};

class KilledRank::KilledHost final : public ForwardingHost {
 public:
  KilledHost(KilledRank* killed, int rank, RankHost* host)
      : ForwardingHost(host), killed_(killed), my_rank_(rank) {}
  void Progress(int64_t step, const WorkDone&) override { killed_->Progress(my_rank_, step); }
  void Doing(const Activity&) override { killed_->Event(my_rank_); }

 private:
  KilledRank* killed_;
  const int my_rank_;
};

std::unique_ptr<Transport> KilledRank::WrapTransport(int rank,
                                                     std::unique_ptr<Transport> transport) {
  if (rank != rank_) return transport;
  auto wrapped = std::make_unique<KilledTransport>(this, std::move(transport));
  transport_ = wrapped.get();
  return wrapped;
}

std::unique_ptr<RankHost> KilledRank::WrapHost(int rank, RankHost* host) {
  return std::make_unique<KilledHost>(this, rank, host);
}

void KilledRank::Event(int rank) {
  if (rank != rank_) return;
  std::unique_lock lock(mutex_);
  if (!armed_ || events_++ != at_) return;
  for (int peer = 0; peer < transport_->size(); ++peer)
    if (peer != rank) transport_->FailPeer(peer, "killed");
  still_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return let_go_; });
}

void KilledRank::Progress(int rank, int64_t step) {
  {
    const std::lock_guard lock(mutex_);
    finished_ = std::max(finished_, step);
    if (rank == rank_ && step == after_) armed_ = true;
    if (rank == rank_ && step == after_ + 1) events_of_step_ = events_;
  }
  Event(rank);
}

void KilledRank::Ended(int rank) {
  const std::lock_guard lock(mutex_);
  ended_.insert(rank);
  changed_.notify_all();
}

void KilledRank::AwaitOthers(int ranks) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return static_cast<int>(ended_.size()) + (still_ && !ended_.contains(rank_) ? 1 : 0) == ranks;
  });
}

void KilledRank::LetGo() {
  const std::lock_guard lock(mutex_);
  let_go_ = true;
  changed_.notify_all();
}

int64_t KilledRank::events_of_step() {
  const std::lock_guard lock(mutex_);
  return events_of_step_;
}

int64_t KilledRank::finished() {
  const std::lock_guard lock(mutex_);
  return finished_;
}

}  // namespace perdure
