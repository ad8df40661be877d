// A rank's side of the socket to its agent: a thread that receives, what it has received kept until
// it is asked for, and answers that need nobody else (a stop when nothing runs, an attempt that is
// written already). Private to runtime/agent.
//
// Three threads of the rank meet here: the one that trains, the one that saves, and the receiver.
// Every wait ends when the agent is gone (Unavailable) or has said stop (Cancelled).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/frame_socket.h"
#include "runtime/agent/rank_frames.h"

namespace perdure {

class RankLine {
 public:
  // `socket` outlives it.
  explicit RankLine(FrameSocket* socket);
  ~RankLine();
  RankLine(const RankLine&) = delete;
  RankLine& operator=(const RankLine&) = delete;

  // Any thread. Unavailable: the agent is gone.
  absl::Status Send(const from_rank::Frame& frame);

  // ---- the life of a generation: the thread that trains

  // Waits for the next one. None: the process is to end.
  absl::StatusOr<std::optional<to_rank::Prepare>> NextGeneration();
  // What ends at once whatever the rank is in the middle of; called by the receiver when it hears
  // stop, or here when it has heard it already. Empty: nothing. What it uses lives until it is
  // replaced.
  void OnStop(std::function<void()> interrupt);
  // The addresses of all `ranks`, once all have come and the agent says load.
  absl::StatusOr<std::vector<std::string>> AwaitTable(int64_t ranks);
  absl::Status AwaitGo();
  absl::StatusOr<std::vector<std::string>> AwaitFetched();
  // The rank runs and waits at a boundary for something that may take long; until it asks for the
  // permission to begin the next step. (Not until a state is begun to be saved: training may wait
  // with the next one before the saver has got round to that.)
  void WaitsAtBoundary(bool waits);
  // True: the rank may go on with `may`, which is asked again and again; it ends when that says so,
  // or when it is told to stop. One that is to stop at a boundary does so when it may not go on.
  absl::Status AwaitPermission(const std::function<bool()>& may);
  // Rank 0, behind a finished step: what to do after the next one.
  Command CommandAfter(int64_t step);
  // Bits that are to be flipped in `step`, which begins; each is given once.
  std::vector<Flip> TakeFlips(int64_t step);
  // Nothing of the state that is frozen will be settled: the saver need not wait.
  void DropOrders();
  // Nothing runs any more. True: stop was said, and is not answered yet.
  bool End();
  // Unavailable: the agent is gone. Internal: what it said makes no sense.
  absl::Status lost() const;

  // ---- saving: the saver's thread

  using Order = std::variant<to_rank::Write, to_rank::Verify, to_rank::Settle>;
  // From here on orders are about the state of `step`.
  absl::Status BeginSave(int64_t step, const std::string& file);
  absl::StatusOr<Order> NextOrder();
  // Answers; kept, so that they can be said again.
  absl::Status Answer(const from_rank::Written& written);
  absl::Status Answer(const from_rank::Voted& voted);

 private:
  enum class Stopping { kNo, kAtBoundary, kNow };
  // Of the state that is frozen.
  struct Save {
    int64_t step = -1;
    std::vector<to_rank::Write> writes;  // All that were ordered,
    std::vector<to_rank::Verify> verifies;
    std::vector<from_rank::Written> written;  // and answered.
    std::vector<from_rank::Voted> voted;
    std::deque<Order> orders;  // Not begun yet.
  };

  void Receive();
  absl::Status Take(const to_rank::Frame& frame);
  void On(const to_rank::Prepare& frame);
  void On(const to_rank::Table& frame);
  void On(const to_rank::Load& frame);
  void On(const to_rank::Go& frame);
  void On(const to_rank::Freeze& frame);
  void On(const to_rank::Write& frame);
  void On(const to_rank::Verify& frame);
  void On(const to_rank::Settle& frame);
  void On(const to_rank::Corrupt& frame);
  void On(const to_rank::Fetched& frame);
  void On(const to_rank::Stop& frame);
  void On(const to_rank::Leave& frame);
  bool Current(Generation generation) const { return active_ && generation == generation_; }
  void Interrupt();
  void Again(const from_rank::Frame& answer);
  // Why a wait must end; OK: it need not.
  absl::Status Ended() const;

  FrameSocket* const socket_;
  std::mutex send_mutex_;

  mutable std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  absl::Status lost_;
  bool leave_ = false;
  std::deque<from_rank::Frame> again_;  // To be sent by the receiver, without the lock.
  Generation generation_ = 0;
  bool active_ = false;  // The generation runs, or is about to.
  std::optional<to_rank::Prepare> prepare_;
  std::vector<std::string> addresses_;
  std::vector<bool> addressed_;
  bool load_ = false, go_ = false, waits_ = false;
  std::vector<to_rank::Corrupt> flips_;  // Not made yet.
  std::optional<to_rank::Fetched> fetched_;
  Stopping stopping_ = Stopping::kNo;
  std::function<void()> interrupt_;
  bool interrupted_ = false;
  std::optional<int64_t> freeze_after_;
  bool last_ = false;    // The state that is frozen next is the last one,
  bool pause_ = false;   // or one that is waited with.
  int64_t paused_ = -1;  // The newest of those.
  // A state later than this is frozen, or about to be. A first order says "later than -1".
  static constexpr int64_t kNothingFrozen = -2;
  int64_t freezes_ = kNothingFrozen;
  Save save_;
  std::thread receiver_;  // Last: it uses all of the above.
};

}  // namespace perdure
