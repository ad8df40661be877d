#include "runtime/comm/nccl_group.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/comm/group.h"
#include "runtime/comm/nccl_communicator.h"
#include "runtime/comm/self_exchange.h"

#if NCCL_VERSION_CODE < 22809
#error "NCCL 2.28.9 or newer is needed: before it, communicators hang at scale and on restart"
#endif

namespace perdure {
namespace {

constexpr int kVersionMin = 22809;

// Multiprocessors that the kernels of one communicator may hold while they wait. Collectives: as
// many as NCCL wants, they run on the ops' stream.
constexpr int kExchangeCtas = 8;
constexpr int kLaneCtas = 4;

// From here on an all-reduce sums shares of the vector instead of all of it everywhere.
constexpr size_t kSharedSumBytes = size_t{1} << 17;
constexpr int64_t kPartsMax = 64;     // Of Ops::TreeSum.
constexpr int64_t kShareAlign = 64;   // Floats: shares in work space begin at 256 bytes.
constexpr size_t kWarmUpBytes = 256;  // Of work space per message, of which four are sent.
constexpr absl::Duration kDrain = absl::Seconds(10);

size_t FloatBytes(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

char* Bytes(void* data) { return static_cast<char*>(data); }

cudaStream_t StreamOf(Ops* ops) { return static_cast<cudaStream_t>(ops->NativeStream()); }

absl::StatusOr<int> DeviceOf(Ops* ops) {
  int device = 0;
#if CUDART_VERSION >= 12080
  RETURN_IF_ERROR(CudaStatus(cudaStreamGetDevice(StreamOf(ops), &device), "cudaStreamGetDevice"));
#else
  (void)ops;  // It has made its device the thread's.
  RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
#endif
  return device;
}

// Events without timing, made as needed and used again.
class EventPool {
 public:
  EventPool() = default;
  ~EventPool() {
    for (cudaEvent_t event : free_) (void)cudaEventDestroy(event);
  }
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  absl::StatusOr<cudaEvent_t> Take() {
    cudaEvent_t event = nullptr;
    if (free_.empty()) {
      RETURN_IF_ERROR(
          CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
    } else {
      event = free_.back();
      free_.pop_back();
    }
    return event;
  }
  // An event may be recorded again while streams still wait for what it meant before.
  void Return(cudaEvent_t event) { free_.push_back(event); }

 private:
  std::vector<cudaEvent_t> free_;
};

// The request of one Start.
class Exchange final : public Request {
 public:
  explicit Exchange(std::shared_ptr<EventPool> pool) : pool_(std::move(pool)) {}
  ~Exchange() override {
    for (cudaEvent_t event : ends) pool_->Return(event);
  }

  bool done() const override {
    const bool over = std::all_of(ends.begin(), ends.end(), [](cudaEvent_t event) {
      return cudaEventQuery(event) != cudaErrorNotReady;
    });
    if (!over) (void)cudaGetLastError();  // "Not ready" must not pass for a launch's error.
    return over &&
           std::all_of(to_self.begin(), to_self.end(), [](const auto& met) { return *met; });
  }
  absl::Status status() const override { return error; }

  absl::Status error;
  std::vector<cudaEvent_t> ends;  // Recorded behind its messages.
  std::vector<SelfExchange::Met> to_self;

 private:
  std::shared_ptr<EventPool> pool_;
};

class NcclGroup final : public Collectives {
 public:
  NcclGroup(Transport* transport, std::vector<int> members, uint32_t channel, Ops* ops,
            StartOrder start_order)
      : ops_(ops),
        stream_(StreamOf(ops)),
        start_order_(start_order),
        host_(transport, std::move(members), channel),
        events_(std::make_shared<EventPool>()),
        self_(ops) {}
  ~NcclGroup() override;

  absl::Status Init();

  int size() const override { return host_.size(); }
  int index() const override { return host_.index(); }
  Transport* transport() const override { return host_.transport(); }
  std::string Describe() const override { return "nccl"; }

  absl::Status AllGather(const void* in, size_t bytes, void* out) override;
  absl::Status AllGatherV(void* buffer, std::span<const Extent> extents) override;
  absl::Status ReduceScatterTree(const float* partial, int64_t count, float* out) override;
  absl::Status AllReduceTree(const float* partial, int64_t count, float* out) override;
  std::vector<RequestPtr> Start(uint32_t operation, std::span<const Transfer> transfers) override;
  absl::Status WaitAll(std::span<const RequestPtr> requests) override;

  absl::Status Watch() override;
  void Abort() override;
  double wait_seconds() const override;

 private:
  // A communicator for exchanges and the stream that they run on.
  struct Lane {
    std::unique_ptr<NcclCommunicator> communicator;
    cudaStream_t stream = nullptr;
  };
  // Of kNeighbours, as they lie in lanes_; of kSame, lanes_[0] serves everybody.
  static constexpr size_t kLanes = 4;
  static size_t LaneOf(bool odd, bool sends) { return (odd ? 2U : 0U) + (sends ? 1U : 0U); }

  struct Ids {
    uint32_t result = ncclSuccess;
    std::array<ncclUniqueId, 3> ids{};  // Collectives, then kSame: exchanges; else even, odd lane.
  };
  absl::StatusOr<std::vector<Ids>> ExchangeIds();
  absl::Status OpenLane(Lane& lane, const ncclUniqueId& id, int members, int member, int ctas);
  absl::Status OpenLanes(const std::vector<Ids>& all);
  absl::Status WarmUp(Lane& lane, std::span<const Transfer> transfers);

  int Next() const { return (index() + 1) % size(); }
  int Previous() const { return (index() + size() - 1) % size(); }
  // What ncclSend or ncclRecv does with a transfer; `peer` is the other side's number.
  static ncclResult_t Issue(const Lane& lane, const Transfer& transfer, int peer);
  absl::Status Post(uint32_t operation, std::span<const Transfer> transfers, Exchange& exchange);
  absl::Status Launch(Lane& lane, std::span<const Transfer> transfers, Exchange& exchange);

  absl::Status Gather(void* buffer, std::span<const Extent> extents);
  absl::Status ReduceShares(const float* partial, std::span<const int64_t> begins, float* out);
  void Sum(std::span<const float* const> parts, int64_t count, float* out, float* spare);
  int64_t SpareOf(int64_t stride) const;
  float* Scratch(int64_t floats);

  // Remembers the first error: nothing is asked of NCCL after it.
  absl::Status Note(absl::Status status);
  // What Note remembers; looks whether the transport is cancelled first.
  absl::Status Failed();
  absl::Status CheckAsync();
  template <typename What>
  void ForCommunicators(const What& what) {
    if (collectives_ != nullptr) what(*collectives_);
    for (Lane& lane : lanes_)
      if (lane.communicator != nullptr) what(*lane.communicator);
  }

  Ops* ops_;
  const cudaStream_t stream_;  // The ops'.
  const StartOrder start_order_;
  int device_ = 0;
  Group host_;  // For the meeting, then for lost_.
  std::unique_ptr<LostPeers> lost_;
  std::unique_ptr<NcclCommunicator> collectives_;
  std::array<Lane, kLanes> lanes_;
  cudaEvent_t ready_ = nullptr;  // What the ops' stream held at the latest Start.
  std::shared_ptr<EventPool> events_;
  SelfExchange self_;
  float* scratch_ = nullptr;
  int64_t scratch_floats_ = 0;
  // Freeing device memory waits for the whole device, hence for other members' messages: work space
  // that has become too small is kept to the end.
  std::vector<void*> outgrown_;
  bool aborted_ = false;
  absl::Status failed_;
};

// --- life

absl::Status NcclGroup::Init() {
  int version = 0;
  RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&version), "ncclGetVersion"));
  if (version < kVersionMin)
    return FailedPrecondition(
        "rank {}: NCCL {} is loaded, at least {} is needed; install a newer libnccl.so.2 or choose "
        "the device transport 'staged'",
        transport()->rank(), version, kVersionMin);
  ASSIGN_OR_RETURN(device_, DeviceOf(ops_));
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "cudaSetDevice"));
  RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming), "cudaEventCreate"));
  if (size() == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<Ids> all, ExchangeIds());
  lost_ = std::make_unique<LostPeers>(&host_);
  collectives_ = std::make_unique<NcclCommunicator>(
      NcclCommunicator::Options{.device = device_, .size = size(), .index = index()}, lost_.get());
  RETURN_IF_ERROR(collectives_->Init(all[0].ids[0]));
  if (start_order_ == StartOrder::kNeighbours) return OpenLanes(all);
  RETURN_IF_ERROR(OpenLane(lanes_[0], all[0].ids[1], size(), index(), kExchangeCtas));
  std::vector<Transfer> everybody;
  for (int step = 1; step < size(); ++step) {
    const int member = (index() + step) % size();
    everybody.push_back({Transfer::Kind::kSend, member});
    everybody.push_back({Transfer::Kind::kRecv, member});
  }
  return WarmUp(lanes_[0], everybody);
}

