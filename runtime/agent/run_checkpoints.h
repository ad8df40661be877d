// The real CheckpointStore: what the coordinator's agent does for the checkpoints of a run. Chooses
// the one that a generation loads, joins what ranks wrote, makes manifests, lets old ones go, has
// exports made, looks after kept files, says what takes long.
//
// Made by whoever makes the agent, for its life; what it says counts only while the agent leads:
// what belongs to a lead that is over is dropped. Lives in the EventLoop, whose thread calls
// everything but Publish and NoteBody, which are the log's. What may take long is done by a worker,
// exports by one of their own, so that no commit waits for one. Destroyed after the ControlLog.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/log_reader.h"
#include "runtime/agent/node_ranks.h"
#include "runtime/agent/node_runs.h"
#include "runtime/agent/publish.h"
#include "runtime/agent/start_checkpoint.h"
#include "runtime/agent/worker.h"
#include "runtime/base/space.h"
#include "runtime/control/save_watch.h"
#include "runtime/train/run_config.h"
#include "runtime/train/schedule_math.h"
#include "runtime/train/writers.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

class RunCheckpoints final : public CheckpointStore {
 public:
  struct Options {
    std::string run_directory;
    uint64_t job = 0;
    // Of the run; tensor, pipeline and data of the layout are each generation's.
    RunConfig config;
    int64_t ranks_per_node = 1;
    bool retry = false;  // Attempts of other jobs to load a checkpoint do not count.
    std::vector<std::string> data_files;  // Kept as checkpoints are.
    // From when on it is said that a file system does not answer, once per doubling.
    absl::Duration patience = absl::Minutes(2);
  };
  struct Hooks {
    std::function<void(const std::string& what, const nlohmann::json& fields)> event;
    std::function<void(const std::string& line)> warn;
    // Tells the agent's coordinator Note{tag}; false: there is none (any more).
    std::function<bool(uint64_t tag)> note;
    // ---- from here on called by other threads, perhaps by several
    // The text of a run.toml.
    std::function<std::string(const RunConfig& config)> print;
    // Checkpoints that are to be exported and are not yet, oldest first; empty: none ever is.
    std::function<std::vector<CheckpointEntry>(const RunLog& log)> missing_exports;
    std::function<absl::Status(const CheckpointEntry& entry)> export_checkpoint;
  };
  // `loop` outlives it.
  static absl::StatusOr<std::unique_ptr<RunCheckpoints>> New(EventLoop* loop,
                                                             const Options& options, Hooks hooks);
  // Waits for what is under way; what it leads to is dropped.
  ~RunCheckpoints() override;

  void Leads() override;
  void LeadEnds() override;
  void Do(const Coordinator::ChooseCheckpoint& order,
          std::function<void(Coordinator::CheckpointChosen)> then) override;
  void Do(const Coordinator::AllPresent& order) override;
  void Do(const Coordinator::MeasureRoom& order,
          std::function<void(Coordinator::Measured)> then) override;
  void Do(const Coordinator::JoinParts& order,
          std::function<void(Coordinator::PartsJoined)> then) override;
  absl::StatusOr<CommitRecord> Publish(const LogEntry& commit, Slot term, int32_t attempt) override;
  void Do(const Coordinator::SaveOver& order) override;
  absl::StatusOr<ControlLog::NoteBody> NoteBody(uint64_t tag) override;
  void Do(const Coordinator::Noted& noted) override;
  void Do(const Coordinator::GoodSteps& order) override;
  void Do(const Coordinator::WindUp& order,
          std::function<void(Coordinator::WoundUp)> then) override;

  // What this agent does itself for the save that is under way; nothing while another leads.
  std::vector<SaveWatch::Stall> UnderWay() const;
  // Waits until what was begun is done, exports too; answers are given from inside.
  void Finish();

