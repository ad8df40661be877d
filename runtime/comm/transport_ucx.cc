// The fabric over UCX: InfiniBand, RoCE, TCP, shared memory, whatever UCX finds. Tag matching with
// the sender's rank above the tag; sleeping on the worker's wakeup descriptor.
//
// Error handling. UCX 1.13 excludes its shared-memory transports from endpoints in peer error mode
// ("no peer failure handler"), so peers on the same host get endpoints without it, and it is the
// peer watch that notices their death; UCX leaves the requests of a dead peer pending then, which
// does no harm. Peers on other hosts get peer error mode: UCX reports broken links, and a forced
// close ends everything that is under way with them.
#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/fabric.h"

namespace perdure {
namespace {

constexpr int kRankShift = kTagBits + 1;  // One bit for a transport's own messages.
constexpr absl::Duration kClosingPatience = absl::Seconds(1);
constexpr absl::Duration kIdlePatience = absl::Milliseconds(50);  // While nothing moves.

absl::Status FromUcs(ucs_status_t status, const Operation& operation) {
  switch (status) {
    case UCS_OK:
      return absl::OkStatus();
    case UCS_ERR_MESSAGE_TRUNCATED:
      return DataLoss(
          "rank {} sent more than the {} bytes expected (tag {:#x}); the two sides disagree on the "
          "plan: check that both run the same binary and configuration",
          operation.peer, operation.bytes, operation.tag);
    case UCS_ERR_NO_MEMORY:
      return ResourceExhausted("rank {}, message of {} bytes: {}", operation.peer, operation.bytes,
                               ucs_status_string(status));
    default:
      return Unavailable("rank {} is gone: UCX says {}", operation.peer, ucs_status_string(status));
  }
}

// Whether UCX_TLS = `network` lets two processes of one host use shared memory.
bool AllowsSharedMemory(const std::string& network) {
  if (network.empty() || network.starts_with('^')) return true;
  size_t begin = 0;
  while (begin <= network.size()) {
    const size_t end = std::min(network.find(',', begin), network.size());
    std::string item = network.substr(begin, end - begin);
    if (item.starts_with('\\')) item.erase(0, 1);
    for (const char* shared : {"all", "sm", "shm", "mm", "posix", "sysv", "xpmem", "cma", "knem"})
      if (item == shared) return true;
    begin = end + 1;
  }
  return false;
}

// UCX warns of every message that nobody received and every request that a dead peer left behind.
// After a failure that is what must be, so only errors are shown; another level that the user has
// asked for (UCX_LOG_LEVEL) stays.
void QuietenWarnings() {
  char level[32] = {};
  if (ucs_global_opts_get_value("LOG_LEVEL", level, sizeof level) == UCS_OK &&
      std::string_view(level) == "WARN")
    (void)ucs_global_opts_set_value("LOG_LEVEL", "ERROR");
}

// What would end the process when a peer dies. ucp_config_modify does not reach these settings;
// what the user has set stays.
void SurviveLostPeers() {
  const auto set = [](const char* name, const char* value) {
    return ::setenv(name, value, /*overwrite=*/0);
  };
  // A connection that is refused while UCX 1.13 waits for it: the endpoint fails before it may
  // (tcp_ep.c, "!(ep->flags & UCT_TCP_EP_FLAG_CTX_TYPE_TX)"), and a peer that dies takes along
  // whoever connects to it. So it does not wait.
  static const int connect = set("UCX_TCP_CONN_NB", "y");
  // An endpoint that is closed by force while TCP sends out of the caller's memory: the send is
  // completed twice (uct_iface.h, "comp->count > 0"). So UCX copies what it sends over TCP; in
  // pieces of this size that is as fast.
  static const int copy = set("UCX_ZCOPY_THRESH", "inf");
  static const int piece = set("UCX_TCP_TX_SEG_SIZE", "64kb") | set("UCX_TCP_RX_SEG_SIZE", "64kb");
  // A put over TCP, where shared memory cannot fetch, goes straight to an address in the receiver,
  // whatever lies there when it comes.
  static const int put = set("UCX_TCP_PUT_ENABLE", "n");
  (void)connect, (void)copy, (void)piece, (void)put;
}

class UcxFabric final : public Fabric {
 public:
  static absl::StatusOr<std::unique_ptr<Fabric>> Create(const TransportOptions& options);
  ~UcxFabric() override;

