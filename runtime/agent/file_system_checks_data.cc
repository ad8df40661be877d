// Checks of bytes: what is durable, what is read back, how fast.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "ckpt/file_io.h"
#include "runtime/agent/child_processes.h"
#include "runtime/agent/file_system_checks.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int kRecords = 200;
constexpr double kRecordSeconds = 4;        // Whatever the number of records.
constexpr double kSlowRecordSeconds = 0.1;  // Each checkpoint waits for two of them.
constexpr uint64_t kFarOffset = 5ULL << 30;
constexpr uint64_t kSmallHole = 1ULL << 20;
constexpr uint64_t kReservedBytes = 8ULL << 20;
constexpr uint64_t kTransfer = 8ULL << 20;  // As checkpoints are read and written.
constexpr double kRateSeconds = 2.5;        // Of one direction.
constexpr double kMega = 1e6;

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0600)), error_(fd_ < 0 ? errno : 0) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int error() const { return error_; }

 private:
  const int fd_, error_;
};

absl::StatusOr<uint64_t> SizeOf(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  return static_cast<uint64_t>(info.st_size);
}

absl::StatusOr<uint64_t> OccupiedBytes(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

std::string Pattern(size_t bytes, uint64_t seed) {
  std::string text(bytes, '\0');
  for (char& c : text) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    c = static_cast<char>(seed >> 56);
  }
  return text;
}

}  // namespace

absl::Status WriteProbeFile(const std::string& path, std::string_view bytes, bool sync) {
  ASSIGN_OR_RETURN(File file, CreateNewFile(path));
  iovec piece{const_cast<char*>(bytes.data()), bytes.size()};
  RETURN_IF_ERROR(file.WriteAt(0, {&piece, 1}));
  if (sync) RETURN_IF_ERROR(file.Sync());
  return file.Close();
}

absl::StatusOr<ProbeCheck> CheckSync(const ProbeSite& site) {
  const std::string path = site.Tmp("synced");
  RETURN_IF_ERROR(WriteProbeFile(path, "durable", /*sync=*/true));
  {
    const Descriptor file(path, O_WRONLY);
    if (file.get() < 0) return ErrnoStatus(file.error(), "open " + path);
    if (::pwrite(file.get(), "D", 1, 0) != 1) return ErrnoStatus(errno, "write " + path);
    if (::fdatasync(file.get()) != 0) return ErrnoStatus(errno, "fdatasync " + path);
  }
  for (const char* folder : {"/log", "/tmp"})
    if (const absl::Status status = SyncDirectory(site.directory + folder); !status.ok())
      return Refuse(Message(status),
                    "names of the run log could vanish with the server's or the machine's power, "
                    "and every commit would fail",
                    "take a file system whose directories can be synced");
  return Good("fsync and fdatasync of files, fsync of directories");
}

absl::StatusOr<ProbeCheck> CheckRecordTime(const ProbeSite& site) {
  const std::string record = RaceRecord(0, 0);
  std::vector<double> seconds;
  const double begin = MonotonicSeconds();
  while (seconds.size() < kRecords && MonotonicSeconds() - begin < kRecordSeconds) {
    const std::string temporary = site.Tmp("timed");
    const std::string name = site.Log(fmt::format("timed.{:06}.rec", seconds.size()));
    const double start = MonotonicSeconds();
    RETURN_IF_ERROR(WriteProbeFile(temporary, record, /*sync=*/true));
    if (::link(temporary.c_str(), name.c_str()) != 0) return ErrnoStatus(errno, "link to " + name);
    RETURN_IF_ERROR(SyncDirectory(site.directory + "/log"));
    seconds.push_back(MonotonicSeconds() - start);
    if (::unlink(temporary.c_str()) != 0) return ErrnoStatus(errno, "unlink " + temporary);
    site.alive();
  }
  const Spread spread = SpreadOf(seconds);
  const std::string seen = fmt::format("{} records: {:.2f} ms each (p50), {:.1f} ms at most",
                                       seconds.size(), 1e3 * spread.p50, 1e3 * spread.max);
  ProbeCheck check = spread.p50 <= kSlowRecordSeconds
                         ? Good(seen)
                         : Warn(seen,
                                "create, write, fsync, link and fsync of the directory take long: "
                                "starts, commits and takeovers wait for several of them",
                                "see whether the server is busy; run it again at another hour");
  check.numbers = {{"record_p50_seconds", spread.p50}, {"record_max_seconds", spread.max}};
  return check;
}