 private:
  // How the checkpoints of a generation are laid out.
  struct Plan {
    Generation generation = 0;
    std::string run_id;
    Gaps gaps;
    RunConfig config;  // With its layout.
    Writers writers;
    SpaceNeed need;
  };
  // What became of a question which checkpoint to load.
  struct Choice {
    absl::Status status;
    std::optional<StartCheckpoint> start;
    std::vector<std::string> lines;
  };
  // An attempt whose parts are joined.
  struct Save {
    Generation generation = 0;
    StepIndex step = 0;
    int32_t attempt = 0;
    std::string name;
    Manifest manifest;  // But what WriteManifest fills in. Its parts go when it is published.
    SaveSeconds seconds;
    std::optional<absl::StatusOr<CommitRecord>> published;
  };
  // A record that the coordinator was asked for.
  struct Wanted {
    RecordType type = RecordType::kRetire;
    Generation generation = 0;        // VERIFIED "ran": what this generation loaded.
    std::optional<std::string> body;  // Made when it is first asked for.
    std::vector<std::string> names;   // RETIRE.
  };

  RunCheckpoints(EventLoop* loop, const Options& options, Hooks hooks,
                 std::unique_ptr<Worker> worker, std::unique_ptr<Worker> exporter);
  absl::Status Watch();
  void Forget();

  // run_checkpoints.cc: choosing, saving.
  void Choose();
  Choice ChooseNow(const Coordinator::ChooseCheckpoint& order);  // Worker's.
  void Chosen(const Choice& choice);
  absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(Generation generation);  // Worker's.
  absl::StatusOr<Save> Join(const Coordinator::JoinParts& order,
                            Coordinator::PartsJoined& answer);  // Worker's.
  Manifest HeadOf(const Plan& plan, StepIndex step, const Trail& trail) const;

  // run_checkpoints_care.cc: records, and what happens beside saving.
  void Want(Wanted wanted);
  bool Wants(RecordType type);
  absl::Status MakeBody(Wanted& wanted);  // The log's thread.
  absl::StatusOr<KeepRule> RuleNow(const RunLog& log);
  void Begin();
  bool GoesBack() const { return options_.config.integrity.bad_step == "rollback"; }
  void CheckRoom();
  void TendFiles();
  void Retire() { Want({.type = RecordType::kRetire}); }
  void Delete(std::vector<std::string> names);
  Deletions DeleteLeft(std::vector<std::string> names);  // Worker's.
  void WriteViewOf(const std::string& name);
  void ExportMissing();
  void Export(const CheckpointEntry& entry);
  void ExportsAreDone();
  void Stage(const char* what);
  void TellStalls();
  void Tick();
  void Warn(const std::string& line) const;
  void Event(const std::string& what, nlohmann::json fields) const;

  EventLoop* const loop_;
  const Options options_;
  const Hooks hooks_;
  const AtomTable table_;
  const StepSchedule schedule_;
  LogReader reader_;

  // Of the loop.
  uint32_t leads_ =
      0;  // How often this agent has led; what is answered for another lead is dropped.
  bool leading_ = false;
  bool begun_ = false;  // What there is to do once per lead.
  absl::Time leading_since_;
  absl::Time tended_ = absl::InfinitePast();
  EventLoop::TimerId timer_;
  Generation generation_ = 0;  // The newest that was heard of,
  StepIndex saving_ = -1;      // and the step that is being saved.
  SaveWatch watch_;
  Coordinator::ChooseCheckpoint asked_;                        // The newest question,
  std::function<void(Coordinator::CheckpointChosen)> choose_;  // and who waits for its answer.
  bool choosing_ = false;
  std::string last_trouble_;  // Why there was no choice; said once.
  std::set<std::string> begun_exports_;
  int exporting_ = 0;    // Exports, and looks for what is to be exported, that are under way.
  std::string trouble_;  // Of the save that is under way, the last.
  std::function<void(Coordinator::WoundUp)> wind_up_;  // Who waits for WoundUp.

  std::shared_ptr<const Plan> plan_;  // Worker's.

  std::mutex mutex_;  // Guards what follows.
  uint64_t tags_ = 0;
  std::map<uint64_t, Wanted> wanted_;
  std::optional<Save> save_;
  std::string loaded_;  // What the newest generation loads, without a good step behind it yet.
  std::set<std::string> failed_exports_;  // None is tried again by this job.

  std::unique_ptr<Worker> worker_, exporter_;  // Use all of the above: go first.
};

}  // namespace perdure