  std::string name() const override {
    return fmt::format("ucx ({})", network_.empty() ? "all" : network_);
  }
  absl::StatusOr<std::string> Address() override;
  absl::Status AddPeer(int peer, const std::string& address, bool same_host) override;
  void Post(const OperationRef& operation) override;
  void PostFirst(const OperationRef& operation) override;
  void PostLast(const OperationRef& operation) override;
  void Cancel(Operation& receive) override;
  bool Progress() override { return ucp_worker_progress(worker_) != 0; }
  std::vector<LinkFailure> TakeLinkFailures() override { return std::exchange(failures_, {}); }
  bool FetchesFrom(int peer) const override {
    return !peers_[static_cast<size_t>(peer)].reports_errors;
  }
  void DropPeer(int peer) override;
  absl::Duration Arm() override;
  int fd() const override { return wakeup_; }

 private:
  struct Peer {
    UcxFabric* fabric = nullptr;
    int rank = 0;
    ucp_ep_h endpoint = nullptr;
    bool reports_errors = false;  // Peer error mode: may be closed by force.
  };

  explicit UcxFabric(const TransportOptions& options)
      : rank_(options.rank), network_(options.network), peers_(static_cast<size_t>(options.size)) {}

  absl::Status Open(int size);
  Peer& PeerOf(int rank) { return peers_[static_cast<size_t>(rank)]; }
  bool IsBusy() const;
  uint64_t WireTag(int source, uint64_t tag) const {
    return static_cast<uint64_t>(source) << kRankShift | tag;
  }
  ucp_request_param_t Parameters(Operation& operation) const;
  void Settle(Operation& operation, ucs_status_ptr_t result);

  static void OnSent(void* request, ucs_status_t status, void* operation);
  static void OnReceived(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                         void* operation);
  static void OnLinkFailure(void* peer, ucp_ep_h endpoint, ucs_status_t status);

  static UcxFabric* FabricOf(const Operation& operation) {
    return static_cast<UcxFabric*>(operation.library_owner);
  }

