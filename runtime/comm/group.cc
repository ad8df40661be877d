#include "runtime/comm/group.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A tag: one bit for collectives, the channel, then the collective's sequence number or the
// caller's operation.
constexpr int kChannelBits = 12;
constexpr int kOperationBits = 20;
constexpr int kSequenceBits = kTagBits - 1 - kChannelBits;
constexpr Tag kCollective = Tag{1} << (kTagBits - 1);

// From here on an all-reduce sums shares of the vector instead of all of it everywhere.
constexpr size_t kSharedSumBytes = 32768;
constexpr int64_t kSumChunk = 1024;  // Floats; one per member stays in the first-level cache.
constexpr int kDirectBarrierMax = 16;

const std::byte* Bytes(const void* data) { return static_cast<const std::byte*>(data); }
std::byte* Bytes(void* data) { return static_cast<std::byte*>(data); }

void Copy(const void* from, size_t bytes, void* to) {
  if (bytes > 0 && from != to) std::memmove(to, from, bytes);
}

void Add(const float* left, const float* right, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

// out = the sum of `terms`, `count` floats each, by the balanced binary tree over their index:
// neighbours first, then neighbouring pairs, and so on; without a neighbour a partial sum waits for
// the next level. Overwrites `scratch`, terms.size() times kSumChunk floats. `out` may be one of
// the terms.
void TreeSum(std::span<const float* const> terms, int64_t count, float* out, float* scratch) {
  std::vector<const float*> level(terms.begin(), terms.end());
  for (int64_t begin = 0; begin < count; begin += kSumChunk) {
    const int64_t chunk = std::min(kSumChunk, count - begin);
    for (size_t i = 0; i < terms.size(); ++i) level[i] = terms[i] + begin;
    for (size_t stride = 1; stride < level.size(); stride *= 2) {
      const bool last = stride * 2 >= level.size();
      for (size_t i = 0; i + stride < level.size(); i += stride * 2) {
        float* sum = last ? out + begin : scratch + static_cast<int64_t>(i) * kSumChunk;
        Add(level[i], level[i + stride], chunk, sum);
        level[i] = sum;
      }
    }
    if (level.size() == 1) Copy(level[0], static_cast<size_t>(chunk) * sizeof(float), out + begin);
  }
}

}  // namespace

Group::Group(Transport* transport, std::vector<int> members, uint32_t channel)
    : transport_(transport), members_(std::move(members)), channel_(channel) {
  PERDURE_CHECK(channel < 1U << kChannelBits);
  const auto own = std::find(members_.begin(), members_.end(), transport->rank());
  PERDURE_CHECK(own != members_.end());
  index_ = static_cast<int>(own - members_.begin());
  std::vector<int> sorted = members_;
  std::sort(sorted.begin(), sorted.end());
  PERDURE_CHECK(sorted.front() >= 0 && sorted.back() < transport->size());
  PERDURE_CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
}

int Group::size() const { return static_cast<int>(members_.size()); }
int Group::index() const { return index_; }
Transport* Group::transport() const { return transport_; }
absl::Status Group::Watch() { return transport_->cancelled(); }
double Group::wait_seconds() const { return wait_seconds_; }

