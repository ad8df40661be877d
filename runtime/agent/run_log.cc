#include "runtime/agent/run_log.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "runtime/agent/records.h"
#include "runtime/agent/run_key.h"
#include "runtime/agent/run_log_format.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A name that another node linked may be unknown here for a moment (NFS caches absence).
constexpr int kAbsentRetries = 20;
constexpr auto kAbsentPause = std::chrono::milliseconds(25);

constexpr const char* kRemedy =
    "restore it from a copy of the run directory; until then nothing is written";

std::string SlotName(uint64_t slot) { return fmt::format("{:08}.rec", slot); }

// The slot of a file name, if it is one of a record.
std::optional<uint64_t> SlotOfName(std::string_view name) {
  uint64_t slot = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), slot);
  if (error != std::errc() || SlotName(slot) != name) return std::nullopt;
  return slot;
}

// The highest slot that has a file in `log`.
absl::StatusOr<std::optional<uint64_t>> HighestSlot(const std::string& log) {
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(log.c_str()), ::closedir);
  if (stream == nullptr) {
    if (errno == ENOENT) return std::optional<uint64_t>();
    return ErrnoStatus(errno, "list " + log);
  }
  std::optional<uint64_t> highest;
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::optional<uint64_t> slot = SlotOfName(entry->d_name);
    if (slot && (!highest || *slot > *highest)) highest = slot;
    errno = 0;
  }
  if (errno != 0) return ErrnoStatus(errno, "list " + log);
  return highest;
}

absl::Status WriteNewFile(const std::string& path, std::string_view bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (file < 0) return ErrnoStatus(errno, "create " + path);
  absl::Status status;
  while (!bytes.empty() && status.ok()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      status = ErrnoStatus(written < 0 ? errno : ENOSPC, "write " + path);
    else
      bytes.remove_prefix(static_cast<size_t>(written));
  }
  if (status.ok() && ::fsync(file) != 0) status = ErrnoStatus(errno, "fsync " + path);
  if (::close(file) != 0 && status.ok()) status = ErrnoStatus(errno, "close " + path);
  return status;
}

// The bytes at `path`; nothing when there is no such file.
absl::StatusOr<std::optional<std::string>> ReadRecordFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0 && errno == ENOENT) return std::optional<std::string>();
  if (file < 0) return ErrnoStatus(errno, "open " + path);
  std::string bytes;
  absl::Status status;
  struct stat info {};
  if (::fstat(file, &info) != 0)
    status = ErrnoStatus(errno, "stat " + path);
  else if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) > kRecordBytesMax)
    status = DataLoss("{} is not a record: {} bytes, mode {:o}", path, info.st_size, info.st_mode);
  else
    bytes.resize(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (status.ok() && done < bytes.size()) {
    const ssize_t got =
        ::pread(file, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) status = ErrnoStatus(errno, "read " + path);
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  ::close(file);
  RETURN_IF_ERROR(status);
  bytes.resize(done);
  return std::optional<std::string>(std::move(bytes));
}

// Reads back by name what must be there.
absl::StatusOr<std::string> ReadPublished(const std::string& path) {
  for (int attempt = 0;; ++attempt) {
    ASSIGN_OR_RETURN(std::optional<std::string> bytes, ReadRecordFile(path));
    if (bytes) return *std::move(bytes);
    if (attempt == kAbsentRetries)
      return Unavailable("{} was linked but cannot be seen: is the file system sound?", path);
    std::this_thread::sleep_for(kAbsentPause);
  }
}

std::string FirstLine(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  return text.ok() ? text->substr(0, text->find('\n')) : "unknown";
}

std::string DescribeProcess() {
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  return fmt::format("host {}, boot {}, pid {}", host, FirstLine("/proc/sys/kernel/random/boot_id"),
                     ::getpid());
}

// Whether a record may follow records whose highest START is `highest`.
absl::Status CheckGeneration(RecordType type, uint64_t generation, uint64_t highest) {
  if (type == RecordType::kStart && generation <= highest)
    return FailedPrecondition("START of generation {} after that of {}", generation, highest);
  if (type == RecordType::kCommit && generation != highest)
    return FailedPrecondition("COMMIT of generation {} after START of {}: it has been replaced",
                              generation, highest);
  if (type != RecordType::kStart && generation > highest)
    return FailedPrecondition("{} of generation {}, which has no START", RecordTypeName(type),
                              generation);
  return absl::OkStatus();
}

absl::Status MakeRunDirectories(const std::string& directory) {
  const std::filesystem::path run(directory);
  RETURN_IF_ERROR(MakeDirectories((run / "log").string()));
  return MakeDirectories((run / "tmp").string());
}

// Names that a job before may have made without living long enough to sync them.
absl::Status SyncNewRun(const std::string& directory) {
  RETURN_IF_ERROR(SyncDirectory(directory));
  return SyncDirectory(std::filesystem::absolute(std::filesystem::path(directory) / "..").string());
}

}  // namespace