// Whoever is the first member of a communicator makes its id; all see all ids.
absl::StatusOr<std::vector<NcclGroup::Ids>> NcclGroup::ExchangeIds() {
  const bool neighbours = start_order_ == StartOrder::kNeighbours;
  const bool mine[] = {index() == 0, neighbours || index() == 0, neighbours};
  Ids own;
  for (size_t i = 0; i < own.ids.size(); ++i)
    if (mine[i] && own.result == ncclSuccess)
      own.result = static_cast<uint32_t>(ncclGetUniqueId(&own.ids[i]));
  std::vector<Ids> all(static_cast<size_t>(size()));
  RETURN_IF_ERROR(host_.AllGather(&own, sizeof own, all.data()));
  for (size_t member = 0; member < all.size(); ++member) {
    if (all[member].result == ncclSuccess) continue;
    const absl::Status status =
        NcclStatus(static_cast<ncclResult_t>(all[member].result), "ncclGetUniqueId");
    return Unavailable("member {} of {}: {}; NCCL_SOCKET_IFNAME names the interfaces it may use",
                       member, size(), Message(status));
  }
  return all;
}

absl::Status NcclGroup::OpenLane(Lane& lane, const ncclUniqueId& id, int members, int member,
                                 int ctas) {
  int least = 0, greatest = 0;
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                             "cudaDeviceGetStreamPriorityRange"));
  // Messages are short and others wait for them: they go before what is computed.
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&lane.stream, cudaStreamNonBlocking, greatest),
                 "cudaStreamCreate"));
  lane.communicator = std::make_unique<NcclCommunicator>(
      NcclCommunicator::Options{
          .device = device_, .size = members, .index = member, .ctas_max = ctas},
      lost_.get());
  return lane.communicator->Init(id);
}