absl::StatusOr<ProbeCheck> CheckReadBack(const ProbeSite& site) {
  const std::string path = site.Tmp("read_back");
  const std::string bytes = Pattern(std::clamp<uint64_t>(site.bytes / 4, 1001, 1'000'003), 1);
  RETURN_IF_ERROR(WriteProbeFile(path, bytes, /*sync=*/false));
  std::string wrong;
  for (const char* who : {"another descriptor", "another process"}) {
    const auto look = [&](int) -> absl::Status {
      ASSIGN_OR_RETURN(const uint64_t size, SizeOf(path));
      ASSIGN_OR_RETURN(const std::string there, ReadFile(path));
      if (size != bytes.size()) return DataLoss("{} sees {} bytes of {}", who, size, bytes.size());
      if (there != bytes) return DataLoss("{} reads other bytes than were written", who);
      return absl::OkStatus();
    };
    const bool own = who == std::string("another descriptor");
    const absl::Status status = own ? look(0) : RunInChildren(1, look);
    if (!absl::IsDataLoss(status)) RETURN_IF_ERROR(status);
    if (!status.ok() && wrong.empty()) wrong = Message(status);
  }
  if (!wrong.empty())
    return Refuse("of a file that was written and closed, " + wrong,
                  "records and checkpoints would be found torn that are not",
                  "look at the mount's options for caching of attributes (NFS: noac, nocto)");
  return Good("what was written and closed is seen whole, also by another process");
}

absl::StatusOr<ProbeCheck> CheckUnlinkedOpen(const ProbeSite& site) {
  const std::string path = site.Tmp("unlinked");
  const std::string bytes = Pattern(65'536, 2);
  RETURN_IF_ERROR(WriteProbeFile(path, bytes, /*sync=*/false));
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0) return ErrnoStatus(file.error(), "open " + path);
  if (::unlink(path.c_str()) != 0) return ErrnoStatus(errno, "unlink " + path);
  std::string there(bytes.size(), '\0');
  const ssize_t got = ::pread(file.get(), there.data(), there.size(), 0);
  if (got != static_cast<ssize_t>(bytes.size()) || there != bytes)
    return Warn(got < 0 ? Message(ErrnoStatus(errno, "read an open file that was unlinked"))
                        : "an open file that was unlinked has lost its bytes",
                "whoever reads a checkpoint while it is retired fails",
                "raise checkpoint.keep_last, so that what is read is not retired");
  return Good("an open file stays readable");
}

absl::StatusOr<ProbeCheck> CheckReserve(const ProbeSite& site) {
  const std::string path = site.Tmp("reserved");
  const Descriptor file(path, O_RDWR | O_CREAT | O_EXCL);
  if (file.get() < 0) return ErrnoStatus(file.error(), "create " + path);
  const uint64_t bytes = std::clamp<uint64_t>(site.bytes, 4096, kReservedBytes);
  if (::fallocate(file.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno != EOPNOTSUPP && errno != ENOSYS) return ErrnoStatus(errno, "fallocate " + path);
    return Warn("space cannot be reserved (fallocate)",
                "that a disk is full may show in the middle of a checkpoint, which is then void",
                "nothing; keep more room free");
  }
  ::unlink(path.c_str());
  return Good(fmt::format("{} bytes reserved before they are written", bytes));
}