absl::Status Group::WaitAll(std::span<const RequestPtr> requests) {
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = transport_->WaitAll(requests);
  wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

std::vector<RequestPtr> Group::Start(uint32_t operation, std::span<const Transfer> transfers) {
  std::vector<RequestPtr> requests;
  for (const Transfer& t : transfers)
    requests.push_back(t.kind == Transfer::Kind::kSend
                           ? Send(t.member, operation, t.data, t.bytes)
                           : Recv(t.member, operation, t.data, t.bytes));
  return requests;
}

RequestPtr Group::Send(int member, uint32_t operation, const void* data, size_t bytes) {
  PERDURE_CHECK(operation < 1U << kOperationBits);
  return transport_->Send(members_[static_cast<size_t>(member)],
                          Tag{channel_} << kOperationBits | operation, data, bytes);
}

RequestPtr Group::Recv(int member, uint32_t operation, void* data, size_t bytes) {
  PERDURE_CHECK(operation < 1U << kOperationBits);
  return transport_->Recv(members_[static_cast<size_t>(member)],
                          Tag{channel_} << kOperationBits | operation, data, bytes);
}

// One round of messages under one tag: receives first, so that none arrives unexpected; then sends,
// each member starting with its right-hand neighbour, so that nobody is everybody's first.
class Group::Round {
 public:
  explicit Round(Group* group)
      : group_(*group),
        tag_(kCollective | Tag{group->channel_} << kSequenceBits |
             (group->sequence_++ & ((1U << kSequenceBits) - 1))) {
    requests_.reserve(2 * group->members_.size());
  }

  void Recv(int member, void* data, size_t bytes) {
    requests_.push_back(group_.transport_->Recv(Rank(member), tag_, data, bytes));
  }
  void Send(int member, const void* data, size_t bytes) {
    requests_.push_back(group_.transport_->Send(Rank(member), tag_, data, bytes));
  }
  absl::Status Wait() {
    absl::Status status = group_.WaitAll(requests_);
    requests_.clear();
    return status;
  }

  // Calls what(member) for every other member.
  template <typename What>
  void ForOthers(const What& what) const {
    for (int step = 1; step < group_.size(); ++step) what((group_.index_ + step) % group_.size());
  }

 private:
  int Rank(int member) const { return group_.members_[static_cast<size_t>(member)]; }

  Group& group_;
  const Tag tag_;
  std::vector<RequestPtr> requests_;
};

absl::Status Group::AllGather(const void* in, size_t bytes, void* out) {
  const auto block = [&](int member) { return Bytes(out) + static_cast<size_t>(member) * bytes; };
  Round round(this);
  round.ForOthers([&](int member) { round.Recv(member, block(member), bytes); });
  round.ForOthers([&](int member) { round.Send(member, in, bytes); });
  Copy(in, bytes, block(index_));
  return round.Wait();
}

absl::Status Group::AllGatherV(void* buffer, std::span<const Extent> extents) {
  PERDURE_CHECK(extents.size() == members_.size());
  const auto extent = [&](int member) { return extents[static_cast<size_t>(member)]; };
  Round round(this);
  round.ForOthers([&](int member) {
    round.Recv(member, Bytes(buffer) + extent(member).begin, extent(member).bytes);
  });
  round.ForOthers([&](int member) {
    round.Send(member, Bytes(buffer) + extent(index_).begin, extent(index_).bytes);
  });
  return round.Wait();
}

absl::Status Group::AllToAllV(const void* send, std::span<const Extent> send_extents, void* recv,
                              std::span<const Extent> recv_extents) {
  PERDURE_CHECK(send_extents.size() == members_.size());
  PERDURE_CHECK(recv_extents.size() == members_.size());
  const Extent own_send = send_extents[static_cast<size_t>(index_)];
  const Extent own_recv = recv_extents[static_cast<size_t>(index_)];
  PERDURE_CHECK(own_send.bytes == own_recv.bytes);
  Round round(this);
  round.ForOthers([&](int member) {
    const Extent extent = recv_extents[static_cast<size_t>(member)];
    round.Recv(member, Bytes(recv) + extent.begin, extent.bytes);
  });
  round.ForOthers([&](int member) {
    const Extent extent = send_extents[static_cast<size_t>(member)];
    round.Send(member, Bytes(send) + extent.begin, extent.bytes);
  });
  Copy(Bytes(send) + own_send.begin, own_send.bytes, Bytes(recv) + own_recv.begin);
  return round.Wait();
}

// A binomial tree over the distance from the root: a member gets the data from the one that differs
// in its highest bit, and hands it on to those above.
absl::Status Group::Broadcast(void* data, size_t bytes, int root) {
  PERDURE_CHECK(root >= 0 && root < size());
  Round round(this);
  const int distance = (index_ - root + size()) % size();
  if (distance > 0) {
    const int from = distance - static_cast<int>(std::bit_floor(static_cast<unsigned>(distance)));
    round.Recv((from + root) % size(), data, bytes);
    RETURN_IF_ERROR(round.Wait());
  }
  for (int step = static_cast<int>(std::bit_ceil(static_cast<unsigned>(size()))) / 2;
       step > distance; step /= 2)
    if (distance + step < size()) round.Send((distance + step + root) % size(), data, bytes);
  return round.Wait();
}

// Small groups: everybody to everybody, one sleep. Large ones: in round k with those 2^k away.
absl::Status Group::Barrier() {
  if (size() <= kDirectBarrierMax) return AllGather(nullptr, 0, nullptr);
  for (int step = 1; step < size(); step *= 2) {
    Round round(this);
    round.Recv((index_ - step + size()) % size(), nullptr, 0);
    round.Send((index_ + step) % size(), nullptr, 0);
    RETURN_IF_ERROR(round.Wait());
  }
  return absl::OkStatus();
}

float* Group::Scratch(int64_t floats) {
  if (scratch_.size() < static_cast<size_t>(floats)) scratch_.resize(static_cast<size_t>(floats));
  return scratch_.data();
}

absl::Status Group::ReduceScatterTree(const float* partial, int64_t count, float* out) {
  PERDURE_CHECK(std::has_single_bit(members_.size()));
  std::vector<int64_t> begins;
  for (int64_t i = 0; i <= size(); ++i) begins.push_back(i * count);
  return ReduceShares(partial, begins, out);
}

// Member i's share is [begins[i], begins[i + 1]); the caller's comes out in `out`.
absl::Status Group::ReduceShares(const float* partial, std::span<const int64_t> begins,
                                 float* out) {
  const auto share_begin = [&](int member) { return begins[static_cast<size_t>(member)]; };
  const auto share_bytes = [&](int member) {
    return static_cast<size_t>(share_begin(member + 1) - share_begin(member)) * sizeof(float);
  };
  const int64_t count = share_begin(index_ + 1) - share_begin(index_);
  float* scratch = Scratch(size() * (count + kSumChunk));
  std::vector<const float*> terms;
  terms.reserve(members_.size());
  for (int i = 0; i < size(); ++i)
    terms.push_back(i == index_ ? partial + share_begin(i) : scratch + i * count);
  Round round(this);
  round.ForOthers(
      [&](int member) { round.Recv(member, scratch + member * count, share_bytes(index_)); });
  round.ForOthers(
      [&](int member) { round.Send(member, partial + share_begin(member), share_bytes(member)); });
  RETURN_IF_ERROR(round.Wait());
  TreeSum(terms, count, out, scratch + size() * count);
  return absl::OkStatus();
}

absl::Status Group::AllReduceTree(const float* partial, int64_t count, float* out) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (bytes >= kSharedSumBytes && size() > 1) {
    std::vector<int64_t> begins;
    std::vector<Extent> extents;
    for (int64_t i = 0; i <= size(); ++i) begins.push_back(count * i / size());
    for (size_t i = 0; i < members_.size(); ++i)
      extents.push_back({static_cast<size_t>(begins[i]) * sizeof(float),
                         static_cast<size_t>(begins[i + 1] - begins[i]) * sizeof(float)});
    RETURN_IF_ERROR(ReduceShares(partial, begins, out + begins[static_cast<size_t>(index_)]));
    return AllGatherV(out, extents);
  }
  float* scratch = Scratch(size() * (count + kSumChunk));
  RETURN_IF_ERROR(AllGather(partial, bytes, scratch));
  std::vector<const float*> terms;
  terms.reserve(members_.size());
  for (int i = 0; i < size(); ++i) terms.push_back(scratch + i * count);
  TreeSum(terms, count, out, scratch + size() * count);
  return absl::OkStatus();
}

}  // namespace perdure
