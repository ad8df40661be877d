#include "runtime/agent/rank_line.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

// A lease comes without a frame, so it has to be looked for.
constexpr auto kLook = std::chrono::milliseconds(2);

constexpr size_t kFlipsMax = 64;  // That wait to be made.

// An answer to `order` in `answers`; none: null.
const from_rank::Written* AnswerTo(const std::vector<from_rank::Written>& answers,
                                   const to_rank::Write& order) {
  const auto at = std::find_if(answers.begin(), answers.end(),
                               [&](const auto& a) { return a.attempt == order.attempt; });
  return at == answers.end() ? nullptr : &*at;
}
const from_rank::Voted* AnswerTo(const std::vector<from_rank::Voted>& answers,
                                 const to_rank::Verify& order) {
  const auto at = std::find_if(answers.begin(), answers.end(), [&](const auto& a) {
    return a.attempt == order.attempt && a.file == order.file;
  });
  return at == answers.end() ? nullptr : &*at;
}

}  // namespace

RankLine::RankLine(FrameSocket* socket) : socket_(socket), receiver_([this] { Receive(); }) {}

RankLine::~RankLine() {
  socket_->ShutdownRead();
  receiver_.join();
}

absl::Status RankLine::Send(const from_rank::Frame& frame) {
  const std::lock_guard lock(send_mutex_);
  return socket_->Send(ToJson(frame));
}

// ---- the receiver

void RankLine::Receive() {
  for (;;) {
    const absl::StatusOr<Json> json = socket_->Receive();
    absl::StatusOr<to_rank::Frame> frame = json.ok() ? ParseToRank(*json) : json.status();
    std::deque<from_rank::Frame> again;
    {
      const std::lock_guard lock(mutex_);
      changed_.notify_all();
      if (frame.ok()) {
        lost_ = Take(*frame);
      } else {
        lost_ = absl::IsUnavailable(frame.status())
                    ? frame.status()
                    : Internal("the agent said what makes no sense: {}", Message(frame.status()));
      }
      if (!lost_.ok()) {
        Interrupt();
        return;
      }
      again.swap(again_);
    }
    for (const from_rank::Frame& answer : again) (void)Send(answer);
  }
}

absl::Status RankLine::Take(const to_rank::Frame& frame) {
  if (const auto* prepare = std::get_if<to_rank::Prepare>(&frame);
      prepare != nullptr && (active_ || leave_ || prepare->generation <= generation_))
    return Internal("the agent prepares generation {} while {} {}", prepare->generation,
                    generation_, active_ ? "runs" : "was the last");
  std::visit([this](const auto& f) { On(f); }, frame);
  return absl::OkStatus();
}

void RankLine::On(const to_rank::Prepare& frame) {
  generation_ = frame.generation;
  active_ = true;
  prepare_ = frame;
  const auto ranks = static_cast<size_t>(frame.tensor * frame.pipeline * frame.data);
  addresses_.assign(ranks, {});
  addressed_.assign(ranks, false);
  load_ = go_ = waits_ = interrupted_ = false;
  flips_.clear();
  fetched_.reset();
  stopping_ = Stopping::kNo;
  freeze_after_.reset();
  freezes_ = kNothingFrozen;
  last_ = pause_ = false;
  paused_ = -1;
  save_ = {};
}

void RankLine::On(const to_rank::Table& frame) {
  if (!Current(frame.generation)) return;
  for (size_t i = 0; i < frame.addresses.size(); ++i) {
    const size_t rank = static_cast<size_t>(frame.first) + i;
    if (rank >= addresses_.size()) return;
    addresses_[rank] = frame.addresses[i];
    addressed_[rank] = true;
  }
}

void RankLine::On(const to_rank::Load& frame) { load_ |= Current(frame.generation); }
void RankLine::On(const to_rank::Go& frame) { go_ |= Current(frame.generation); }
void RankLine::On(const to_rank::Leave&) { leave_ = true; }

// Said again until a state is frozen: once is enough.
void RankLine::On(const to_rank::Freeze& frame) {
  if (Current(frame.generation)) last_ |= frame.last;
  if (!Current(frame.generation) || frame.after <= freezes_) return;
  freeze_after_ = std::max(freeze_after_.value_or(-1), frame.after);
  pause_ = frame.pause;
}

void RankLine::On(const to_rank::Write& frame) {
  if (!Current(frame.generation) || frame.step != save_.step) return;
  if (const from_rank::Written* answer = AnswerTo(save_.written, frame)) {
    again_.emplace_back(*answer);
    return;
  }
  // What is being written, and what is older than that.
  if (!save_.writes.empty() && frame.attempt <= save_.writes.back().attempt) return;
  save_.writes.push_back(frame);
  save_.orders.emplace_back(frame);
}

void RankLine::On(const to_rank::Verify& frame) {
  if (!Current(frame.generation) || frame.step != save_.step) return;
  if (const from_rank::Voted* answer = AnswerTo(save_.voted, frame)) {
    again_.emplace_back(*answer);
    return;
  }
  for (const to_rank::Verify& known : save_.verifies)
    if (known.attempt == frame.attempt && known.file == frame.file) return;
  save_.verifies.push_back(frame);
  save_.verifies.back().part.clear();  // Only which one it is matters there.
  save_.orders.emplace_back(frame);
}

void RankLine::On(const to_rank::Settle& frame) {
  if (!Current(frame.generation) || frame.step != save_.step) return;
  save_.step = -1;  // Nothing is to be said about it any more.
  // What was asked for while it was waited with is this very state, said again.
  if (frame.step == paused_) freeze_after_.reset();
  save_.orders.emplace_back(frame);
}