std::string RunLog::Path(uint64_t slot) const {
  return (std::filesystem::path(directory_) / "log" / SlotName(slot)).string();
}

absl::StatusOr<RunLog> RunLog::Open(const std::string& run_directory) {
  RunLog log;
  log.directory_ = run_directory;
  const std::string folder = (std::filesystem::path(run_directory) / "log").string();
  ASSIGN_OR_RETURN(const std::optional<uint64_t> before, HighestSlot(folder));
  RETURN_IF_ERROR(MakeRunDirectories(run_directory));
  RETURN_IF_ERROR(CheckRunDirectories(run_directory));
  ASSIGN_OR_RETURN(log.key_, OpenRunKey(run_directory, /*may_create=*/!before.has_value()));
  if (!before.has_value()) RETURN_IF_ERROR(SyncNewRun(run_directory));
  log.run_id_ = RunIdFromKey(log.key_);
  log.author_.incarnation = RandomIncarnation();
  log.holder_ = DescribeProcess();
  RETURN_IF_ERROR(log.Refresh());
  // A hole is not the end: whoever stopped reading there would fork the run.
  for (int attempt = 0;; ++attempt) {
    ASSIGN_OR_RETURN(const std::optional<uint64_t> highest, HighestSlot(folder));
    if (!highest || *highest < log.next_slot()) return log;
    if (attempt == kAbsentRetries)
      return DataLoss("{} (slot {}) is missing but slot {} is there: {}", log.Path(log.next_slot()),
                      log.next_slot(), *highest, kRemedy);
    // Somebody may have appended between the reading and the listing.
    RETURN_IF_ERROR(log.Refresh());
    if (*highest >= log.next_slot()) std::this_thread::sleep_for(kAbsentPause);
  }
}

void RunLog::DescribeHolder(const std::string& job) {
  holder_ = (job + ", " + DescribeProcess()).substr(0, kHolderBytesMax);
}

uint64_t RunLog::generation() const {
  uint64_t highest = 0;
  for (const Record& record : records_)
    if (record.type == RecordType::kStart) highest = std::max(highest, record.generation);
  return highest;
}

absl::StatusOr<std::optional<Record>> RunLog::ReadSlot(uint64_t slot) const {
  PERDURE_CHECK(slot == next_slot());  // Its place in the chain is known for this one only.
  const std::string path = Path(slot);
  ASSIGN_OR_RETURN(const std::optional<std::string> bytes, ReadRecordFile(path));
  if (!bytes) return std::optional<Record>();
  const auto bad = [&](const std::string& what) {
    return DataLoss("{} (slot {}): {}; {}", path, slot, what, kRemedy);
  };
  absl::StatusOr<Record> record = DecodeRecord(*bytes, {.run_id = run_id_, .key = key_});
  if (!record.ok()) return bad(Message(record.status()));
  if (record->slot != slot) return bad(fmt::format("written for slot {}", record->slot));
  const Digest previous = records_.empty() ? Digest{} : records_.back().digest;
  if (record->previous != previous)
    return bad(fmt::format("out of chain: it follows {}, the record before it is {}",
                           record->previous.Hex(), previous.Hex()));
  if (absl::Status status = CheckGeneration(record->type, record->generation, generation());
      !status.ok())
    return bad(Message(status));
  if (absl::Status status = CheckBody(record->type, record->body); !status.ok())
    return bad(fmt::format("body of {}: {}", RecordTypeName(record->type), Message(status)));
  return std::optional<Record>(*std::move(record));
}

