// An agent's side of one rank process: starts it, hears it and speaks to it without ever waiting
// for it, and notices its end. Private to runtime/agent.
//
// Lives in the agent's EventLoop, whose thread calls everything. A process that says what makes no
// sense, or that does not read what it is told, is killed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/agent/frame_socket.h"
#include "runtime/agent/rank_frames.h"
#include "runtime/agent/rank_page.h"
#include "runtime/agent/supervised_process.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

class RankLink {
 public:
  struct Options {
    std::vector<std::string> argv;
    std::vector<std::string> environment;
    std::string log_path;
    pid_t group = 0;                            // As ProcessOptions'.
    size_t queue_bytes_max = size_t{64} << 20;  // Not read by the rank yet.
  };
  // Called from the loop; may not destroy the link, which is done later (EventLoop::Defer).
  struct Callbacks {
    std::function<void(from_rank::Frame frame)> frame;
    // Once, behind all frames; `wrong`: why it was killed, if it was for what it said or did not
    // read.
    std::function<void(const ProcessEnd& end, const std::string& wrong)> ended;
    std::function<void()> unkillable;
  };

  static absl::StatusOr<std::unique_ptr<RankLink>> Start(EventLoop* loop, OomKills* oom,
                                                         const Options& options,
                                                         Callbacks callbacks);
  ~RankLink();  // Kills it.
  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;

  void Send(const to_rank::Frame& frame);
  RankPage& page() { return *page_; }
  const RankPage& page() const { return *page_; }
  pid_t pid() const { return process_->pid(); }
  bool running() const { return process_->running(); }
  // Asks it to leave; SIGTERM after `grace`, SIGKILL after another one.
  void Leave(absl::Duration grace);
  void Kill() { process_->Kill(); }
  // What it has written to its log lately, for people; at most 800 bytes.
  std::string LogTail() const;
  const std::string& log_path() const { return options_.log_path; }

 private:
  RankLink(EventLoop* loop, const Options& options, Callbacks callbacks, FrameSocket socket,
           std::unique_ptr<RankPage> page);
  void OnEvents(uint32_t events);
  void ReadFrames(bool all);
  void Flush();
  void Watch();
  void Wrong(std::string why);
  void Ended(const ProcessEnd& end);

  EventLoop* const loop_;
  const Options options_;
  const Callbacks callbacks_;
  FrameSocket socket_;
  const std::unique_ptr<RankPage> page_;
  std::unique_ptr<SupervisedProcess> process_;
  int64_t log_begins_ = 0;  // Bytes that others had written before it.
  bool watched_ = false, open_ = true;
  std::deque<std::string> queue_;
  size_t queue_bytes_ = 0, sent_ = 0;  // Of the first one.
  std::string wrong_;
  EventLoop::TimerId leave_timer_, read_timer_;
};

}  // namespace perdure
