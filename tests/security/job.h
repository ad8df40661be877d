// A job that runs while it is attacked: agents in processes of their own, of a user of their own,
// on a run directory that others may list. Node 4 is not there at first; it is the honest agent
// that comes in the middle of an attack.
#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "runtime/agent/job_start.h"
#include "runtime/wire/job_key.h"
#include "runtime/wire/wire_address.h"
#include "tests/ckpt/test_state.h"
#include "tests/security/board.h"

namespace perdure {

inline constexpr uint32_t kJobNodes = 5, kLateNode = 4;
inline constexpr uint64_t kJobNumber = 7, kJobRestart = 1;
inline constexpr uint64_t kJobStart = JobStart(kJobNumber, kJobRestart);
// How long ranks step without a word from the coordinator.
inline constexpr absl::Duration kLease = absl::Seconds(4);

struct JobParts {
  uint64_t descriptors = 256;  // That an agent may have.
  bool listable = true;        // The run directory and its log, by others.
};

class Job {
 public:
  explicit Job(const JobParts& parts = {});
  ~Job();  // Ends all of it.
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  // Nodes 0 to 3, until they step.
  bool Start();
  void StartNode(uint32_t node, uint16_t port = 0) { StartNodeIn(run(), node, port); }
  void StartNodeIn(const std::string& run_directory, uint32_t node, uint16_t port = 0);
  void KillNode(uint32_t node);
  // Its wait status, if it has ended by itself.
  std::optional<int> Ended(uint32_t node);
  // Until it has; -1: it did not, and was killed.
  int WaitFor(uint32_t node);

  NodeBoard& at(uint32_t node) { return board_->nodes[node]; }
  pid_t pid(uint32_t node) const { return pids_.at(node); }
  const std::map<uint32_t, pid_t>& pids() const { return pids_; }
  uint32_t Lead() const;    // The coordinator's node.
  uint32_t Member() const;  // One that does not, and would be among the last to offer itself.
  WireAddress Address(uint32_t node) const;
  // Of any node, all added up.
  uint64_t Refused(Refusal refusal) const;

  const std::string& directory() const { return directory_.path(); }
  std::string run() const { return directory_.path() + "/run"; }
  std::string Log(uint32_t node) const;  // What its last process said.
  std::string FileKey() const;
  std::string RunId() const;
  JobKey Key(uint64_t job = kJobNumber, uint64_t restart = kJobRestart) const;

  // Looks again and again; false after a time that is long even on a busy machine.
  static bool Until(const std::function<bool()>& done, absl::Duration within = absl::Seconds(30));
  // Until every running node has finished so many more steps.
  bool Steps(int64_t steps);

  // From `node` to `port`, the network leads to `to` (0: as it should be); what is connected is
  // cut, so that it takes the new way.
  void Redirect(uint32_t node, uint16_t port, uint16_t to);

 private:
  const TestDirectory directory_;
  int board_fd_ = -1, program_ = -1;
  Board* board_ = nullptr;
  const JobParts parts_;
  std::map<uint32_t, pid_t> pids_;
};

// A directory of the job's user's that all can enter.
void GiveToJob(const std::string& path);

}  // namespace perdure