absl::StatusOr<ProbeCheck> CheckSparse(const ProbeSite& site) {
  if (site.bytes < 2 * kSmallHole)
    return Skip(
        fmt::format("{} bytes are too few for a hole (--bytes; 1 % of what is free)", site.bytes));
  const std::string path = site.Tmp("sparse");
  const Descriptor file(path, O_RDWR | O_CREAT | O_EXCL);
  if (file.get() < 0) return ErrnoStatus(file.error(), "create " + path);
  // A small hole first: where holes take space, a large one would fill the disk.
  const uint64_t small = kSmallHole;
  uint64_t occupied = 0;
  for (const uint64_t offset : {small, kFarOffset}) {
    if (::pwrite(file.get(), "end", 3, static_cast<off_t>(offset)) != 3)
      return errno == EFBIG ? absl::StatusOr<ProbeCheck>(Refuse(
                                  fmt::format("no file of more than {} bytes", offset),
                                  "files of checkpoints are larger",
                                  "ulimit -f unlimited; else a file system with large files"))
                            : ErrnoStatus(errno, fmt::format("write {} at byte {}", path, offset));
    if (::fsync(file.get()) != 0) return ErrnoStatus(errno, "fsync " + path);
    ASSIGN_OR_RETURN(occupied, OccupiedBytes(path));
    if (offset == small && occupied > small / 2) break;
  }
  const std::string advice = "nothing; it costs space and time only";
  if (occupied > small / 2)
    return Warn(fmt::format("a hole of {} bytes occupies {}", small, occupied),
                "files take their space before they are filled; large offsets were not tried",
                advice);
  char hole = 1;
  char end[3] = {};
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(path));
  if (::pread(file.get(), &hole, 1, static_cast<off_t>(kFarOffset / 2)) != 1 || hole != 0 ||
      ::pread(file.get(), end, 3, static_cast<off_t>(kFarOffset)) != 3 ||
      std::memcmp(end, "end", 3) != 0 || size != kFarOffset + 3)
    return Refuse(
        fmt::format("written at byte {}, a file of {} bytes reads otherwise", kFarOffset, size),
        "large checkpoints would be damaged", "take another file system");
  ::unlink(path.c_str());
  return Good("holes take no space, files may be larger than 4 GiB");
}

absl::StatusOr<ProbeCheck> CheckDirectIo(const ProbeSite& site) {
  const std::string path = site.Tmp("direct");
  RETURN_IF_ERROR(WriteProbeFile(path, "x", /*sync=*/false));
  const std::string meaning =
      "checkpoints go through the page cache instead, which costs memory and a copy";
  const Descriptor file(path, O_RDWR | O_DIRECT);
  if (file.get() < 0 && file.error() == EINVAL)
    return Warn("O_DIRECT is not supported", meaning, "nothing; it works more slowly");
  if (file.get() < 0) return ErrnoStatus(file.error(), "open with O_DIRECT " + path);
  const AlignedBuffer buffer(kDirectBytes);
  std::memset(buffer.data(), 'd', kDirectBytes);
  uint64_t least = kDirectBytes;
  while (least >= 512 &&
         ::pwrite(file.get(), buffer.data(), least, 0) == static_cast<ssize_t>(least))
    least /= 2;
  least *= 2;  // The last one that worked.
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (least > kDirectBytes)
    return Warn(fmt::format("O_DIRECT refuses multiples of {} bytes", kDirectBytes), meaning,
                "nothing; it works more slowly");
  ProbeCheck check =
      Good(fmt::format("O_DIRECT in multiples of {} bytes; blocks of {}", least, info.st_blksize));
  check.numbers = {{"direct_alignment_bytes", static_cast<double>(least)},
                   {"block_bytes", static_cast<double>(info.st_blksize)}};
  return check;
}

