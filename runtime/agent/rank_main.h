// A rank's process over all generations that it belongs to. Its agent started it, tells it what to
// do, and ends it; between generations it keeps its device and nothing else.
//
//   agent -> rank                                    rank -> agent
//   prepare {generation, rank, layout, state, ...}   health (once), present {address}
//   table {addresses of some ranks} ..., load        need -> fetched, certificate (rank 0), loaded
//   go                                               progress, step (rank 0), older_may_go
//   freeze (rank 0)                                  frozen; waiting
//   write, verify, settle                            written, voted
//   stop                                             stopped
//   leave: the process ends                          done | broken_off | error; remark, evidence
//
// (rank_frames.h has the fields.) How a generation ends for a rank:
//  - done: nothing is left to do. It waits for stop or leave.
//  - it leaves at a boundary, with all others: rank 0 was told, and their last step says so. It
//    answers its own stop whenever that comes.
//  - stop at once, or at a boundary at which it waits already: whatever is under way is cancelled.
//  - a peer is lost: broken_off; stop is answered at once.
//  - an error of its own: error, and the process exits with 1; the next generation gets a new one.
//
// It may begin a step only while its agent's lease lasts (rank_page.h), and sleeps until then.
#pragma once

#include <functional>
#include <memory>

#include "runtime/agent/frame_socket.h"
#include "runtime/agent/rank_process.h"
#include "runtime/comm/transport.h"

namespace perdure {

// Descriptors under which a rank's process finds its socket and its page (rank_page.h).
inline constexpr int kRankSocketFd = 3, kRankPageFd = 4;

struct RankMainOptions {
  ConfigParser parse_config;
  RankDevices devices;
  // Where ranks meet that are threads of one process, by generation; empty: they are processes.
  std::function<std::shared_ptr<LocalHub>(uint64_t generation)> hub;
};

// Returns the exit code of the process: 0 told to leave, 1 failed or left alone; errors have then
// been reported. Takes `page_fd` over.
int RunRankMain(FrameSocket socket, int page_fd, const RankMainOptions& options);

}  // namespace perdure
