// The fabric over libfabric: Slingshot, Omni-Path, verbs, TCP. Reliable datagram endpoints with
// tagged messages, receives directed at their sender, sleeping on the completion queue's
// descriptor.
//
// A provider may be short of something for a moment (-FI_EAGAIN): sends then queue here, per peer,
// in order. Providers without a wait descriptor ("shm") are slept on by naps.
#include <netinet/in.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_tagged.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string_view>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"
#include "runtime/comm/piecewise_fabric.h"

namespace perdure {
namespace {

constexpr uint32_t kApiVersion = FI_VERSION(1, 15);
// Best first. "shm" is not here: it cannot be slept on, installs signal handlers, and shares locks
// with its peers, so that one killed at the wrong moment would stop the others.
constexpr std::array<const char*, 5> kPreferred = {"cxi", "opx", "psm2", "verbs;ofi_rxm",
                                                   "tcp;ofi_rxm"};
// A rank that is fetching a long message crashes now and then when its sender dies: libfabric
// 1.17's "tcp" reports an error with a null context, which "ofi_rxm" follows. By its source, "tcp"
// reports a read that is being answered twice, the second time after freeing it. With
// FI_OFI_RXM_USE_RNDV_WRITE, which needs no reads, ranks that exchange with several peers hang. So
// this provider gets no long messages.
constexpr std::string_view kCrashesOnLongMessages = "tcp;ofi_rxm";
constexpr size_t kCompletionsPerRead = 32;
constexpr size_t kQueueSize = 8192;
constexpr int64_t kDoneAtOnce = 1;  // Of a try: no completion will follow.
constexpr absl::Duration kBacklogNap = absl::Milliseconds(1);
constexpr absl::Duration kNapFirst = absl::Microseconds(20);  // Without a descriptor: doubled up to
constexpr absl::Duration kNapMax = absl::Milliseconds(2);     // this while nothing comes.

static_assert(sizeof(fi_context2) <= sizeof(Operation::Context::library));

std::string OfiError(int64_t error) { return fi_strerror(static_cast<int>(-error)); }

// An owned libfabric object.
template <typename T>
struct Closer {
  void operator()(T* object) const { (void)fi_close(&object->fid); }
};
template <typename T>
using Handle = std::unique_ptr<T, Closer<T>>;

struct InfoFree {
  void operator()(fi_info* info) const { fi_freeinfo(info); }
};
using Info = std::unique_ptr<fi_info, InfoFree>;

// How well others can reach an interface; lower is better.
int Remoteness(const fi_info& info) {
  if (info.addr_format == FI_SOCKADDR_IN && info.src_addr != nullptr) {
    const auto* v4 = static_cast<const sockaddr_in*>(info.src_addr);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == 127 ? 2 : 0;
  }
  if (info.addr_format == FI_SOCKADDR_IN6 && info.src_addr != nullptr) {
    const in6_addr& v6 = static_cast<const sockaddr_in6*>(info.src_addr)->sin6_addr;
    if (IN6_IS_ADDR_LINKLOCAL(&v6)) return 4;
    return IN6_IS_ADDR_LOOPBACK(&v6) ? 3 : 1;
  }
  return 0;  // The provider's own kind of address.
}

// Deliveries straight into the caller's buffer break the connection when a message is longer than
// the buffer (libfabric 1.17: tcp_update_rx_iov "dynamically provided rbuf is too small"), and
// other messages are lost with it. libfabric has no call for this setting, only the environment;
// what the user has set there stays.
void AvoidDirectDelivery() {
  static const int once = ::setenv("FI_OFI_RXM_ENABLE_DYN_RBUF", "0", /*overwrite=*/0);
  (void)once;
}

// Everything on offer here; from one provider only if it is named. Null if nothing.
Info Query(const std::string& provider) {
  AvoidDirectDelivery();
  const Info hints(fi_allocinfo());
  PERDURE_CHECK(hints != nullptr);
  hints->caps = FI_TAGGED | FI_DIRECTED_RECV;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->domain_attr->av_type = FI_AV_TABLE;
  hints->domain_attr->mr_mode = FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_VIRT_ADDR | FI_MR_ENDPOINT;
  hints->tx_attr->msg_order = FI_ORDER_SAS;
  hints->rx_attr->msg_order = FI_ORDER_SAS;
  if (!provider.empty()) hints->fabric_attr->prov_name = ::strdup(provider.c_str());
  fi_info* found = nullptr;
  if (fi_getinfo(kApiVersion, nullptr, nullptr, 0, hints.get(), &found) != 0) return nullptr;
  return Info(found);
}

// The best offer of each provider, best provider first: of several interfaces the first of those
// that others reach best, so loopback only where there is nothing else. Without a name only
// preferred providers count.
std::vector<fi_info*> Rank(fi_info* offers, bool named) {
  std::vector<fi_info*> result;
  const auto add_best = [&](std::string_view provider) {
    fi_info* best = nullptr;
    for (fi_info* info = offers; info != nullptr; info = info->next)
      if (info->fabric_attr->prov_name == provider &&
          (best == nullptr || Remoteness(*info) < Remoteness(*best)))
        best = info;
    if (best != nullptr) result.push_back(best);
  };
  if (named) {
    if (offers != nullptr) add_best(offers->fabric_attr->prov_name);
  } else {
    for (const char* provider : kPreferred) add_best(provider);
  }
  return result;
}

class OfiFabric final : public Fabric {
 public:
  static absl::StatusOr<std::unique_ptr<Fabric>> Create(const TransportOptions& options);
  ~OfiFabric() override = default;