void RankLine::On(const to_rank::Corrupt& frame) {
  if (Current(frame.generation) && flips_.size() < kFlipsMax) flips_.push_back(frame);
}

void RankLine::On(const to_rank::Fetched& frame) {
  if (Current(frame.generation)) fetched_ = frame;
}

void RankLine::On(const to_rank::Stop& frame) {
  if (!Current(frame.generation)) {
    if (!active_) again_.emplace_back(from_rank::Stopped{frame.generation});
    return;
  }
  const Stopping wanted = frame.at_boundary && go_ ? Stopping::kAtBoundary : Stopping::kNow;
  stopping_ = std::max(stopping_, wanted);
  if (stopping_ == Stopping::kNow || waits_) Interrupt();
}

// Of the receiver's thread, or of the one that trains; with the lock, so that what it uses is
// there.
void RankLine::Interrupt() {
  interrupted_ = true;
  changed_.notify_all();
  if (interrupt_) std::exchange(interrupt_, nullptr)();
}

absl::Status RankLine::Ended() const {
  if (!lost_.ok()) return lost_;
  if (interrupted_) return absl::CancelledError("told to stop");
  return absl::OkStatus();
}

// ---- the life of a generation

absl::StatusOr<std::optional<to_rank::Prepare>> RankLine::NextGeneration() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return prepare_.has_value() || leave_ || !lost_.ok(); });
  if (prepare_.has_value()) return std::exchange(prepare_, std::nullopt);
  if (leave_) return std::optional<to_rank::Prepare>();
  return lost_;
}

void RankLine::OnStop(std::function<void()> interrupt) {
  const std::lock_guard lock(mutex_);
  interrupt_ = std::move(interrupt);
  if (interrupted_) Interrupt();
}

absl::StatusOr<std::vector<std::string>> RankLine::AwaitTable(int64_t ranks) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return load_ || !Ended().ok(); });
  RETURN_IF_ERROR(Ended());
  const auto missing = std::find(addressed_.begin(), addressed_.end(), false);
  if (missing != addressed_.end() || static_cast<int64_t>(addresses_.size()) != ranks)
    return Internal("the agent said load without the address of rank {}",
                    missing - addressed_.begin());
  return std::move(addresses_);
}

absl::Status RankLine::AwaitGo() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return go_ || !Ended().ok(); });
  return Ended();
}

absl::StatusOr<std::vector<std::string>> RankLine::AwaitFetched() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return fetched_.has_value() || !Ended().ok(); });
  RETURN_IF_ERROR(Ended());
  const to_rank::Fetched fetched = *std::exchange(fetched_, std::nullopt);
  if (!fetched.error.empty()) return DataLoss("{}", fetched.error);
  return fetched.paths;
}

void RankLine::WaitsAtBoundary(bool waits) {
  const std::lock_guard lock(mutex_);
  waits_ = waits;
  if (waits && stopping_ == Stopping::kAtBoundary) Interrupt();
}

absl::Status RankLine::AwaitPermission(const std::function<bool()>& may) {
  std::unique_lock lock(mutex_);
  for (;;) {
    RETURN_IF_ERROR(Ended());
    if (may()) return absl::OkStatus();
    if (stopping_ == Stopping::kAtBoundary) Interrupt();
    if (!interrupted_) changed_.wait_for(lock, kLook);
  }
}

Command RankLine::CommandAfter(int64_t step) {
  const std::lock_guard lock(mutex_);
  if (stopping_ != Stopping::kNo) return Command::kLeave;
  if (!freeze_after_.has_value() || step + 1 <= *freeze_after_) return Command::kNone;
  freeze_after_.reset();
  freezes_ = step;
  if (last_) return Command::kStop;
  if (!pause_) return Command::kCheckpoint;
  paused_ = step + 1;
  return Command::kPause;
}

std::vector<Flip> RankLine::TakeFlips(int64_t step) {
  const std::lock_guard lock(mutex_);
  std::vector<Flip> due;
  for (const to_rank::Corrupt& frame : flips_)
    if (frame.step <= step) due.push_back(frame.flip);
  std::erase_if(flips_, [step](const to_rank::Corrupt& frame) { return frame.step <= step; });
  return due;
}

void RankLine::DropOrders() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
  changed_.notify_all();
}

bool RankLine::End() {
  const std::lock_guard lock(mutex_);
  active_ = false;
  interrupt_ = nullptr;
  return stopping_ != Stopping::kNo;
}

absl::Status RankLine::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

// ---- saving

absl::Status RankLine::BeginSave(int64_t step, const std::string& file) {
  Generation generation = 0;
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(Ended());
    save_ = {};
    save_.step = step;
    // A state that was frozen anyway is one that was asked for.
    freezes_ = std::max(freezes_, step - 1);
    if (freeze_after_.has_value() && *freeze_after_ <= freezes_) freeze_after_.reset();
    generation = generation_;
  }
  return Send(from_rank::Frozen{.generation = generation, .step = step, .file = file});
}

absl::StatusOr<RankLine::Order> RankLine::NextOrder() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !save_.orders.empty() || !Ended().ok(); });
  RETURN_IF_ERROR(Ended());
  const Order order = std::move(save_.orders.front());
  save_.orders.pop_front();
  return order;
}

absl::Status RankLine::Answer(const from_rank::Written& written) {
  {
    const std::lock_guard lock(mutex_);
    save_.written.push_back(written);
  }
  return Send(written);
}

absl::Status RankLine::Answer(const from_rank::Voted& voted) {
  {
    const std::lock_guard lock(mutex_);
    save_.voted.push_back(voted);
  }
  return Send(voted);
}

}  // namespace perdure