// Pair q of the ring is stages q and q + 1. Opening a lane waits for the other side, so pairs are
// opened by colour: those of one colour have no stage in common, hence everybody who is waited for
// comes.
absl::Status NcclGroup::OpenLanes(const std::vector<Ids>& all) {
  const int last = size() - 1;
  const auto colour = [&](int q) { return q < last ? q % 2 : size() % 2 == 0 ? 1 : 2; };
  // Lane 0 of a sender goes to the next stage, lane 1 to the one before.
  const auto open = [&](bool odd, int sender, int receiver) -> absl::Status {
    const bool sends = sender == index();
    Lane& lane = lanes_[LaneOf(odd, sends)];
    RETURN_IF_ERROR(OpenLane(lane, all[static_cast<size_t>(sender)].ids[odd ? 2 : 1], 2,
                             sends ? 0 : 1, kLaneCtas));
    const Transfer transfer{sends ? Transfer::Kind::kSend : Transfer::Kind::kRecv,
                            sends ? receiver : sender};
    return WarmUp(lane, {&transfer, 1});
  };
  for (int c = 0; c < 3; ++c)
    for (const int q : {index(), Previous()}) {
      if (colour(q) != c) continue;
      const int next = (q + 1) % size();
      RETURN_IF_ERROR(open(/*odd=*/false, q, next));
      RETURN_IF_ERROR(open(/*odd=*/true, next, q));
    }
  return absl::OkStatus();
}

