// One rank as its own process (or thread, over the local transport): speaks with its supervisor
// over one socket.
//
//   supervisor -> rank: init {config, rank, data_directory, ...}, table {addresses}, go {},
//       command {command}, order {step, kind, nonce, part}
//   rank -> supervisor: health {device, checked, rates, facts, code, error}, address {address},
//       loaded {atoms, digests}, step {...}, saved {step, nonce, run, error},
//       voted {step, file, error}, done {complete}, error {code, message}; at any time
//       evidence {what, ...}: of DeviceWatch
//
// Addresses are hex. The rank ends when it is done, when it fails, or when the supervisor is gone.
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

// The configuration travels as the resolved run.toml; only launch/ knows that format.
using ConfigParser = std::function<absl::StatusOr<RunConfig>(const std::string& toml)>;

// Where a rank gets its device and what is said about it: tests have their own.
struct RankDevices {
  std::function<absl::StatusOr<RankDevice>(const RunConfig&, int local_rank)> make = NewRankDevice;
  std::string nvml = kNvmlLibrary;
};

// Runs the rank behind `socket` to its end; errors have then been reported. Exit code: 0 done, 1
// failed.
int RunRank(FrameSocket socket, std::shared_ptr<LocalHub> hub, const ConfigParser& parse_config,
            const RankDevices& devices = {});

}  // namespace perdure