  std::string name() const override { return fmt::format("libfabric ({})", provider_); }
  absl::StatusOr<std::string> Address() override;
  absl::Status AddPeer(int peer, const std::string& address, bool same_host) override;
  void Post(const OperationRef& operation) override;
  void PostFirst(const OperationRef& operation) override { Post(operation); }
  void PostLast(const OperationRef& operation) override {
    operation->last = true;
    Post(operation);
  }
  void Cancel(Operation& receive) override;
  bool Progress() override;
  std::vector<LinkFailure> TakeLinkFailures() override { return std::exchange(failures_, {}); }
  std::vector<Truncation> TakeTruncations() override { return std::exchange(truncations_, {}); }
  bool FetchesFrom(int) const override { return provider_ == "shm"; }
  void DropPeer(int peer) override;
  absl::Duration Arm() override;
  int fd() const override { return wait_fd_; }

 private:
  struct Peer {
    fi_addr_t address = FI_ADDR_NOTAVAIL;
    std::deque<OperationRef> sends;  // Not taken by the provider yet.
  };

  explicit OfiFabric(const TransportOptions& options)
      : network_(options.network), peers_(static_cast<size_t>(options.size)) {}

  absl::Status Open(fi_info& info);
  Peer& PeerOf(int rank) { return peers_[static_cast<size_t>(rank)]; }
  int64_t TrySend(Operation& operation);
  int64_t TryReceive(Operation& operation);
  // False if the provider has no room for it now.
  bool Try(Operation& operation);
  bool RetryWaiting();
  bool RetryQueue(std::deque<OperationRef>& queue);
  bool ReadCompletions();
  void ReadError();

