#include "runtime/control/block_placement.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"

namespace perdure {
namespace {

class Placer {
 public:
  Placer(const OfferedSlots& offered, std::span<const int32_t> source, std::vector<int32_t>& room,
         std::vector<int32_t>& at)
      : offered_(offered), source_(source), blocks_(offered.blocks()), room_(room), at_(at) {}

  void Run(int32_t spares) {
    for (const bool drained : {false, true}) {
      need_ = static_cast<int64_t>(std::count(at_.begin(), at_.end(), -1));
      if (need_ == 0) return;
      domains_.assign(static_cast<size_t>(offered_.domains()), {});
      open_.clear();
      FindHomes();
      if (drained)
        OpenDrained();
      else
        OpenHealthy(spares);
      FillDomains();
      GoHome();
      SpreadNewReplicas();
      FillUp();
    }
    PERDURE_CHECK(std::find(at_.begin(), at_.end(), -1) == at_.end());
  }

 private:
  struct Domain {
    int64_t free = 0;      // Blocks on its open nodes.
    int64_t wanted = 0;    // Blocks to be placed that would like to be here.
    int32_t replicas = 0;  // At home here.
    size_t next = 0;       // Of its open nodes, in open_.
  };

  bool InUse(int32_t node) const { return room_[node] < offered_.nodes()[node].blocks; }
  Domain& DomainOf(int32_t node) { return domains_[offered_.nodes()[node].domain]; }
  std::span<int32_t> BlocksOf(size_t replica) {
    return std::span(at_).subspan(replica * blocks_, blocks_);
  }

  void FindHomes();
  void OpenHealthy(int32_t spares);
  void OpenDrained();
  void OpenUntilEnough(std::vector<int32_t> nodes);
  void FillDomains();
  void Take(Domain& domain, int32_t& at);
  void GoHome();
  void SpreadNewReplicas();
  void FillUp();