namespace {

struct Rate {
  uint64_t bytes = 0;
  double seconds = 0;
  double mb_per_second() const {
    return seconds > 0 ? static_cast<double>(bytes) / seconds / kMega : 0;
  }
};

// Marks a transfer as the one of its place, so that another one's bytes are known.
void Stamp(const AlignedBuffer& buffer, uint64_t offset) {
  std::memcpy(buffer.data(), &offset, sizeof offset);
  std::memcpy(buffer.data() + kTransfer - sizeof offset, &offset, sizeof offset);
}

// Writes up to `bytes`, each transfer synced where it does not go past the cache.
absl::StatusOr<Rate> WriteAtRate(const ProbeSite& site, int fd, uint64_t bytes, bool direct,
                                 const AlignedBuffer& buffer) {
  Rate rate;
  const double begin = MonotonicSeconds();
  while (rate.bytes + kTransfer <= bytes && MonotonicSeconds() - begin < kRateSeconds) {
    Stamp(buffer, rate.bytes);
    const ssize_t put = ::pwrite(fd, buffer.data(), kTransfer, static_cast<off_t>(rate.bytes));
    if (put != static_cast<ssize_t>(kTransfer))
      return ErrnoStatus(put < 0 ? errno : ENOSPC, "write at full rate");
    if (!direct && ::fdatasync(fd) != 0) return ErrnoStatus(errno, "fdatasync at full rate");
    rate.bytes += kTransfer;
    site.alive();
  }
  if (::fsync(fd) != 0) return ErrnoStatus(errno, "fsync at full rate");
  rate.seconds = MonotonicSeconds() - begin;
  return rate;
}

absl::StatusOr<Rate> ReadAtRate(const ProbeSite& site, int fd, uint64_t bytes,
                                const AlignedBuffer& buffer) {
  Rate rate;
  const double begin = MonotonicSeconds();
  while (rate.bytes < bytes && MonotonicSeconds() - begin < kRateSeconds) {
    const ssize_t got = ::pread(fd, buffer.data(), kTransfer, static_cast<off_t>(rate.bytes));
    if (got < 0) return ErrnoStatus(errno, "read at full rate");
    uint64_t first = ~uint64_t{0}, last = first;
    std::memcpy(&first, buffer.data(), sizeof first);
    std::memcpy(&last, buffer.data() + kTransfer - sizeof last, sizeof last);
    if (got != static_cast<ssize_t>(kTransfer) || first != rate.bytes || last != rate.bytes)
      return DataLoss("at byte {} other bytes are read than were written", rate.bytes);
    rate.bytes += kTransfer;
    site.alive();
  }
  rate.seconds = MonotonicSeconds() - begin;
  return rate;
}

struct BothWays {
  Rate write, read;
};

// Nothing where this way is not supported.
absl::StatusOr<std::optional<BothWays>> Measure(const ProbeSite& site, bool direct) {
  const std::string path = site.Tmp(direct ? "rate.direct" : "rate.cached");
  const Descriptor file(path, O_RDWR | O_CREAT | O_EXCL | (direct ? O_DIRECT : 0));
  if (file.get() < 0 && direct && file.error() == EINVAL) {
    ::unlink(path.c_str());
    return std::optional<BothWays>();
  }
  if (file.get() < 0) return ErrnoStatus(file.error(), "create " + path);
  const AlignedBuffer buffer(kTransfer);
  const std::string pattern = Pattern(kTransfer, 3);
  std::memcpy(buffer.data(), pattern.data(), kTransfer);
  BothWays both;
  ASSIGN_OR_RETURN(both.write, WriteAtRate(site, file.get(), site.bytes, direct, buffer));
  // What was just written would come from memory.
  if (!direct) ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  ASSIGN_OR_RETURN(both.read, ReadAtRate(site, file.get(), both.write.bytes, buffer));
  ::unlink(path.c_str());
  return std::optional<BothWays>(both);
}

std::string Words(const char* way, const BothWays& both) {
  return fmt::format("{} write {:.0f}, read {:.0f} MB/s", way, both.write.mb_per_second(),
                     both.read.mb_per_second());
}

}  // namespace

absl::StatusOr<ProbeCheck> CheckBandwidth(const ProbeSite& site) {
  if (site.bytes < kTransfer)
    return Skip(fmt::format("it takes {} bytes, and {} may be used (--bytes; 1 % of what is free)",
                            kTransfer, site.bytes));
  ASSIGN_OR_RETURN(const std::optional<BothWays> direct, Measure(site, /*direct=*/true));
  ASSIGN_OR_RETURN(const std::optional<BothWays> cached, Measure(site, /*direct=*/false));
  const BothWays& used = direct ? *direct : *cached;
  ProbeCheck check = Good(
      fmt::format("{}{}; one thread, up to {} MB", direct ? Words("direct:", *direct) + "; " : "",
                  Words("cached with fsync:", *cached), site.bytes / 1'000'000));
  check.numbers = {{"cached_write_bytes_per_second", kMega * cached->write.mb_per_second()},
                   {"cached_read_bytes_per_second", kMega * cached->read.mb_per_second()}};
  if (direct) {
    check.numbers["direct_write_bytes_per_second"] = kMega * direct->write.mb_per_second();
    check.numbers["direct_read_bytes_per_second"] = kMega * direct->read.mb_per_second();
  }
  constexpr double kSlow = 20;  // A checkpoint of a billion parameters takes ten minutes.
  if (used.write.mb_per_second() >= kSlow) return check;
  check.outcome = ProbeOutcome::kWarning;
  check.meaning = "a checkpoint takes 12 bytes a parameter, divided by this for each writer";
  check.advice = "checkpoint.every longer; another file system, or a stripe over more targets";
  return check;
}

}  // namespace perdure
