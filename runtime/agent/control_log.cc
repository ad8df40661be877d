#include "runtime/agent/control_log.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

EntryKind KindOf(RecordType type) {
  switch (type) {
    case RecordType::kLead:
      return EntryKind::kLead;
    case RecordType::kStart:
      return EntryKind::kStart;
    case RecordType::kCommit:
      return EntryKind::kCommit;
    case RecordType::kEnd:
      return EntryKind::kEnd;
    case RecordType::kAttempt:
    case RecordType::kVerified:
    case RecordType::kRetire:
      return EntryKind::kNote;
  }
  return EntryKind::kNote;
}

RecordType TypeOf(EntryKind kind) {
  switch (kind) {
    case EntryKind::kLead:
      return RecordType::kLead;
    case EntryKind::kStart:
      return RecordType::kStart;
    case EntryKind::kCommit:
      return RecordType::kCommit;
    case EntryKind::kEnd:
      return RecordType::kEnd;
    case EntryKind::kNote:
      break;
  }
  PERDURE_CHECK(false);  // Its author knows.
  return RecordType::kEnd;
}

}  // namespace

// RunLog holds records with good bodies only.
LogEntry EntryOf(const Record& record) {
  LogEntry entry{.slot = record.slot,
                 .kind = KindOf(record.type),
                 .author = record.author,
                 .id = record.id,
                 .generation = record.generation,
                 .layout = {}};
  if (record.type == RecordType::kStart) {
    StartRecord start = *ParseStart(record.body);
    entry.step = start.step;
    entry.from_checkpoint = start.from_checkpoint;
    entry.layout = PlacedLayout{.generation = record.generation,
                                .shape = start.shape,
                                .seats = std::move(start.seats),
                                .domains = std::move(start.domains)};
    entry.failure = start.failure;
    entry.gaps = std::move(start.gaps);
  } else if (record.type == RecordType::kCommit) {
    entry.step = ParseCommit(record.body)->step;
  } else if (record.type == RecordType::kEnd) {
    const EndRecord end = *ParseEnd(record.body);
    entry.step = end.step;
    entry.exit_code = static_cast<int32_t>(end.exit_code);
  }
  return entry;
}

absl::StatusOr<std::unique_ptr<ControlLog>> ControlLog::New(EventLoop* loop, RunLog log) {
  std::unique_ptr<Worker> workers[2];
  for (std::unique_ptr<Worker>& worker : workers) {
    ASSIGN_OR_RETURN(worker, Worker::Start());
    Worker* const drained = worker.get();
    RETURN_IF_ERROR(
        loop->AddFd(worker->fd(), EventLoop::kReadable, [drained](uint32_t) { drained->Drain(); }));
  }
  return std::unique_ptr<ControlLog>(
      new ControlLog(loop, std::move(workers[0]), std::move(workers[1]), std::move(log)));
}

ControlLog::ControlLog(EventLoop* loop, std::unique_ptr<Worker> worker,
                       std::unique_ptr<Worker> pulser, RunLog log)
    : loop_(loop),
      run_id_(log.run_id()),
      pulse_(log.run_directory()),
      shelf_(std::make_shared<Shelf>(Shelf{std::move(log), {}, {}})),
      worker_(std::move(worker)),
      pulser_(std::move(pulser)) {}

ControlLog::~ControlLog() {
  loop_->RemoveFd(worker_->fd());
  loop_->RemoveFd(pulser_->fd());
}

absl::Status ControlLog::Shelf::Refresh() {
  const absl::Status status = log.Refresh();
  while (entries.size() < log.records().size()) {
    const Record& record = log.records()[entries.size()];
    if (record.type == RecordType::kLead) leader = Leader{record.author, *ParseLead(record.body)};
    entries.push_back(EntryOf(record));
  }
  return status;
}

void ControlLog::Read(Slot from, std::function<void(Entries)> then) {
  worker_->Post([shelf = shelf_, from, pulse = pulse_, then = std::move(then)]() -> Worker::Then {
    if (absl::Status status = shelf->Refresh(); !status.ok())
      return [then, status] { then(status); };
    Reading reading{.entries = {}, .leader = shelf->leader, .pulse = pulse.Find()};
    if (from < shelf->entries.size())
      reading.entries.assign(shelf->entries.begin() + static_cast<ptrdiff_t>(from),
                             shelf->entries.end());
    return [then, reading = std::move(reading)]() mutable { then(std::move(reading)); };
  });
}

ControlLog::Filled ControlLog::Shelf::Put(const LogEntry& entry,
                                          const std::function<absl::StatusOr<NoteBody>()>& body) {
  const auto failed = [](absl::Status status, bool no_body = false) {
    return Filled{.entry = {}, .status = std::move(status), .no_body = no_body};
  };
  if (absl::Status status = Refresh(); !status.ok()) return failed(std::move(status));
  if (entry.slot > log.next_slot())
    return failed(
        FailedPrecondition("slot {} of the run log is empty, and this agent has read "
                           "it: open the log anew",
                           log.next_slot()));
  if (entry.slot == log.next_slot()) {
    absl::StatusOr<NoteBody> made = body();
    if (!made.ok()) return failed(made.status(), true);
    log.WriteAs(entry.author);
    absl::Status status = log.Append(made->type, entry.generation, std::move(made->body), entry.id);
    if (!status.ok() && !absl::IsAborted(status)) return failed(std::move(status));
    status = Refresh();
    if (!status.ok()) return failed(std::move(status));
  }
  if (entry.slot >= entries.size())
    return failed(
        Unavailable("slot {} of the run log is taken but cannot be read yet", entry.slot));
  return Filled{.entry = entries[entry.slot], .status = {}};
}

void ControlLog::Append(const LogEntry& entry, Body body, std::function<void(Filled)> then) {
  AppendNote(
      entry,
      [type = TypeOf(entry.kind), body = std::move(body)]() -> absl::StatusOr<NoteBody> {
        ASSIGN_OR_RETURN(std::string text, body());
        return NoteBody{type, std::move(text)};
      },
      std::move(then));
}

void ControlLog::AppendNote(const LogEntry& entry, std::function<absl::StatusOr<NoteBody>()> body,
                            std::function<void(Filled)> then) {
  worker_->Post(
      [shelf = shelf_, entry, body = std::move(body), then = std::move(then)]() -> Worker::Then {
        return [then, filled = shelf->Put(entry, body)] { then(filled); };
      });
}

void ControlLog::Leave(const Pulse& pulse, std::function<void(absl::Status)> then) {
  if (std::exchange(leaving_, true)) return;
  pulser_->Post([this, file = pulse_, pulse, then = std::move(then)]() -> Worker::Then {
    return [this, then, status = file.Leave(pulse)] {
      leaving_ = false;
      then(status);
    };
  });
}

}  // namespace perdure