// NCCL connects two members when they first send to each other, and the host waits for that: it
// must not happen later, when the other side may be waiting for something else.
absl::Status NcclGroup::WarmUp(Lane& lane, std::span<const Transfer> transfers) {
  void* memory = ops_->Allocate(kWarmUpBytes * transfers.size());
  std::vector<Transfer> messages(transfers.begin(), transfers.end());
  for (size_t i = 0; i < messages.size(); ++i) {
    messages[i].data = Bytes(memory) + i * kWarmUpBytes;
    messages[i].bytes = sizeof(float);
  }
  Exchange exchange(events_);
  absl::Status status = CudaStatus(cudaEventRecord(ready_, stream_), "cudaEventRecord");
  if (status.ok()) status = Launch(lane, messages, exchange);
  Patience patience(lost_.get());
  while (status.ok() && !exchange.done()) status = patience.Wait("the first message of a GPU");
  RETURN_IF_ERROR(status);  // The memory stays: a kernel may hold it.
  const cudaError_t error = cudaStreamQuery(lane.stream);
  if (error != cudaErrorNotReady) RETURN_IF_ERROR(CudaStatus(error, "the first message of a GPU"));
  ops_->Free(memory);
  return absl::OkStatus();
}

NcclGroup::~NcclGroup() {
  (void)Failed();
  // What was issued is given time to end, everywhere: see NcclCommunicator::Retire.
  const absl::Time deadline = absl::Now() + kDrain;
  const auto busy = [&] {
    bool any = !ops_->Idle();
    for (const Lane& lane : lanes_)
      any = any || (lane.stream != nullptr && cudaStreamQuery(lane.stream) == cudaErrorNotReady);
    (void)cudaGetLastError();
    return any;
  };
  const bool under_way = size() > 1 && collectives_ != nullptr;
  while (under_way && failed_.ok() && !aborted_ && busy() && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(1));
  const bool in_order = failed_.ok() && !aborted_ && (!under_way || !busy());
  ForCommunicators([&](NcclCommunicator& communicator) { communicator.Retire(in_order); });
  collectives_.reset();
  for (Lane& lane : lanes_) lane.communicator.reset();
  for (Lane& lane : lanes_)
    if (lane.stream != nullptr) (void)cudaStreamDestroy(lane.stream);
  if (ready_ != nullptr) (void)cudaEventDestroy(ready_);
  for (void* memory : outgrown_) ops_->Free(memory);
  ops_->Free(scratch_);
}

// NCCL seldom knows whom it has lost; the host transport does.
absl::Status NcclGroup::Note(absl::Status status) {
  if (status.ok() || !failed_.ok()) return status;
  const absl::Status lost = lost_ == nullptr ? absl::OkStatus() : lost_->Check();
  failed_ = lost.ok() || Message(lost) == Message(status)
                ? status
                : ErrorStatus(lost.code(), "{} ({})", Message(lost), Message(status));
  return failed_;
}

absl::Status NcclGroup::Failed() {
  failed_.Update(transport()->cancelled());
  return failed_;
}

absl::Status NcclGroup::CheckAsync() {
  absl::Status first = transport()->cancelled();
  ForCommunicators([&](NcclCommunicator& communicator) { first.Update(communicator.Check()); });
  (void)Note(first);
  return failed_;
}

absl::Status NcclGroup::Watch() {
  // A lost member is the better explanation of what NCCL has noticed.
  absl::Status status = lost_ == nullptr ? host_.Watch() : lost_->Check();
  status.Update(CheckAsync());
  return status;
}

void NcclGroup::Abort() {
  aborted_ = true;
  failed_.Update(
      FailedPrecondition("rank {}: this group of GPUs has been aborted; a new "
                         "generation makes a new one",
                         transport()->rank()));
  ForCommunicators([](NcclCommunicator& communicator) { communicator.Retire(false); });
}

double NcclGroup::wait_seconds() const {
  double seconds = host_.wait_seconds();
  if (collectives_ != nullptr) seconds += collectives_->wait_seconds();
  for (const Lane& lane : lanes_)
    if (lane.communicator != nullptr) seconds += lane.communicator->wait_seconds();
  return seconds;
}

// --- collectives, on the ops' stream

absl::Status NcclGroup::AllGather(const void* in, size_t bytes, void* out) {
  RETURN_IF_ERROR(Failed());
  if (bytes == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, in, bytes, out);
    return absl::OkStatus();
  }
  return Note(collectives_->Finish(
      ncclAllGather(in, out, bytes, ncclInt8, collectives_->handle(), stream_), "ncclAllGather"));
}

