#include "launch/job_clock.h"

#include <utility>

#include "absl/time/clock.h"
#include "model/parameters.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// Each question is a process here and work for a controller that all users share.
constexpr absl::Duration kAskEvery = absl::Minutes(5);

absl::Time Monotonic(absl::Time time_of_day) {
  return MonotonicNow() + (time_of_day - absl::Now());
}

}  // namespace

absl::Duration SaveGuess(const RunConfig& config, int64_t nodes) {
  constexpr double kBytesPerSecond = 250e6;
  double bytes = 0;
  for (const TensorSpec& tensor : ModelTensors(config.model, config.numerics.tensor_shards))
    bytes += 12.0 * static_cast<double>(tensor.size());
  return absl::Seconds(3) + absl::Seconds(bytes / static_cast<double>(nodes) / kBytesPerSecond);
}

JobClock::JobClock(EventLoop* loop, Options options)
    : loop_(loop),
      options_(std::move(options)),
      leave_(options_.leave),
      end_(Monotonic(options_.end)) {}

absl::StatusOr<std::unique_ptr<JobClock>> JobClock::New(EventLoop* loop, Options options) {
  std::unique_ptr<JobClock> clock(new JobClock(loop, std::move(options)));
  if (clock->options_.ask == nullptr) return clock;
  ASSIGN_OR_RETURN(clock->worker_, Worker::Start());
  RETURN_IF_ERROR(loop->AddFd(clock->worker_->fd(), EventLoop::kReadable,
                              [worker = clock->worker_.get()](uint32_t) { worker->Drain(); }));
  return clock;
}

JobClock::~JobClock() {
  if (worker_ != nullptr) loop_->RemoveFd(worker_->fd());
}

void JobClock::See(absl::Time now, const Sight& sight) {
  if (worker_ != nullptr && !asking_ && now >= asked_ + kAskEvery) Ask(now);
  const bool same = sight_.has_value() && sight_->generation == sight.generation;
  if (same && sight.finished > sight_->finished)
    // The first one of a generation has no beginning that could be seen.
    if (stepped_at_ != absl::InfinitePast())
      leave_.Stepped((now - stepped_at_) / (sight.finished - sight_->finished));
  if (!same || sight.finished > sight_->finished) stepped_at_ = same ? now : absl::InfinitePast();
  if (sight_.has_value() && sight_->saving >= 0 && sight.saving != sight_->saving &&
      sight.committed >= sight_->saving)
    leave_.Saved(now - saving_since_);
  if (sight.saving >= 0 && (!sight_.has_value() || sight_->saving != sight.saving))
    saving_since_ = now;
  sight_ = sight;
}

absl::Time JobClock::EndsAt() const {
  return end_ == absl::InfiniteFuture() ? end_ : absl::Now() + (end_ - MonotonicNow());
}

void JobClock::Ask(absl::Time now) {
  asking_ = true;
  asked_ = now;
  worker_->Post([this]() -> Worker::Then {
    absl::StatusOr<absl::Time> end = options_.ask();
    return [this, end = std::move(end)] {
      asking_ = false;
      if (end.ok()) {
        end_ = Monotonic(*end);
        warned_ = false;
        return;
      }
      if (!std::exchange(warned_, true) && options_.warn != nullptr)
        options_.warn("the end of this job's time is not asked anew: " + Message(end.status()));
    };
  });
}

nlohmann::json JobClock::Reason(absl::Time now) const {
  return {{"left", absl::ToDoubleSeconds(end_ - now)},
          {"needs", absl::ToDoubleSeconds(leave_.Needs())},
          {"step", absl::ToDoubleSeconds(leave_.step())},
          {"save", absl::ToDoubleSeconds(leave_.save())}};
}

}  // namespace perdure
