#include "runtime/agent/rank_link.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <utility>

#include "runtime/agent/rank_main.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

// Of one rank in a round of the loop: others are heard, too.
constexpr int kFramesTurn = 64;

}  // namespace

RankLink::RankLink(EventLoop* loop, const Options& options, Callbacks callbacks, FrameSocket socket,
                   std::unique_ptr<RankPage> page)
    : loop_(loop),
      options_(options),
      callbacks_(std::move(callbacks)),
      socket_(std::move(socket)),
      page_(std::move(page)) {}

absl::StatusOr<std::unique_ptr<RankLink>> RankLink::Start(EventLoop* loop, OomKills* oom,
                                                          const Options& options,
                                                          Callbacks callbacks) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoStatus(errno, "socketpair");
  FrameSocket ours(pair[0]);
  const UniqueFd theirs(pair[1]);
  ASSIGN_OR_RETURN(std::unique_ptr<RankPage> page, RankPage::Make());
  std::unique_ptr<RankLink> link(
      new RankLink(loop, options, std::move(callbacks), std::move(ours), std::move(page)));
  RankLink* const l = link.get();
  std::error_code none;
  const auto before = std::filesystem::file_size(options.log_path, none);
  l->log_begins_ = none ? 0 : static_cast<int64_t>(before);
  ASSIGN_OR_RETURN(l->process_,
                   SupervisedProcess::Start(loop, oom,
                                            {.argv = options.argv,
                                             .environment = options.environment,
                                             .descriptors = {{theirs.get(), kRankSocketFd},
                                                             {l->page_->fd(), kRankPageFd}},
                                             .log_path = options.log_path,
                                             .group = options.group},
                                            {.ended = [l](const ProcessEnd& end) { l->Ended(end); },
                                             .unkillable =
                                                 [l] {
                                                   if (l->callbacks_.unkillable)
                                                     l->callbacks_.unkillable();
                                                 }}));
  l->Watch();
  return link;
}

RankLink::~RankLink() {
  loop_->CancelTimer(leave_timer_);
  loop_->CancelTimer(read_timer_);
  if (watched_) loop_->RemoveFd(socket_.fd());
}

void RankLink::Watch() {
  const uint32_t events = EventLoop::kReadable | (queue_.empty() ? 0U : EventLoop::kWritable);
  if (watched_) {
    loop_->ChangeFd(socket_.fd(), events);
    return;
  }
  watched_ = loop_->AddFd(socket_.fd(), events, [this](uint32_t e) { OnEvents(e); }).ok();
  if (!watched_) Wrong("cannot be heard: no more descriptors can be watched");
}

void RankLink::OnEvents(uint32_t events) {
  if ((events & EventLoop::kWritable) != 0) Flush();
  if (open_ && (events & ~EventLoop::kWritable) != 0) ReadFrames(/*all=*/false);
}

void RankLink::ReadFrames(bool all) {
  for (int i = 0; open_ && (all || i < kFramesTurn); ++i) {
    absl::StatusOr<std::optional<Json>> json = socket_.TryReceive();
    if (!json.ok()) {
      // At the stream's end its own end is near, and says more.
      open_ = false;
      if (watched_) loop_->RemoveFd(socket_.fd());
      watched_ = false;
      if (!absl::IsUnavailable(json.status())) Wrong(Message(json.status()));
      return;
    }
    if (!json->has_value()) return;
    absl::StatusOr<from_rank::Frame> frame = ParseFromRank(**json);
    if (!frame.ok()) {
      Wrong(Message(frame.status()));
      return;
    }
    // What comes after what makes no sense does not count.
    if (wrong_.empty()) callbacks_.frame(*std::move(frame));
  }
  // The rest is not in the kernel any more, which would tell of it.
  if (open_ && !all) {
    loop_->CancelTimer(read_timer_);
    read_timer_ = loop_->AddTimer(MonotonicNow(), [this] { ReadFrames(/*all=*/false); });
  }
}

void RankLink::Wrong(std::string why) {
  if (wrong_.empty()) wrong_ = std::move(why);
  process_->Kill();
}

void RankLink::Send(const to_rank::Frame& frame) {
  if (!open_ || !process_->running()) return;
  absl::StatusOr<std::string> bytes = FrameBytes(ToJson(frame));
  if (!bytes.ok()) {
    Wrong(Message(bytes.status()));
    return;
  }
  if (queue_bytes_ + bytes->size() > options_.queue_bytes_max) {
    Wrong(fmt::format("does not read what it is told: {} bytes wait", queue_bytes_));
    return;
  }
  queue_bytes_ += bytes->size();
  queue_.push_back(*std::move(bytes));
  if (queue_.size() == 1) Flush();
}

void RankLink::Flush() {
  while (!queue_.empty()) {
    const std::string& bytes = queue_.front();
    const ssize_t count = ::send(socket_.fd(), bytes.data() + sent_, bytes.size() - sent_,
                                 MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (count < 0) {
      // It has closed its end: what it is told does not matter any more.
      queue_.clear();
      queue_bytes_ = sent_ = 0;
      break;
    }
    sent_ += static_cast<size_t>(count);
    if (sent_ < bytes.size()) continue;
    queue_bytes_ -= bytes.size();
    queue_.pop_front();
    sent_ = 0;
  }
  if (open_) Watch();
}

void RankLink::Leave(absl::Duration grace) {
  if (!running()) return;
  Send(to_rank::Leave{});
  loop_->CancelTimer(leave_timer_);
  leave_timer_ = loop_->AddTimer(MonotonicNow() + grace, [this, grace] { process_->End(grace); });
}

void RankLink::Ended(const ProcessEnd& end) {
  loop_->CancelTimer(leave_timer_);
  loop_->CancelTimer(read_timer_);
  ReadFrames(/*all=*/true);  // What it said before counts.
  callbacks_.ended(end, wrong_);
}

std::string RankLink::LogTail() const { return TailOfLog(options_.log_path, log_begins_); }

}  // namespace perdure