absl::Status NcclGroup::AllGatherV(void* buffer, std::span<const Extent> extents) {
  RETURN_IF_ERROR(Failed());
  PERDURE_CHECK(extents.size() == static_cast<size_t>(size()));
  if (size() == 1) return absl::OkStatus();
  return Note(Gather(buffer, extents));
}

// Blocks of one size that lie in order are an all-gather in place; others a broadcast each.
absl::Status NcclGroup::Gather(void* buffer, std::span<const Extent> extents) {
  const Extent first = extents[0];
  bool regular = true, empty = true;
  for (size_t i = 0; i < extents.size(); ++i) {
    regular = regular && extents[i].bytes == first.bytes &&
              extents[i].begin == first.begin + i * first.bytes;
    empty = empty && extents[i].bytes == 0;
  }
  if (empty) return absl::OkStatus();
  const ncclComm_t handle = collectives_->handle();
  if (regular) {
    char* out = Bytes(buffer) + first.begin;
    return collectives_->Finish(ncclAllGather(out + static_cast<size_t>(index()) * first.bytes, out,
                                              first.bytes, ncclInt8, handle, stream_),
                                "ncclAllGather");
  }
  return collectives_->Grouped("ncclBroadcast", [&] {
    ncclResult_t result = ncclSuccess;
    for (size_t i = 0; i < extents.size(); ++i) {
      if (extents[i].bytes == 0) continue;
      char* block = Bytes(buffer) + extents[i].begin;
      const ncclResult_t one = ncclBroadcast(block, block, extents[i].bytes, ncclInt8,
                                             static_cast<int>(i), handle, stream_);
      if (one != ncclSuccess && one != ncclInProgress) result = one;
    }
    return result;
  });
}

absl::Status NcclGroup::ReduceScatterTree(const float* partial, int64_t count, float* out) {
  RETURN_IF_ERROR(Failed());
  PERDURE_CHECK(std::has_single_bit(static_cast<unsigned>(size())));
  if (count == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, partial, FloatBytes(count), out);
    return absl::OkStatus();
  }
  std::vector<int64_t> begins;
  for (int64_t i = 0; i <= size(); ++i) begins.push_back(i * count);
  return Note(ReduceShares(partial, begins, out));
}

absl::Status NcclGroup::AllReduceTree(const float* partial, int64_t count, float* out) {
  RETURN_IF_ERROR(Failed());
  if (count == 0) return absl::OkStatus();
  if (size() == 1) {
    CopyBytes(ops_, partial, FloatBytes(count), out);
    return absl::OkStatus();
  }
  if (FloatBytes(count) >= kSharedSumBytes) {
    std::vector<int64_t> begins;
    std::vector<Extent> extents;
    for (int64_t i = 0; i <= size(); ++i) begins.push_back(count * i / size());
    for (size_t i = 0; i + 1 < begins.size(); ++i)
      extents.push_back({FloatBytes(begins[i]), FloatBytes(begins[i + 1] - begins[i])});
    RETURN_IF_ERROR(
        Note(ReduceShares(partial, begins, out + begins[static_cast<size_t>(index())])));
    return Note(Gather(out, extents));
  }
  float* all = Scratch(size() * count + SpareOf(count));
  RETURN_IF_ERROR(AllGather(partial, FloatBytes(count), all));
  std::vector<const float*> parts;
  for (int64_t i = 0; i < size(); ++i) parts.push_back(all + i * count);
  Sum(parts, count, out, all + size() * count);
  return absl::OkStatus();
}