  const OfferedSlots& offered_;
  const std::span<const int32_t> source_;
  const size_t blocks_;
  std::vector<int32_t>& room_;
  std::vector<int32_t>& at_;
  std::vector<Domain> domains_;
  std::vector<int32_t> home_;  // By replica: the domain with most of its blocks, -1: none.
  std::vector<int32_t> open_;  // Nodes that may be used, by domain.
  int64_t need_ = 0;
};

void Placer::FindHomes() {
  home_.assign(source_.size(), -1);
  std::vector<int32_t> count(domains_.size(), 0);
  for (size_t d = 0; d < source_.size(); ++d) {
    int32_t& home = home_[d];
    int64_t missing = 0;
    for (const int32_t node : BlocksOf(d)) {
      if (node < 0) {
        ++missing;
        continue;
      }
      const int32_t domain = offered_.nodes()[node].domain;
      ++count[domain];
      if (home < 0 || std::pair(-count[domain], domain) < std::pair(-count[home], home))
        home = domain;
    }
    for (const int32_t node : BlocksOf(d))
      if (node >= 0) count[offered_.nodes()[node].domain] = 0;
    if (home < 0) continue;
    ++domains_[home].replicas;
    domains_[home].wanted += missing;
  }
}

// Nodes in use, for new replicas also idle ones but for the spares; then as many more as it takes.
void Placer::OpenHealthy(int32_t spares) {
  const std::vector<OfferedSlots::Node>& nodes = offered_.nodes();
  std::vector<int32_t> idle;
  for (int32_t n = 0; n < static_cast<int32_t>(nodes.size()); ++n) {
    if (!nodes[n].drained && room_[n] > 0) (InUse(n) ? open_ : idle).push_back(n);
  }
  if (std::find(source_.begin(), source_.end(), -1) != source_.end()) {
    // Spares are the widest, of equals the coordinator's, then the highest.
    std::sort(idle.begin(), idle.end(), [&](int32_t a, int32_t b) {
      return std::tuple(nodes[a].blocks, nodes[a].coordinates, a) <
             std::tuple(nodes[b].blocks, nodes[b].coordinates, b);
    });
    const auto kept = std::clamp<int64_t>(spares, 0, static_cast<int64_t>(idle.size()));
    open_.insert(open_.end(), idle.begin(), idle.end() - kept);
    idle.erase(idle.begin(), idle.end() - kept);
  }
  OpenUntilEnough(std::move(idle));
}

void Placer::OpenDrained() {
  std::vector<int32_t> drained;
  for (int32_t n = 0; n < static_cast<int32_t>(room_.size()); ++n)
    if (offered_.nodes()[n].drained && room_[n] > 0) drained.push_back(n);
  OpenUntilEnough(std::move(drained));
}

// Those first whose domain is home to most of what is to be placed, the coordinator's last.
void Placer::OpenUntilEnough(std::vector<int32_t> nodes) {
  int64_t room = 0;
  for (const int32_t n : open_) room += room_[n];
  std::sort(nodes.begin(), nodes.end(), [&](int32_t a, int32_t b) {
    const auto order = [&](int32_t n) {
      return std::tuple(-DomainOf(n).wanted, offered_.nodes()[n].coordinates, n);
    };
    return order(a) < order(b);
  });
  for (const int32_t n : nodes) {
    if (room >= need_) return;
    open_.push_back(n);
    room += room_[n];
  }
}

void Placer::FillDomains() {
  std::sort(open_.begin(), open_.end(), [&](int32_t a, int32_t b) {
    const auto order = [&](int32_t n) {
      return std::tuple(offered_.nodes()[n].domain, !InUse(n), n);
    };
    return order(a) < order(b);
  });
  for (size_t i = 0; i < open_.size(); ++i) {
    Domain& domain = DomainOf(open_[i]);
    if (domain.free == 0) domain.next = i;
    domain.free += room_[open_[i]];
  }
}

void Placer::Take(Domain& domain, int32_t& at) {
  PERDURE_CHECK(domain.free > 0);
  while (room_[open_[domain.next]] == 0) ++domain.next;
  at = open_[domain.next];
  --room_[at];
  --domain.free;
}

void Placer::GoHome() {
  for (size_t d = 0; d < source_.size(); ++d) {
    if (home_[d] < 0) continue;
    Domain& home = domains_[home_[d]];
    for (int32_t& at : BlocksOf(d))
      if (at < 0 && home.free > 0) Take(home, at);
  }
}

// Replicas without a home, each into one domain as long as one has room for a whole one.
void Placer::SpreadNewReplicas() {
  std::vector<Domain*> heap;
  for (Domain& domain : domains_)
    if (domain.free >= static_cast<int64_t>(blocks_)) heap.push_back(&domain);
  // The best on top: few replicas, much room, low number.
  const auto worse = [](const Domain* a, const Domain* b) {
    return std::tuple(a->replicas, -a->free, a) > std::tuple(b->replicas, -b->free, b);
  };
  std::make_heap(heap.begin(), heap.end(), worse);
  for (size_t d = 0; d < source_.size() && !heap.empty(); ++d) {
    if (home_[d] >= 0) continue;
    std::pop_heap(heap.begin(), heap.end(), worse);
    Domain& domain = *heap.back();
    for (int32_t& at : BlocksOf(d)) Take(domain, at);
    ++domain.replicas;
    if (domain.free >= static_cast<int64_t>(blocks_))
      std::push_heap(heap.begin(), heap.end(), worse);
    else
      heap.pop_back();
  }
}

// What no domain could take as a whole, from the emptiest domain on.
void Placer::FillUp() {
  std::vector<Domain*> left;
  for (Domain& domain : domains_)
    if (domain.free > 0) left.push_back(&domain);
  std::sort(left.begin(), left.end(), [](const Domain* a, const Domain* b) {
    return std::tuple(-a->free, a) < std::tuple(-b->free, b);
  });
  auto domain = left.begin();
  for (int32_t& at : at_) {
    if (at >= 0) continue;
    while (domain != left.end() && (*domain)->free == 0) ++domain;
    if (domain == left.end()) return;
    Take(**domain, at);
  }
}

}  // namespace

void PlaceBlocks(const OfferedSlots& offered, std::span<const int32_t> source, int32_t spares,
                 std::vector<int32_t>& room, std::vector<int32_t>& at) {
  Placer(offered, source, room, at).Run(spares);
}

}  // namespace perdure