  const std::string network_;
  std::string provider_;
  std::vector<Peer> peers_;
  HeldOperations held_;
  // Closed in reverse order, before the operations are let go.
  Handle<fid_fabric> fabric_;
  Handle<fid_domain> domain_;
  Handle<fid_av> addresses_;
  Handle<fid_cq> queue_;
  Handle<fid_ep> endpoint_;
  int wait_fd_ = -1;
  size_t inject_bytes_max_ = 0;
  absl::Duration nap_ = kNapFirst;
  size_t waiting_ = 0;                 // In all the queues of what is not taken yet.
  std::deque<OperationRef> receives_;  // Likewise.
  std::vector<LinkFailure> failures_;
  std::vector<Truncation> truncations_;
};

absl::StatusOr<std::unique_ptr<Fabric>> OfiFabric::Create(const TransportOptions& options) {
  const Info offers = Query(options.network);
  absl::Status last = InvalidArgument(
      "libfabric offers tagged messages over {} on this machine; see what `fi_info` lists",
      options.network.empty() ? fmt::format("none of {}", fmt::join(kPreferred, ", "))
                              : fmt::format("no '{}'", options.network));
  for (fi_info* info : Rank(offers.get(), !options.network.empty())) {
    std::unique_ptr<OfiFabric> fabric(new OfiFabric(options));
    last = fabric->Open(*info);
    if (!last.ok()) continue;
    if (info->fabric_attr->prov_name != kCrashesOnLongMessages) return fabric;
    return std::make_unique<PiecewiseFabric>(std::move(fabric), options.size);
  }
  return last;
}

absl::Status OfiFabric::Open(fi_info& info) {
  provider_ = info.fabric_attr->prov_name;
  const auto failed = [this](std::string_view what, int64_t error) {
    return Unavailable("libfabric provider {} cannot open {}: {}", provider_, what,
                       OfiError(error));
  };
  if (std::bit_width(info.ep_attr->mem_tag_format) < PiecewiseFabric::kWireTagBits)
    return Unavailable("libfabric provider {} has too short tags", provider_);
  fid_fabric* fabric = nullptr;
  if (const int error = fi_fabric(info.fabric_attr, &fabric, nullptr))
    return failed("a fabric", error);
  fabric_.reset(fabric);
  fid_domain* domain = nullptr;
  if (const int error = fi_domain(fabric, &info, &domain, nullptr))
    return failed("a domain", error);
  domain_.reset(domain);
  fi_av_attr av_attributes{};
  av_attributes.type = FI_AV_TABLE;
  av_attributes.count = peers_.size();
  fid_av* addresses = nullptr;
  if (const int error = fi_av_open(domain, &av_attributes, &addresses, nullptr))
    return failed("an address vector", error);
  addresses_.reset(addresses);
  fi_cq_attr queue_attributes{};
  queue_attributes.size = kQueueSize;
  queue_attributes.format = FI_CQ_FORMAT_TAGGED;
  queue_attributes.wait_obj = FI_WAIT_FD;
  fid_cq* queue = nullptr;
  int error = fi_cq_open(domain, &queue_attributes, &queue, nullptr);
  const bool sleeps = error == 0;
  if (!sleeps) {
    queue_attributes.wait_obj = FI_WAIT_NONE;
    error = fi_cq_open(domain, &queue_attributes, &queue, nullptr);
  }
  if (error != 0) return failed("a completion queue", error);
  queue_.reset(queue);
  if (sleeps) {
    error = fi_control(&queue->fid, FI_GETWAIT, &wait_fd_);
    if (error != 0) return failed("the completion queue's descriptor", error);
  }
  fid_ep* endpoint = nullptr;
  error = fi_endpoint(domain, &info, &endpoint, nullptr);
  if (error != 0) return failed("an endpoint", error);
  endpoint_.reset(endpoint);
  error = fi_ep_bind(endpoint, &addresses->fid, 0);
  if (error == 0) error = fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV);
  if (error == 0) error = fi_enable(endpoint);
  if (error != 0) return failed("an enabled endpoint", error);
  inject_bytes_max_ = info.tx_attr->inject_size;
  return absl::OkStatus();
}

absl::StatusOr<std::string> OfiFabric::Address() {
  std::string address(256, '\0');
  size_t bytes = address.size();
  int error = fi_getname(&endpoint_->fid, address.data(), &bytes);
  if (error == -FI_ETOOSMALL) {
    address.resize(bytes);
    error = fi_getname(&endpoint_->fid, address.data(), &bytes);
  }
  if (error != 0) return Unavailable("{} has no address: {}", name(), OfiError(error));
  address.resize(bytes);
  return address;
}

absl::Status OfiFabric::AddPeer(int peer, const std::string& address, bool) {
  const int inserted =
      fi_av_insert(addresses_.get(), address.data(), 1, &PeerOf(peer).address, 0, nullptr);
  if (inserted == 1) return absl::OkStatus();
  return Unavailable("{} does not take the address of rank {}: {}", name(), peer,
                     inserted < 0 ? OfiError(inserted) : "no reason given");
}

void OfiFabric::Post(const OperationRef& operation) {
  held_.Hold(operation);
  std::deque<OperationRef>& queue =
      operation->kind == Operation::Kind::kSend ? PeerOf(operation->peer).sends : receives_;
  if (queue.empty() && Try(*operation)) return;
  queue.push_back(operation);
  ++waiting_;
}

bool OfiFabric::Try(Operation& operation) {
  const bool send = operation.kind == Operation::Kind::kSend;
  const int64_t result = send ? TrySend(operation) : TryReceive(operation);
  if (result == -FI_EAGAIN) return false;
  if (result == kDoneAtOnce) {
    operation.Finish(absl::OkStatus());
    held_.Release(operation);
  } else if (result != 0) {
    operation.Finish(
        Unavailable("rank {} is gone: {} says {}", operation.peer, name(), OfiError(result)));
    failures_.push_back({operation.peer, OfiError(result)});
    held_.Release(operation);
  }
  return true;
}

int64_t OfiFabric::TrySend(Operation& operation) {
  const fi_addr_t to = PeerOf(operation.peer).address;
  if (operation.bytes <= inject_bytes_max_ && !operation.last) {
    const ssize_t result =
        fi_tinject(endpoint_.get(), operation.data, operation.bytes, to, operation.tag);
    return result == 0 ? kDoneAtOnce : result;
  }
  iovec piece{operation.data, operation.bytes};
  fi_msg_tagged message{};
  message.msg_iov = &piece;
  message.iov_count = 1;
  message.addr = to;
  message.tag = operation.tag;
  message.context = &operation.context;
  const uint64_t flags = FI_COMPLETION | (operation.last ? FI_TRANSMIT_COMPLETE : 0);
  return fi_tsendmsg(endpoint_.get(), &message, flags);
}

int64_t OfiFabric::TryReceive(Operation& operation) {
  return fi_trecv(endpoint_.get(), operation.data, operation.bytes, nullptr,
                  PeerOf(operation.peer).address, operation.tag, 0, &operation.context);
}

bool OfiFabric::RetryQueue(std::deque<OperationRef>& queue) {
  bool moved = false;
  while (!queue.empty() && Try(*queue.front())) {
    queue.pop_front();
    --waiting_;
    moved = true;
  }
  return moved;
}

bool OfiFabric::RetryWaiting() {
  if (waiting_ == 0) return false;
  bool moved = RetryQueue(receives_);
  for (Peer& peer : peers_) moved |= RetryQueue(peer.sends);
  return moved;
}

void OfiFabric::Cancel(Operation& receive) {
  const auto waiting = std::find_if(receives_.begin(), receives_.end(),
                                    [&](const OperationRef& r) { return r.get() == &receive; });
  if (waiting != receives_.end()) {
    held_.Release(receive);
    receives_.erase(waiting);
    --waiting_;
    return;
  }
  // A completion with FI_ECANCELED follows, or the receive's own if it has been matched.
  (void)fi_cancel(&endpoint_->fid, &receive.context);
}

void OfiFabric::DropPeer(int rank) {
  std::deque<OperationRef>& sends = PeerOf(rank).sends;
  for (const OperationRef& send : sends) held_.Release(*send);
  waiting_ -= sends.size();
  sends.clear();
}

bool OfiFabric::Progress() {
  bool moved = ReadCompletions();
  moved |= RetryWaiting();
  if (moved) nap_ = kNapFirst;
  return moved;
}

bool OfiFabric::ReadCompletions() {
  std::array<fi_cq_tagged_entry, kCompletionsPerRead> entries;
  const ssize_t count = fi_cq_read(queue_.get(), entries.data(), entries.size());
  if (count == -FI_EAVAIL) {
    ReadError();
    return true;
  }
  for (ssize_t i = 0; i < count; ++i) {
    const fi_cq_tagged_entry& entry = entries[static_cast<size_t>(i)];
    Operation& operation = *static_cast<Operation::Context*>(entry.op_context)->owner;
    if (operation.kind == Operation::Kind::kRecv)
      operation.FinishReceive(entry.len);
    else
      operation.Finish(absl::OkStatus());
    held_.Release(operation);
  }
  return count > 0;
}

void OfiFabric::ReadError() {
  fi_cq_err_entry entry{};
  if (fi_cq_readerr(queue_.get(), &entry, 0) != 1 || entry.op_context == nullptr) return;
  Operation& operation = *static_cast<Operation::Context*>(entry.op_context)->owner;
  if (std::abs(entry.err) == FI_ETRUNC && operation.kind == Operation::Kind::kSend) {
    operation.Finish(absl::OkStatus());  // "shm" tells the sender too; it is the receiver's error.
  } else if (std::abs(entry.err) == FI_ETRUNC) {
    truncations_.push_back({operation.peer, operation.tag, operation.bytes + entry.olen});
    operation.Finish(DataLoss(
        "rank {} sent more than the {} bytes expected (tag {:#x}); the two sides disagree on the "
        "plan: check that both run the same binary and configuration",
        operation.peer, operation.bytes, operation.tag));
  } else if (std::abs(entry.err) != FI_ECANCELED) {
    const std::string reason = fi_strerror(std::abs(entry.err));
    operation.Finish(Unavailable("rank {} is gone: {} says {}", operation.peer, name(), reason));
    failures_.push_back({operation.peer, reason});
  }
  held_.Release(operation);
}

absl::Duration OfiFabric::Arm() {
  if (wait_fd_ < 0) return std::exchange(nap_, std::min(2 * nap_, kNapMax));
  fid* queue = &queue_->fid;
  if (fi_trywait(fabric_.get(), &queue, 1) != 0) return absl::ZeroDuration();
  return waiting_ > 0 ? kBacklogNap : absl::InfiniteDuration();
}

}  // namespace

bool OfiIsBuilt() { return true; }

absl::StatusOr<std::unique_ptr<Fabric>> NewOfiFabric(const TransportOptions& options) {
  return OfiFabric::Create(options);
}

}  // namespace perdure
