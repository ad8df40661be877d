// The supervisor's half of checkpoints: gathers what ranks wrote, has every file read back by
// another rank, publishes through the run log, lets old checkpoints go. What may take long is done
// by the worker, exports by a worker of their own, so that no commit waits for one; everything here
// is called in the owner's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/part_plan.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/agent/worker.h"
#include "runtime/base/space.h"
#include "runtime/control/checkpoint_commit.h"
#include "runtime/control/save_watch.h"
#include "runtime/train/run_config.h"

namespace perdure {

class LocalCheckpoint {
 public:
  struct Options {
    std::string run_directory;
    uint64_t generation = 0;
    uint32_t nonce = 0;  // Of the names of first attempts.
    int64_t nodes = 1;
    int64_t ranks_per_node = 1;
    std::vector<int64_t> phase_end_steps;  // Whose checkpoints are kept.
    std::vector<std::string> data_files;   // Kept as checkpoints are.
  };
  // How an attempt to keep the state of a step ended.
  struct Settled {
    int64_t step = 0;
    absl::Status status;  // What went wrong last, if it was given up.
    std::string name;
    Digest certificate;
    uint64_t bytes = 0;
    // Of the slowest rank.
    double freeze_seconds = 0, copy_seconds = 0, wait_seconds = 0, write_seconds = 0;
  };
  struct Hooks {
    std::function<void(int rank, const nlohmann::json&)> send;
    std::function<Manifest(int64_t step)> head;  // All of it but tensors, parts, certificate.
    std::function<void(const Settled&)> settled;
    std::function<void(const std::string& what, const nlohmann::json& fields)> event;
    std::function<void(const std::string& line)> warn;
    // Another job has taken the run over, or the run log fails: nothing can be kept any more.
    std::function<void(const absl::Status&)> lost;
  };
  // Between the job's first and last record the log is the worker's: nobody else appends. Pointers
  // outlive this.
  LocalCheckpoint(const Options& options, const RunConfig* config, const AtomTable* table,
                  RunLog* log, Worker* worker, Worker* exporter, Hooks hooks);

  absl::Status OnFrozen(int rank, const nlohmann::json& frame);
  absl::Status OnWaiting(const nlohmann::json& frame);
  absl::Status OnSaved(int rank, const nlohmann::json& frame);
  absl::Status OnVoted(const nlohmann::json& frame);
  bool idle() const { return commit_.idle(); }
  // What there is to do before the first step, behind it.
  void Begin();
  // What there is to do once in a while; the owner calls about once a second.
  void Tick();

 private:
  using Clock = std::chrono::steady_clock;

  static absl::Time Now();
  uint32_t Nonce() const;
  std::string Reading(const std::string& file) const;
  nlohmann::json Describe(const std::vector<SaveWatch::Stall>& stalls) const;
  void TellStalls();
  std::string Name() const;
  void Step(const CheckpointCommit::Event& event);
  void On(const CheckpointCommit::Measure& effect);
  void On(const CheckpointCommit::Write& effect);
  void On(const CheckpointCommit::Join& effect);
  void On(const CheckpointCommit::Verify& effect);
  void On(const CheckpointCommit::Publish& effect);
  void On(const CheckpointCommit::Settle& effect);
  void Note(const absl::Status& status);
  int ReaderOf(size_t file) const;
  void SendOrder(int rank, int kind, const std::string& part);
  // Warns where the checkpoints that are to be kept will not fit.
  void CheckRoom();
  void TendFiles();
  // Exports what the configuration wants exported and is not yet. It is kept until then.
  void ExportMissing();
  void Export(const CheckpointEntry& entry);
  void RetireOld();

  const Options options_;
  const RunConfig* config_;
  const AtomTable* table_;
  RunLog* log_;
  Worker* worker_;
  Worker* exporter_;
  const Hooks hooks_;
  const std::string directory_;  // Of checkpoints.
  const SpaceNeed need_;         // Of one.
  CheckpointCommit commit_;
  SaveWatch watch_;
  std::map<int, std::string> writing_;  // What each rank will write or writes.
  std::optional<Clock::time_point> tended_;
  Settled now_;                                         // Of what is under way.
  std::map<std::string, std::vector<RunReport>> runs_;  // Of this attempt, by file.
  std::map<std::string, int> first_rank_;               // Of a file's writers.
  std::vector<PartReport> parts_;
  std::set<std::string> begun_exports_, failed_exports_;  // None is tried again by this job.
};

}  // namespace perdure
