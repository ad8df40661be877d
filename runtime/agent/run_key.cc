#include "runtime/agent/run_key.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "runtime/agent/job_start.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/base/unique_fd.h"

namespace perdure {
namespace {

constexpr const char* kKeyName = "run.key";
constexpr std::string_view kRunIdContext = "perdure run id";

void InitSodium() { PERDURE_CHECK(sodium_init() >= 0); }

// Ours, and closed to everybody else.
absl::Status CheckPrivate(int descriptor, const std::string& path, mode_t kind) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if ((info.st_mode & S_IFMT) != kind)
    return FailedPrecondition("{} is not a {}", path,
                              kind == S_IFDIR ? "directory" : "regular file");
  if (info.st_uid != ::geteuid())
    return FailedPrecondition("{} belongs to uid {}, this process runs as {}: keys are not shared",
                              path, info.st_uid, ::geteuid());
  if ((info.st_mode & 077) != 0)
    return FailedPrecondition(
        "{} has mode {:04o}: others may open it; chmod go= it, and make a "
        "new run if they may have read it",
        path, info.st_mode & 07777);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenControl(const std::string& path, bool may_create) {
  if (may_create && ::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return ErrnoStatus(errno, "mkdir " + path);
  UniqueFd control(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!control.open()) return ErrnoStatus(errno, "open directory " + path);
  RETURN_IF_ERROR(CheckPrivate(control.get(), path, S_IFDIR));
  return control;
}

// Key by temporary file and link(2): a reader finds no key or a whole one, and of two makers one
// wins.
absl::Status MakeKey(int control, const std::string& directory) {
  std::string key(kRunKeyBytes, '\0');
  randombytes_buf(key.data(), key.size());
  const std::array<uint8_t, 16> nonce = RandomNonce();
  const std::string temporary =
      fmt::format("{}.{:02x}", kKeyName, fmt::join(nonce.begin(), nonce.end(), ""));
  const std::string path = directory + "/" + temporary;
  const UniqueFd file(::openat(control, temporary.c_str(),
                               O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.open()) return ErrnoStatus(errno, "create " + path);
  absl::Status status;
  const ssize_t written = ::write(file.get(), key.data(), key.size());
  sodium_memzero(key.data(), key.size());
  if (written != static_cast<ssize_t>(kRunKeyBytes))
    status = ErrnoStatus(written < 0 ? errno : ENOSPC, "write " + path);
  else if (::fsync(file.get()) != 0)
    status = ErrnoStatus(errno, "fsync " + path);
  else if (::linkat(control, temporary.c_str(), control, kKeyName, 0) != 0 && errno != EEXIST)
    status = ErrnoStatus(errno, "link " + path);
  else if (::fsync(control) != 0)
    status = ErrnoStatus(errno, "fsync " + directory);
  ::unlinkat(control, temporary.c_str(), 0);
  return status;
}

absl::StatusOr<std::string> ReadKey(int descriptor, const std::string& path) {
  RETURN_IF_ERROR(CheckPrivate(descriptor, path, S_IFREG));
  std::string key(kRunKeyBytes + 1, '\0');
  size_t bytes = 0;
  while (bytes < key.size()) {
    const ssize_t got = ::read(descriptor, key.data() + bytes, key.size() - bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) break;
    bytes += static_cast<size_t>(got);
  }
  if (bytes != kRunKeyBytes)
    return DataLoss("{} does not have {} bytes: restore it from a copy of the run directory", path,
                    kRunKeyBytes);
  key.resize(kRunKeyBytes);
  return key;
}

}  // namespace

absl::StatusOr<std::string> OpenRunKey(const std::string& run_directory, bool may_create) {
  InitSodium();
  const std::string directory = (std::filesystem::path(run_directory) / "control").string();
  const std::string path = directory + "/" + kKeyName;
  ASSIGN_OR_RETURN(const UniqueFd control, OpenControl(directory, may_create));
  for (int attempt = 0; attempt < 2; ++attempt) {
    const UniqueFd file(
        ::openat(control.get(), kKeyName, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (file.open()) return ReadKey(file.get(), path);
    if (errno != ENOENT) return ErrnoStatus(errno, "open " + path);
    if (!may_create) break;
    RETURN_IF_ERROR(MakeKey(control.get(), directory));
  }
  return DataLoss("{} is missing: without it no record of this run can be checked; restore it",
                  path);
}

absl::Status CheckRunDirectories(const std::string& run_directory) {
  struct Rule {
    const char* name;
    int flags;
    mode_t forbidden;
    bool may_be_roots;
  };
  // The run's directory may be reached by a link of the user's own, and made by an administrator.
  for (const Rule& rule : {Rule{"", 0, 022, true}, Rule{"/log", O_NOFOLLOW, 022, false},
                           Rule{"/tmp", O_NOFOLLOW, 077, false}}) {
    const std::string path = run_directory + rule.name;
    const UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | rule.flags));
    if (!directory.open())
      return errno == ELOOP || errno == ENOTDIR
                 ? FailedPrecondition("{} is not a directory: put it there itself", path)
                 : ErrnoStatus(errno, "open directory " + path);
    struct stat info {};
    if (::fstat(directory.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
    if (info.st_uid != ::geteuid() && !(rule.may_be_roots && info.st_uid == 0))
      return FailedPrecondition("{} belongs to uid {}, this process runs as {}", path, info.st_uid,
                                ::geteuid());
    if ((info.st_mode & rule.forbidden) != 0)
      return FailedPrecondition("{} has mode {:04o}: others may change what is in it; chmod {} it",
                                path, info.st_mode & 07777, rule.forbidden == 022 ? "go-w" : "go=");
  }
  return absl::OkStatus();
}

std::string RunIdFromKey(const std::string& key) {
  InitSodium();
  PERDURE_CHECK(key.size() == kRunKeyBytes);
  std::array<uint8_t, 16> id{};
  PERDURE_CHECK(crypto_generichash(id.data(), id.size(),
                                   reinterpret_cast<const uint8_t*>(kRunIdContext.data()),
                                   kRunIdContext.size(),
                                   reinterpret_cast<const uint8_t*>(key.data()), key.size()) == 0);
  return fmt::format("{:02x}", fmt::join(id.begin(), id.end(), ""));
}

absl::StatusOr<JobKey> OpenJobKey(const std::string& run_directory, uint64_t job_start) {
  ASSIGN_OR_RETURN(std::string key, OpenRunKey(run_directory, /*may_create=*/false));
  JobKey derived = JobKey::Derive(
      {.file_key = std::span(reinterpret_cast<const uint8_t*>(key.data()), key.size()),
       .second_leg = {},
       .run_id = RunIdFromKey(key),
       .job = JobOf(job_start),
       .restart = RestartOf(job_start)});
  sodium_memzero(key.data(), key.size());
  return derived;
}

std::array<uint8_t, 16> RandomNonce() {
  InitSodium();
  std::array<uint8_t, 16> nonce{};
  randombytes_buf(nonce.data(), nonce.size());
  return nonce;
}

uint64_t RandomIncarnation() {
  InitSodium();
  uint64_t incarnation = 0;
  while (incarnation == 0) randombytes_buf(&incarnation, sizeof incarnation);
  return incarnation;
}

}  // namespace perdure