absl::Status RunLog::Refresh() {
  while (true) {
    ASSIGN_OR_RETURN(std::optional<Record> record, ReadSlot(next_slot()));
    if (!record) return absl::OkStatus();
    records_.push_back(*std::move(record));
  }
}

// Links `temporary` to the slot's name. OK also when the file system did it and said otherwise.
absl::Status RunLog::Link(const std::string& temporary, uint64_t slot,
                          const std::string& bytes) const {
  const std::string path = Path(slot);
  if (::link(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  struct stat info {};
  if (::stat(temporary.c_str(), &info) == 0 && info.st_nlink == 2) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadRecordFile(path));
  if (there && *there == bytes) return absl::OkStatus();
  if (there || error == EEXIST)
    return Aborted(
        "slot {} of {} is taken by another writer: read the log again, and step down if "
        "it holds a newer generation",
        slot, directory_);
  return ErrnoStatus(error, fmt::format("link {} to {}", temporary, path));
}

absl::Status RunLog::Publish(const std::string& temporary, uint64_t slot,
                             const std::string& bytes) const {
  RETURN_IF_ERROR(WriteNewFile(temporary, bytes));
  RETURN_IF_ERROR(Link(temporary, slot, bytes));
  RETURN_IF_ERROR(SyncDirectory((std::filesystem::path(directory_) / "log").string()));
  ASSIGN_OR_RETURN(const std::string there, ReadPublished(Path(slot)));
  if (there != bytes)
    return DataLoss("{} reads back otherwise than it was written: {}", Path(slot), kRemedy);
  return absl::OkStatus();
}

absl::Status RunLog::MakeReadDurable() {
  if (durable_ == records_.size()) return absl::OkStatus();
  const Record& last = records_.back();
  RETURN_IF_ERROR(SyncDirectory((std::filesystem::path(directory_) / "log").string()));
  ASSIGN_OR_RETURN(const std::optional<std::string> bytes, ReadRecordFile(Path(last.slot)));
  if (!bytes || DigestOf(*bytes) != last.digest)
    return FailedPrecondition(
        "slot {} of {} is not what it was when it was read: open the log anew", last.slot,
        directory_);
  durable_ = records_.size();
  return absl::OkStatus();
}

absl::Status RunLog::Append(RecordType type, uint64_t generation, std::string body, uint64_t id) {
  if (body.size() > kBodyBytesMax)
    return InvalidArgument("body of {} has {} bytes; {} are allowed", RecordTypeName(type),
                           body.size(), kBodyBytesMax);
  if (absl::Status status = CheckBody(type, body); !status.ok())
    return InvalidArgument("body of {}: {}", RecordTypeName(type), Message(status));
  RETURN_IF_ERROR(CheckGeneration(type, generation, this->generation()));
  RETURN_IF_ERROR(MakeReadDurable());
  Record record{.slot = next_slot(),
                .type = type,
                .generation = generation,
                .author = author_,
                .id = id,
                .holder = holder_,
                .body = std::move(body),
                .previous = records_.empty() ? Digest{} : records_.back().digest,
                .digest = {}};
  const std::array<uint8_t, 16> nonce = RandomNonce();
  const std::string bytes = EncodeRecord(record, {.run_id = run_id_, .key = key_}, nonce);
  record.digest = DigestOf(bytes);
  const std::string temporary =
      fmt::format("{}/{:02x}.rec", (std::filesystem::path(directory_) / "tmp").string(),
                  fmt::join(nonce.begin(), nonce.end(), ""));
  const absl::Status status = Publish(temporary, record.slot, bytes);
  ::unlink(temporary.c_str());
  RETURN_IF_ERROR(status);
  records_.push_back(std::move(record));
  durable_ = records_.size();
  return absl::OkStatus();
}

}  // namespace perdure
