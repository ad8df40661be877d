#include "runtime/agent/rank_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr size_t kWords = sizeof(Activity) / sizeof(uint64_t);
using Words = std::array<uint64_t, kWords>;
constexpr uint64_t kMagic = 0x31656761706b7270;  // "prkpage1"

}  // namespace

struct RankPage::Layout {
  struct Entry {
    // 2n + 1: the n-th activity is being written; 2n + 2: it is whole.
    std::atomic<uint64_t> state;
    std::array<std::atomic<uint64_t>, kWords> words;
  };
  uint64_t magic;
  // Written in the order until = 0, generation, until: whoever reads generation, until, generation
  // and finds his own twice has an `until` that was meant for him.
  std::atomic<uint64_t> generation;
  std::atomic<int64_t> until;  // Nanoseconds of CLOCK_MONOTONIC; 0: never.
  std::atomic<uint64_t> written;
  std::array<Entry, kActivities> entries;
};

absl::StatusOr<std::unique_ptr<RankPage>> RankPage::Map(UniqueFd fd) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  void* const memory =
      ::mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, "map a rank's page");
  return std::unique_ptr<RankPage>(new RankPage(std::move(fd), static_cast<Layout*>(memory)));
}

absl::StatusOr<std::unique_ptr<RankPage>> RankPage::Make() {
  UniqueFd fd(::memfd_create("perdure rank page", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.open()) return ErrnoStatus(errno, "make a rank's page (memfd_create)");
  if (::ftruncate(fd.get(), sizeof(Layout)) != 0) return ErrnoStatus(errno, "size a rank's page");
  // A rank that could shorten it would take the agent along.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return ErrnoStatus(errno, "seal a rank's page");
  ASSIGN_OR_RETURN(std::unique_ptr<RankPage> page, Map(std::move(fd)));
  page->page_->magic = kMagic;
  return page;
}

absl::StatusOr<std::unique_ptr<RankPage>> RankPage::Open(int fd) {
  UniqueFd own(fd);
  struct stat facts {};
  if (::fstat(fd, &facts) != 0 || facts.st_size != static_cast<off_t>(sizeof(Layout)))
    return InvalidArgument("descriptor {} is no rank's page", fd);
  ASSIGN_OR_RETURN(std::unique_ptr<RankPage> page, Map(std::move(own)));
  if (page->page_->magic != kMagic)
    return InvalidArgument("descriptor {} is no rank's page of this version", fd);
  return page;
}

RankPage::~RankPage() { ::munmap(page_, sizeof(Layout)); }

void RankPage::Join(Generation generation) {
  page_->until.store(0);
  page_->generation.store(generation);
}

void RankPage::Renew(Generation generation, absl::Time until) {
  if (generation == 0 || page_->generation.load() != generation) return;
  page_->until.store(std::max(page_->until.load(), absl::ToUnixNanos(until)));
}

absl::Time RankPage::LeaseOf(Generation generation) const {
  if (generation == 0 || page_->generation.load() != generation) return absl::InfinitePast();
  const int64_t until = page_->until.load();
  if (until == 0 || page_->generation.load() != generation) return absl::InfinitePast();
  return absl::FromUnixNanos(until);
}

void RankPage::Doing(const Activity& activity) {
  const uint64_t number = page_->written.load();
  Layout::Entry& entry = page_->entries[number % kActivities];
  const Words words = std::bit_cast<Words>(activity);
  entry.state.store(2 * number + 1);
  for (size_t i = 0; i < kWords; ++i) entry.words[i].store(words[i]);
  entry.state.store(2 * number + 2);
  page_->written.store(number + 1);
}

std::vector<Activity> RankPage::Activities() const {
  const uint64_t written = page_->written.load();
  std::vector<Activity> activities;
  for (uint64_t number = written - std::min<uint64_t>(written, kActivities); number < written;
       ++number) {
    const Layout::Entry& entry = page_->entries[number % kActivities];
    if (entry.state.load() != 2 * number + 2) continue;
    Words words;
    for (size_t i = 0; i < kWords; ++i) words[i] = entry.words[i].load();
    if (entry.state.load() != 2 * number + 2) continue;  // Overwritten meanwhile.
    activities.push_back(std::bit_cast<Activity>(words));
  }
  return activities;
}

}  // namespace perdure
