// The run log: the one authority about a run. Numbered slots in RUN/log/, each filled once
// (put-if-absent by link(2)).
//
// All types share one sequence, so a COMMIT can only follow the START of its own generation:
// whoever lost the race for a slot has been replaced. Records are valid as a whole or not at all
// (length, digest, chained to the one before, keyed BLAKE2b). Format: docs/formats.md. Wall clocks
// decide nothing here; times are for people.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/digest.h"
#include "runtime/control/log_view.h"

namespace perdure {

enum class RecordType : uint32_t {
  kStart = 1,
  kCommit = 2,
  kAttempt = 3,
  kVerified = 4,
  kRetire = 5,
  kEnd = 6,
  kLead = 7
};

struct Record {
  uint64_t slot = 0;
  RecordType type = RecordType::kStart;
  uint64_t generation = 0;
  Author author;
  uint64_t id = 0;     // The author's: tells his records apart, and a retry from a second record.
  std::string holder;  // "job 0, restart 0, host, boot id, pid": who wrote it, for people.
  std::string body;    // JSON, by type.
  Digest previous;     // Digest of the record in slot - 1; zero for slot 0.
  Digest digest;       // Of this record's bytes.
};

class RunLog {
 public:
  // Opens (creates when absent) RUN/log, RUN/tmp, and the key RUN/control/run.key (mode 0600, 32
  // random bytes). Reads and checks every record. DataLoss names the slot that is torn, forged or
  // out of chain, and says what to do.
  static absl::StatusOr<RunLog> Open(const std::string& run_directory);

  // In slot order, without gaps.
  const std::vector<Record>& records() const { return records_; }
  uint64_t next_slot() const { return records_.size(); }
  // The highest generation of a START; 0 when there is none.
  uint64_t generation() const;
  const std::string& run_directory() const { return directory_; }
  const std::string& run_id() const { return run_id_; }  // 32 hex digits, made with the run.

  // Reads records that others appended since.
  absl::Status Refresh();

  // Whose records follow. Until then: job 0, node 0, a random incarnation.
  void WriteAs(const Author& author) { author_ = author; }
  const Author& author() const { return author_; }

  // Puts "job 7, restart 0" or the like in front of host, boot id and pid in the records that
  // follow. For people.
  void DescribeHolder(const std::string& job);

  // Publishes into slot next_slot() as this object knows it: temporary file, fsync, link(2), fsync
  // of log/, read back. Aborted: somebody else filled the slot (a reply lost by the file system is
  // recognised and is not an error). FailedPrecondition: the type does not fit the
  // generation, or a record that this one would follow is gone: open the log anew.
  //
  // What others wrote is made durable first: fsync of log/, then their last record is read again. A
  // file server that loses its power between link(2) and the writer's fsync could otherwise leave
  // this record behind a hole, and a second history beside it (tests/formal/run_log.pml).
  absl::Status Append(RecordType type, uint64_t generation, std::string body, uint64_t id = 0);

 private:
  RunLog() = default;
  std::string Path(uint64_t slot) const;
  absl::StatusOr<std::optional<Record>> ReadSlot(uint64_t slot) const;
  absl::Status Link(const std::string& temporary, uint64_t slot, const std::string& bytes) const;
  absl::Status Publish(const std::string& temporary, uint64_t slot, const std::string& bytes) const;
  absl::Status MakeReadDurable();

  std::string directory_;
  std::string run_id_;
  std::string key_;
  Author author_;
  std::string holder_;
  std::vector<Record> records_;
  size_t durable_ = 0;  // So many of them would outlive a power cut of the file server.
};

}  // namespace perdure
