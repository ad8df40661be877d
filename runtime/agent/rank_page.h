// A small page of memory that an agent shares with one of its rank processes: until when the rank
// may step, and what the rank does. It belongs to the agent, so that it outlives the rank: whoever
// was killed has still said what he did last.
//
// One thread of each process uses it; nothing in it blocks, and neither side believes the other
// more than it must: what the rank writes is only shown to people.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"
#include "runtime/control/ids.h"
#include "runtime/train/activity.h"

namespace perdure {

class RankPage {
 public:
  static constexpr size_t kActivities = 32;  // The newest that are kept.

  // The agent's: new memory (memfd), to be inherited as a descriptor.
  static absl::StatusOr<std::unique_ptr<RankPage>> Make();
  // The rank's: what it has inherited. InvalidArgument: that is no such page. Takes `fd` over.
  static absl::StatusOr<std::unique_ptr<RankPage>> Open(int fd);
  ~RankPage();
  RankPage(const RankPage&) = delete;
  RankPage& operator=(const RankPage&) = delete;

  int fd() const { return fd_.get(); }

  // ---- the agent writes, the rank reads

  // The rank belongs to `generation` from now on and may not step yet.
  void Join(Generation generation);
  // Only ever later; of another generation than the one that was joined: ignored. Times are
  // MonotonicNow()'s.
  void Renew(Generation generation, absl::Time until);
  // Until when a rank of that generation may step; InfinitePast: it may not.
  absl::Time LeaseOf(Generation generation) const;

  // ---- the rank writes, the agent reads

  void Doing(const Activity& activity);
  // The newest last; at most kActivities, fewer while the rank is writing.
  std::vector<Activity> Activities() const;

 private:
  struct Layout;
  RankPage(UniqueFd fd, Layout* page) : fd_(std::move(fd)), page_(page) {}
  static absl::StatusOr<std::unique_ptr<RankPage>> Map(UniqueFd fd);

  const UniqueFd fd_;
  Layout* const page_;
};

}  // namespace perdure
