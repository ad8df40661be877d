// A rank's process over all generations that it belongs to. Its agent started it, tells it what to
// do, and ends it; between generations it keeps its device and nothing else.
//
//   agent -> rank                                    rank -> agent
//   prepare {generation, rank, layout, state, ...}   health (once), present {address}
//   table {addresses of some ranks} ..., load        need -> fetched, certificate (rank 0), loaded
//   go                                               progress, step (rank 0), older_may_go,
//                                                    found_bad
//   freeze (rank 0)                                  frozen; waiting
//   corrupt (a drill flips a bit)
//   write, verify, settle                            written, voted
//   stop                                             stopped
//   leave: the process ends                          done | broken_off | error; remark, evidence
//
// (rank_frames.h has the fields.) How a generation ends for a rank:
//  - done: nothing is left to do. It waits for stop or leave.
//  - it leaves at a boundary, with all others: rank 0 was told, and their last step says so; or all
//    have come to a step that is bad: found_bad. It answers its own stop whenever that comes.
//  - stop at once, or at a boundary at which it waits already: whatever is under way is cancelled.
//  - a peer is lost: broken_off; stop is answered at once.
//  - its memory or its arithmetic has gone wrong: error, as below; the others end like those that
//    lost a peer, and wait until it is gone.
//  - an error of its own: error, and the process exits with 1; the next generation gets a new one.
//
// It may begin a step only while its agent's lease lasts (rank_page.h), and sleeps until then.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/agent/device_watch.h"
#include "runtime/agent/frame_socket.h"
#include "runtime/comm/transport.h"
#include "runtime/train/backend.h"
#include "runtime/train/run_config.h"

namespace perdure {

// Descriptors under which a rank's process finds its socket and its page (rank_page.h).
inline constexpr int kRankSocketFd = 3, kRankPageFd = 4;

// The configuration travels as the resolved run.toml; only launch/ knows that format.
using ConfigParser = std::function<absl::StatusOr<RunConfig>(const std::string& toml)>;

// Where a rank gets its device and what is said about it: tests have their own.
struct RankDevices {
  std::function<absl::StatusOr<RankDevice>(const RunConfig&, int local_rank)> make = NewRankDevice;
  std::string nvml = kNvmlLibrary;
};

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