// Member i's share is [begins[i], begins[i + 1]); the caller's comes out in `out`, which may be its
// place in `partial`.
absl::Status NcclGroup::ReduceShares(const float* partial, std::span<const int64_t> begins,
                                     float* out) {
  const auto share = [&](int member) {
    const auto i = static_cast<size_t>(member);
    return std::pair(begins[i], begins[i + 1] - begins[i]);
  };
  const int64_t count = share(index()).second;
  const int64_t stride = (count + kShareAlign - 1) / kShareAlign * kShareAlign;
  float* received = Scratch(size() * stride + SpareOf(stride));
  const ncclComm_t handle = collectives_->handle();
  RETURN_IF_ERROR(collectives_->Grouped("ncclSend and ncclRecv", [&] {
    ncclResult_t result = ncclSuccess;
    const auto note = [&](ncclResult_t one) {
      if (one != ncclSuccess && one != ncclInProgress) result = one;
    };
    for (int step = 1; step < size(); ++step) {
      const int to = (index() + step) % size(), from = (index() + size() - step) % size();
      const auto [begin, floats] = share(to);
      if (floats > 0)
        note(ncclSend(partial + begin, FloatBytes(floats), ncclInt8, to, handle, stream_));
      if (count > 0)
        note(
            ncclRecv(received + from * stride, FloatBytes(count), ncclInt8, from, handle, stream_));
    }
    return result;
  }));
  if (count == 0) return absl::OkStatus();
  std::vector<const float*> parts;
  for (int i = 0; i < size(); ++i)
    parts.push_back(i == index() ? partial + share(i).first : received + i * stride);
  Sum(parts, count, out, received + size() * stride);
  return absl::OkStatus();
}

// The tree that Group computes: the left side has as many parts as the largest power of two below
// the number of all. One operation where it can be, else two halves into `spare`.
void NcclGroup::Sum(std::span<const float* const> parts, int64_t count, float* out, float* spare) {
  const auto all = static_cast<int64_t>(parts.size());
  std::vector<ConstMatrix> terms;
  if (all <= kPartsMax && std::has_single_bit(parts.size())) {
    for (const float* part : parts) terms.emplace_back(part, DType::kF32, 1, count);
  } else {
    const size_t left = std::bit_ceil(parts.size()) / 2;
    const int64_t stride = (count + kShareAlign - 1) / kShareAlign * kShareAlign;
    Sum(parts.first(left), count, spare, spare + 2 * stride);
    Sum(parts.subspan(left), count, spare + stride, spare + 2 * stride);
    terms.emplace_back(spare, DType::kF32, 1, count);
    terms.emplace_back(spare + stride, DType::kF32, 1, count);
  }
  ops_->TreeSum(terms, ConstMatrix(), Matrix(out, DType::kF32, 1, count));
}

// Floats that Sum needs besides, for vectors of `count`: two for each level of halves.
int64_t NcclGroup::SpareOf(int64_t count) const {
  if (size() <= kPartsMax && std::has_single_bit(static_cast<unsigned>(size()))) return 0;
  const int64_t stride = (count + kShareAlign - 1) / kShareAlign * kShareAlign;
  return 2 * stride * static_cast<int64_t>(std::bit_width(static_cast<unsigned>(size())));
}

float* NcclGroup::Scratch(int64_t floats) {
  if (floats <= scratch_floats_) return scratch_;
  if (scratch_ != nullptr) outgrown_.push_back(scratch_);
  scratch_floats_ = std::max(floats, 2 * scratch_floats_);
  scratch_ = static_cast<float*>(ops_->Allocate(FloatBytes(scratch_floats_)));
  return scratch_;
}

// --- exchanges, on streams of their own

ncclResult_t NcclGroup::Issue(const Lane& lane, const Transfer& transfer, int peer) {
  const ncclComm_t handle = lane.communicator->handle();
  return transfer.kind == Transfer::Kind::kSend
             ? ncclSend(transfer.data, transfer.bytes, ncclInt8, peer, handle, lane.stream)
             : ncclRecv(transfer.data, transfer.bytes, ncclInt8, peer, handle, lane.stream);
}

// One group of messages behind ready_, and an event behind them.
absl::Status NcclGroup::Launch(Lane& lane, std::span<const Transfer> transfers,
                               Exchange& exchange) {
  const bool pair = start_order_ == StartOrder::kNeighbours;
  RETURN_IF_ERROR(CudaStatus(cudaStreamWaitEvent(lane.stream, ready_, 0), "cudaStreamWaitEvent"));
  RETURN_IF_ERROR(lane.communicator->Grouped("ncclSend and ncclRecv", [&] {
    ncclResult_t result = ncclSuccess;
    for (const Transfer& transfer : transfers) {
      // The sender is number 0 of a lane.
      const int peer = !pair ? transfer.member : transfer.kind == Transfer::Kind::kSend ? 1 : 0;
      const ncclResult_t one = Issue(lane, transfer, peer);
      if (one != ncclSuccess && one != ncclInProgress) result = one;
    }
    return result;
  }));
  ASSIGN_OR_RETURN(const cudaEvent_t end, events_->Take());
  exchange.ends.push_back(end);
  return CudaStatus(cudaEventRecord(end, lane.stream), "cudaEventRecord");
}

