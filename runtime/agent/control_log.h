// The run log as the machines of runtime/control want it: entries instead of records, read and
// appended behind the agent's loop, because a file system may stall for minutes.
//
// An agent (or several in one process) owns it; the loop's thread calls everything, and answers are
// given on it, in the order of the questions. Nobody else appends through the same RunLog.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/agent/pulse_file.h"
#include "runtime/agent/records.h"
#include "runtime/agent/run_log.h"
#include "runtime/agent/worker.h"
#include "runtime/control/log_view.h"
#include "runtime/wire/event_loop.h"

namespace perdure {

// What `record` says to the control plane.
LogEntry EntryOf(const Record& record);

class ControlLog {
 public:
  // `loop` outlives it.
  static absl::StatusOr<std::unique_ptr<ControlLog>> New(EventLoop* loop, RunLog log);
  // Waits for what is under way; who asked is not answered.
  ~ControlLog();

  const std::string& run_id() const { return run_id_; }

  // Who wrote the newest LEAD, and what it says.
  struct Leader {
    Author author;
    LeadRecord record;
  };
  struct Reading {
    std::vector<LogEntry> entries;
    std::optional<Leader> leader;
    std::optional<Pulse> pulse;
  };
  // The entries from slot `from` on, read after this call. DataLoss: the log is damaged, a person
  // must look; other errors may pass.
  using Entries = absl::StatusOr<Reading>;
  void Read(Slot from, std::function<void(Entries)> then);

  // Makes the body of the record, on the log's thread, when its slot seems to be free.
  using Body = std::function<absl::StatusOr<std::string>()>;
  struct Filled {
    std::optional<LogEntry> entry;  // What is in the slot now; absent: see status.
    // DataLoss as above. FailedPrecondition: records that were read are gone, open the log anew.
    // Other errors may pass; the entry may still get there.
    absl::Status status;
    bool no_body = false;  // status is that of `body`; nothing was written.
  };
  // Puts `entry` into its slot, unless that is taken.
  void Append(const LogEntry& entry, Body body, std::function<void(Filled)> then);

  // A record that means nothing to the control plane: an ATTEMPT, a VERIFIED, a RETIRE.
  struct NoteBody {
    RecordType type = RecordType::kAttempt;
    std::string body;
  };
  // As Append, of an entry that is a note.
  void AppendNote(const LogEntry& entry, std::function<absl::StatusOr<NoteBody>()> note,
                  std::function<void(Filled)> then);

  // Behind nothing that is appended. One that comes while the one before is still being written is
  // dropped, and not answered.
  void Leave(const Pulse& pulse, std::function<void(absl::Status)> then);

 private:
  // Lives on the worker's thread.
  struct Shelf {
    RunLog log;
    std::vector<LogEntry> entries;  // Of log.records().
    std::optional<Leader> leader;
    absl::Status Refresh();
    Filled Put(const LogEntry& entry, const std::function<absl::StatusOr<NoteBody>()>& body);
  };

  ControlLog(EventLoop* loop, std::unique_ptr<Worker> worker, std::unique_ptr<Worker> pulser,
             RunLog log);

  EventLoop* const loop_;
  const std::string run_id_;
  const PulseFile pulse_;
  std::shared_ptr<Shelf> shelf_;
  bool leaving_ = false;
  std::unique_ptr<Worker> worker_, pulser_;
};

}  // namespace perdure