  const int rank_;
  const std::string network_;
  std::vector<Peer> peers_;  // Never resized: endpoints point into it.
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int wakeup_ = -1;
  HeldOperations held_;
  std::vector<LinkFailure> failures_;
  bool closes_ = false;
  std::vector<void*> closing_;  // Forced closes of endpoints that may be under way.
};

absl::StatusOr<std::unique_ptr<Fabric>> UcxFabric::Create(const TransportOptions& options) {
  if (options.size > 1 << (63 - kRankShift))
    return InvalidArgument("{} ranks; the UCX transport numbers {} at most", options.size,
                           1 << (63 - kRankShift));
  std::unique_ptr<UcxFabric> fabric(new UcxFabric(options));
  RETURN_IF_ERROR(fabric->Open(options.size));
  return fabric;
}

absl::Status UcxFabric::Open(int size) {
  QuietenWarnings();
  SurviveLostPeers();
  ucp_config_t* config = nullptr;
  if (const ucs_status_t status = ucp_config_read(nullptr, nullptr, &config); status != UCS_OK)
    return Unavailable("UCX cannot read its configuration: {}; check the UCX_* variables",
                       ucs_status_string(status));
  ucs_status_t status = UCS_OK;
  if (!network_.empty()) status = ucp_config_modify(config, "TLS", network_.c_str());
  ucp_params_t parameters{};
  parameters.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
  parameters.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  parameters.estimated_num_eps = static_cast<size_t>(size);
  if (status == UCS_OK) status = ucp_init(&parameters, config, &context_);
  ucp_config_release(config);
  if (status != UCS_OK)
    return InvalidArgument("UCX finds no network for '{}' on this machine: {}; try 'all'", network_,
                           ucs_status_string(status));
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS;
  worker.thread_mode = UCS_THREAD_MODE_SINGLE;
  worker.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;  // A dead peer's requests stay behind.
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status == UCS_OK) status = ucp_worker_get_efd(worker_, &wakeup_);
  if (status != UCS_OK)
    return Unavailable("UCX cannot open a worker on '{}': {}", network_, ucs_status_string(status));
  return absl::OkStatus();
}

UcxFabric::~UcxFabric() {
  closes_ = true;
  for (int r = 0; r < static_cast<int>(peers_.size()); ++r) DropPeer(r);
  held_.ForEach([this](Operation& operation) {
    if (operation.kind == Operation::Kind::kRecv) Cancel(operation);
  });
  // UCX 1.13 aborts if the worker is destroyed while it is copying out of a peer's memory, or while
  // an endpoint is still being closed with messages pending. Neither waits for a peer.
  const absl::Time give_up = absl::Now() + kClosingPatience;
  absl::Time moved = absl::Now();
  while (IsBusy() && absl::Now() < std::min(moved + kIdlePatience, give_up))
    if (Progress()) moved = absl::Now();
  // What must not be destroyed stays until the process ends. It is never driven again, so that it
  // writes nowhere.
  if (IsBusy()) return;
  for (void* const closing : closing_) ucp_request_free(closing);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

// Whether something is under way that the worker's destruction would not survive.
bool UcxFabric::IsBusy() const {
  bool busy = std::any_of(closing_.begin(), closing_.end(), [](void* closing) {
    return ucp_request_check_status(closing) == UCS_INPROGRESS;
  });
  held_.ForEach(
      [&](const Operation& operation) { busy |= operation.kind == Operation::Kind::kRecv; });
  return busy;
}

absl::StatusOr<std::string> UcxFabric::Address() {
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  if (const ucs_status_t status = ucp_worker_get_address(worker_, &address, &bytes);
      status != UCS_OK)
    return Unavailable("UCX has no address for '{}': {}", network_, ucs_status_string(status));
  std::string result(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(worker_, address);
  return result;
}

absl::Status UcxFabric::AddPeer(int rank, const std::string& address, bool same_host) {
  Peer& peer = PeerOf(rank);
  peer.fabric = this;
  peer.rank = rank;
  peer.reports_errors = !(same_host && AllowsSharedMemory(network_));
  ucp_ep_params_t parameters{};
  parameters.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                          UCP_EP_PARAM_FIELD_ERR_HANDLER;
  parameters.address = reinterpret_cast<const ucp_address_t*>(address.data());
  parameters.err_mode =
      peer.reports_errors ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  parameters.err_handler = {.cb = &UcxFabric::OnLinkFailure, .arg = &peer};
  const ucs_status_t status = ucp_ep_create(worker_, &parameters, &peer.endpoint);
  if (status == UCS_OK) return absl::OkStatus();
  peer.endpoint = nullptr;
  return Unavailable("UCX finds no way from rank {} to rank {} over '{}': {}; try 'all'", rank_,
                     rank, network_, ucs_status_string(status));
}

ucp_request_param_t UcxFabric::Parameters(Operation& operation) const {
  ucp_request_param_t parameters{};
  parameters.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  parameters.user_data = &operation;
  if (operation.kind == Operation::Kind::kSend)
    parameters.cb.send = &UcxFabric::OnSent;
  else
    parameters.cb.recv = &UcxFabric::OnReceived;
  return parameters;
}

void UcxFabric::Post(const OperationRef& operation) {
  held_.Hold(operation);
  operation->library_owner = this;
  ucp_request_param_t parameters = Parameters(*operation);
  if (operation->kind == Operation::Kind::kSend) {
    Settle(*operation,
           ucp_tag_send_nbx(PeerOf(operation->peer).endpoint, operation->data, operation->bytes,
                            WireTag(rank_, operation->tag), &parameters));
    return;
  }
  // UCX 1.13 tells the length of a message that it finds waiting only to the callback.
  parameters.op_attr_mask |= UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  Settle(*operation,
         ucp_tag_recv_nbx(worker_, operation->data, operation->bytes,
                          WireTag(operation->peer, operation->tag), ~uint64_t{0}, &parameters));
}

// A synchronous send makes both ends know each other's endpoint, which UCX otherwise puts off until
// the first long message; a peer that is closed just then would make UCX abort.
void UcxFabric::PostFirst(const OperationRef& operation) {
  held_.Hold(operation);
  operation->library_owner = this;
  const ucp_request_param_t parameters = Parameters(*operation);
  Settle(*operation,
         ucp_tag_send_sync_nbx(PeerOf(operation->peer).endpoint, operation->data, operation->bytes,
                               WireTag(rank_, operation->tag), &parameters));
}

void UcxFabric::PostLast(const OperationRef& operation) {
  const ucp_ep_h endpoint = PeerOf(operation->peer).endpoint;
  ucp_request_param_t forget{};
  forget.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK;
  forget.cb.send = [](void* request, ucs_status_t, void*) { ucp_request_free(request); };
  const ucs_status_ptr_t sent = ucp_tag_send_nbx(endpoint, operation->data, operation->bytes,
                                                 WireTag(rank_, operation->tag), &forget);
  if (UCS_PTR_IS_ERR(sent)) return operation->Finish(FromUcs(UCS_PTR_STATUS(sent), *operation));
  held_.Hold(operation);
  operation->library_owner = this;
  const ucp_request_param_t parameters = Parameters(*operation);
  Settle(*operation, ucp_ep_flush_nbx(endpoint, &parameters));
}

// What a call that starts something returned: under way (or done, if the callback came first),
// done, or failed.
void UcxFabric::Settle(Operation& operation, ucs_status_ptr_t result) {
  if (UCS_PTR_IS_PTR(result)) {
    operation.library_handle = result;
    return;
  }
  operation.Finish(FromUcs(UCS_PTR_RAW_STATUS(result), operation));
  held_.Release(operation);
}

void UcxFabric::OnSent(void* request, ucs_status_t status, void* user) {
  auto& operation = *static_cast<Operation*>(user);
  if (!FabricOf(operation)->closes_) operation.Finish(FromUcs(status, operation));
  ucp_request_free(request);
  FabricOf(operation)->held_.Release(operation);
}

void UcxFabric::OnReceived(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                           void* user) {
  auto& operation = *static_cast<Operation*>(user);
  if (FabricOf(operation)->closes_) {
    // Why it ends is not UCX's to say.
  } else if (status == UCS_OK) {
    operation.FinishReceive(info->length);
  } else {
    operation.Finish(FromUcs(status, operation));
  }
  ucp_request_free(request);
  FabricOf(operation)->held_.Release(operation);
}

void UcxFabric::OnLinkFailure(void* user, ucp_ep_h, ucs_status_t status) {
  const auto& peer = *static_cast<Peer*>(user);
  peer.fabric->failures_.push_back(
      {peer.rank, fmt::format("UCX says {}", ucs_status_string(status))});
}

void UcxFabric::Cancel(Operation& receive) { ucp_request_cancel(worker_, receive.library_handle); }

void UcxFabric::DropPeer(int rank) {
  Peer& peer = PeerOf(rank);
  if (peer.endpoint == nullptr || !peer.reports_errors) return;
  ucp_request_param_t parameters{};
  parameters.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t result =
      ucp_ep_close_nbx(std::exchange(peer.endpoint, nullptr), &parameters);
  if (UCS_PTR_IS_PTR(result)) closing_.push_back(result);
}

absl::Duration UcxFabric::Arm() {
  return ucp_worker_arm(worker_) == UCS_OK ? absl::InfiniteDuration() : absl::ZeroDuration();
}

}  // namespace

bool UcxIsBuilt() { return true; }

absl::StatusOr<std::unique_ptr<Fabric>> NewUcxFabric(const TransportOptions& options) {
  return UcxFabric::Create(options);
}

}  // namespace perdure