std::vector<RequestPtr> NcclGroup::Start(uint32_t operation, std::span<const Transfer> transfers) {
  auto exchange = std::make_unique<Exchange>(events_);
  exchange->error = Failed();
  if (exchange->error.ok()) exchange->error = Note(Post(operation, transfers, *exchange));
  std::vector<RequestPtr> requests;
  requests.push_back(std::move(exchange));
  return requests;
}

// Both sides know the length of a message, so both leave out an empty one.
absl::Status NcclGroup::Post(uint32_t operation, std::span<const Transfer> transfers,
                             Exchange& exchange) {
  std::vector<Transfer> messages;
  for (const Transfer& transfer : transfers) {
    if (transfer.member == index())
      exchange.to_self.push_back(self_.Post(operation, transfer));
    else if (transfer.bytes > 0)
      messages.push_back(transfer);
  }
  if (messages.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(ready_, stream_), "cudaEventRecord"));
  if (start_order_ == StartOrder::kSame) return Launch(lanes_[0], messages, exchange);
  const bool odd = operation % 2 != 0;
  for (const Transfer& message : messages) {
    const bool sends = message.kind == Transfer::Kind::kSend;
    PERDURE_CHECK(message.member == (odd == sends ? Previous() : Next()));
    RETURN_IF_ERROR(Launch(lanes_[LaneOf(odd, sends)], {&message, 1}, exchange));
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::WaitAll(std::span<const RequestPtr> requests) {
  absl::Status first;
  for (const RequestPtr& request : requests) {
    if (request == nullptr) continue;
    const auto& exchange = static_cast<const Exchange&>(*request);
    absl::Status status = exchange.error;
    for (const cudaEvent_t end : exchange.ends)
      if (status.ok())
        status = Note(CudaStatus(cudaStreamWaitEvent(stream_, end, 0), "cudaStreamWaitEvent"));
    for (const SelfExchange::Met& met : exchange.to_self)
      if (status.ok() && !*met)
        status = FailedPrecondition(
            "rank {} waits for a message to itself whose other side was never started",
            transport()->rank());
    first.Update(status);
  }
  first.Update(CheckAsync());
  return first;
}

}  // namespace

bool NcclIsBuilt() { return true; }

std::string NcclVersion() {
  int version = 0;
  (void)ncclGetVersion(&version);
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::string GpuIdentity(Ops* ops) {
  if (ops->NativeStream() == nullptr) return "";
  const absl::StatusOr<int> device = DeviceOf(ops);
  std::array<char, 32> bus{};
  if (!device.ok() ||
      !CudaStatus(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), *device), "")
           .ok())
    return "";
  // A machine's containers share its boot but may have names of their own.
  std::string host = ReadFile("/proc/sys/kernel/random/boot_id").value_or("");
  if (host.empty()) {
    std::array<char, 65> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0) return "";
    host = name.data();
  }
  return host.substr(0, host.find('\n')) + " " + bus.data();
}

absl::StatusOr<std::unique_ptr<Collectives>> NewNcclGroup(Transport* transport,
                                                          std::vector<int> members,
                                                          uint32_t channel, Ops* ops,
                                                          StartOrder start_order) {
  if (ops->NativeStream() == nullptr)
    return FailedPrecondition("rank {}: NCCL moves memory of CUDA devices only, not that of '{}'",
                              transport->rank(), ops->Describe());
  auto group =
      std::make_unique<NcclGroup>(transport, std::move(members), channel, ops, start_order);
  const absl::Status status = group->Init();
  if (!status.ok()) {
    group->Abort();
    return ErrorStatus(status.code(), "rank {}, NCCL: {}", transport->rank(), Message(status));
  }
  return group;
}

}  // namespace perdure
