#include "runtime/agent/snapshot_fetch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// When a connection takes no more, how long until it is tried again.
constexpr absl::Duration kSendPause = absl::Milliseconds(2);

// False: the file does not have so many bytes there, or cannot be read.
bool ReadWhole(int fd, uint64_t offset, std::string& bytes) {
  for (size_t got = 0; got < bytes.size();) {
    const ssize_t count =
        ::pread(fd, bytes.data() + got, bytes.size() - got, static_cast<off_t>(offset + got));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    got += static_cast<size_t>(count);
  }
  return true;
}

absl::Status WriteWhole(int fd, uint64_t offset, const std::string& bytes) {
  for (size_t put = 0; put < bytes.size();) {
    const ssize_t count =
        ::pwrite(fd, bytes.data() + put, bytes.size() - put, static_cast<off_t>(offset + put));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, "write a snapshot that is being fetched");
    put += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

// ---- answering

SnapshotServer::SnapshotServer(EventLoop* loop, PathOf path_of, SendSnapshotFrame send)
    : loop_(loop), path_of_(std::move(path_of)), send_(std::move(send)) {}

SnapshotServer::~SnapshotServer() { loop_->CancelTimer(timer_); }

size_t SnapshotServer::waiting() const {
  size_t count = 0;
  for (const auto& [_, fetches] : waiting_) count += fetches.size();
  return count;
}

void SnapshotServer::Answer(NodeId from, const Fetch& fetch) {
  std::deque<Fetch>& fetches = waiting_[from];
  if (fetches.size() >= kWaitingMax) {
    (void)send_(from, Refused{.number = fetch.number, .why = Refused::Why::kBusy});
    return;
  }
  fetches.push_back(fetch);
  if (timer_.number == 0) Arm(absl::ZeroDuration());
}

void SnapshotServer::Arm(absl::Duration after) {
  timer_ = loop_->AddTimer(MonotonicNow() + after, [this] {
    timer_ = {};
    Work();
  });
}

SnapshotFrame SnapshotServer::AnswerOf(const Fetch& fetch) const {
  const Refused refused{.number = fetch.number, .why = Refused::Why::kNotHeld};
  const absl::StatusOr<std::string> path = path_of_(fetch);
  if (!path.ok()) return refused;
  const UniqueFd fd(::open(path->c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat facts {};
  if (!fd.open() || ::fstat(fd.get(), &facts) != 0) return refused;
  SnapshotPiece piece{.number = fetch.number,
                      .file_bytes = static_cast<uint64_t>(facts.st_size),
                      .bytes = std::string(fetch.bytes, '\0')};
  if (!ReadWhole(fd.get(), fetch.offset, piece.bytes)) return refused;
  return piece;
}

// One answer for each node in a round of the loop: heartbeats do not wait for snapshots.
void SnapshotServer::Work() {
  bool full = false, more = false;
  for (auto& [node, fetches] : waiting_) {
    if (fetches.empty()) continue;
    const absl::Status sent = send_(node, AnswerOf(fetches.front()));
    if (absl::IsResourceExhausted(sent)) {
      full = true;
      continue;
    }
    fetches.pop_front();  // Who cannot be reached any more asks again, or somebody else.
    more |= !fetches.empty();
  }
  std::erase_if(waiting_, [](const auto& entry) { return entry.second.empty(); });
  if (more || full) Arm(more ? absl::ZeroDuration() : kSendPause);
}

// ---- asking

SnapshotFetch::SnapshotFetch(EventLoop* loop, const Options& options, SendSnapshotFrame send)
    : loop_(loop), options_(options), send_(std::move(send)) {}

SnapshotFetch::~SnapshotFetch() {
  *wanted_ = false;
  loop_->CancelTimer(timer_);
}

void SnapshotFetch::CancelAll() {
  *std::exchange(wanted_, std::make_shared<bool>(true)) = false;
  jobs_.clear();
  questions_.clear();  // What still comes is an answer to no question.
  open_.clear();
}

absl::Status SnapshotFetch::Open(Job& job) const {
  const Order& order = job.order;
  for (const ByteRange& range : order.ranges) {
    if (range.offset < 0 || range.bytes < 0 ||
        range.bytes > static_cast<int64_t>(kFetchOffsetMax) - range.offset)
      return InvalidArgument("{} bytes at {} of the snapshot of rank {}", range.bytes, range.offset,
                             order.rank);
    for (int64_t done = 0; done < range.bytes; done += kPieceBytesMax)
      job.parts.push_back(
          {.offset = static_cast<uint64_t>(range.offset + done),
           .bytes = static_cast<uint32_t>(std::min<int64_t>(kPieceBytesMax, range.bytes - done))});
  }
  (void)::unlink(order.path.c_str());
  job.file = UniqueFd(
      ::open(order.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!job.file.open()) return ErrnoStatus(errno, "make " + order.path);
  return absl::OkStatus();
}

void SnapshotFetch::Begin(Order order, Then then) {
  const uint64_t id = ++jobs_begun_;
  Job& job = jobs_[id];
  job.order = std::move(order);
  job.then = std::move(then);
  job.heard = MonotonicNow();
  absl::Status opened = Open(job);
  if (opened.ok() && job.order.holders.empty())
    opened = Unavailable("no node holds the snapshot of rank {} at step {} of generation {}",
                         job.order.rank, job.order.step, job.order.generation);
  if (!opened.ok() || job.parts.empty()) {
    Finish(id, opened);
    return;
  }
  Pump();
}

// False: the holder's window is full, or nothing is left to be asked.
bool SnapshotFetch::Ask(uint64_t id, Job& job) {
  const NodeId holder = job.order.holders[job.holder];
  size_t& open = open_[holder];
  if (job.parts.empty() || open >= options_.window) return false;
  const Part part = job.parts.front();
  const absl::Status sent = send_(holder, Fetch{.number = ++asked_,
                                                .generation = job.order.generation,
                                                .step = job.order.step,
                                                .rank = job.order.rank,
                                                .offset = part.offset,
                                                .bytes = part.bytes});
  if (!sent.ok()) return false;  // The timer tries again, and gives the holder up in time.
  job.parts.pop_front();
  ++job.open;
  ++open;
  questions_[asked_] = {.job = id, .holder = holder, .part = part};
  return true;
}

void SnapshotFetch::Pump() {
  for (auto& [id, job] : jobs_)
    if (job.file.open())
      while (job.holder < job.order.holders.size() && Ask(id, job)) {
      }
  Arm();
}

void SnapshotFetch::Arm() {
  if (jobs_.empty() || timer_.number != 0) return;
  timer_ = loop_->AddTimer(MonotonicNow() + options_.retry, [this] {
    timer_ = {};
    const absl::Time now = MonotonicNow();
    std::vector<uint64_t> late;
    for (auto& [id, job] : jobs_) {
      // Who waits for its turn at a holder that answers others is not late.
      const bool waits = job.open == 0 && job.holder < job.order.holders.size() &&
                         open_[job.order.holders[job.holder]] >= options_.window;
      if (waits) job.heard = now;
      if (now - job.heard > options_.timeout) late.push_back(id);
    }
    for (const uint64_t id : late) {
      ++counters_.timeouts;
      NextHolder(id, jobs_.at(id),
                 fmt::format("did not answer for {}", absl::FormatDuration(options_.timeout)));
    }
    Pump();
  });
}

// Forgets questions; what they asked for is to be asked again.
void SnapshotFetch::Withdraw(const std::function<bool(const Question&)>& which) {
  for (auto at = questions_.begin(); at != questions_.end();) {
    const Question& question = at->second;
    if (!which(question)) {
      ++at;
      continue;
    }
    Job& job = jobs_.at(question.job);
    --job.open;
    --open_[question.holder];
    job.parts.push_back(question.part);
    at = questions_.erase(at);
  }
}

void SnapshotFetch::Lost(NodeId holder) {
  Withdraw([=](const Question& question) { return question.holder == holder; });
  Arm();
}

void SnapshotFetch::NextHolder(uint64_t id, Job& job, const std::string& why) {
  job.trouble += fmt::format("{}node {} {}", job.trouble.empty() ? "" : "; ",
                             job.order.holders[job.holder], why);
  Withdraw([=](const Question& question) { return question.job == id; });
  job.heard = MonotonicNow();
  if (++job.holder < job.order.holders.size()) return;
  Finish(id, Unavailable("the snapshot of rank {} at step {} of generation {}: {}", job.order.rank,
                         job.order.step, job.order.generation, job.trouble));
}

void SnapshotFetch::Finish(uint64_t id, absl::Status status) {
  Job& job = jobs_.at(id);
  Withdraw([=](const Question& question) { return question.job == id; });
  const Then then = std::move(job.then);
  jobs_.erase(id);
  // Never from inside a call of somebody else.
  loop_->AddTimer(MonotonicNow(), [then, wanted = wanted_, status = std::move(status)] {
    if (*wanted) then(status);
  });
}

// What is not asked for stays a hole, but the file is as long as the one it is a copy of.
absl::Status SnapshotFetch::Write(Job& job, const Part& part, const SnapshotPiece& piece) const {
  if (job.file_bytes != piece.file_bytes) {
    job.file_bytes = piece.file_bytes;
    if (::ftruncate(job.file.get(), static_cast<off_t>(piece.file_bytes)) != 0)
      return ErrnoStatus(errno, "size " + job.order.path);
  }
  return WriteWhole(job.file.get(), part.offset, piece.bytes);
}

void SnapshotFetch::Take(NodeId from, const SnapshotPiece& piece) {
  const auto at = questions_.find(piece.number);
  if (at == questions_.end() || at->second.holder != from ||
      at->second.part.bytes != piece.bytes.size() ||
      piece.file_bytes < at->second.part.offset + piece.bytes.size()) {
    ++counters_.strange;
    return;
  }
  const Question question = at->second;
  questions_.erase(at);
  --open_[from];
  Job& job = jobs_.at(question.job);
  --job.open;
  job.heard = MonotonicNow();
  ++counters_.pieces;
  counters_.bytes += piece.bytes.size();
  const absl::Status written = Write(job, question.part, piece);
  if (!written.ok() || (job.parts.empty() && job.open == 0)) Finish(question.job, written);
  Pump();
}

void SnapshotFetch::Take(NodeId from, const Refused& refused) {
  const auto at = questions_.find(refused.number);
  if (at == questions_.end() || at->second.holder != from) {
    ++counters_.strange;
    return;
  }
  ++counters_.refused;
  const Question question = at->second;
  Job& job = jobs_.at(question.job);
  if (refused.why == Refused::Why::kBusy) {
    questions_.erase(at);
    --open_[from];
    --job.open;
    job.parts.push_back(question.part);
    Arm();  // Asked again later; a holder that is busy for ever is given up as one that is silent.
    return;
  }
  NextHolder(question.job, job, "does not hold it");
  Pump();
}

}  // namespace perdure
