#include "launch/node_book.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kTimeFormat[] = "%Y-%m-%dT%H:%M:%E3SZ";

// A node's name that may be a file's, too.
absl::Status CheckFileName(const std::string& node) {
  RETURN_IF_ERROR(CheckNodeName(node));
  if (node.front() == '.')
    return InvalidArgument("\"{}\" is no node's name: none begins with a dot", node);
  return absl::OkStatus();
}

// Closed by its owner's end.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd() const { return fd_; }
  // What was written may be refused as late as now, where a server has the file.
  int Close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// The files of a folder by name, kFilesMax of them; none where there is no folder. `more` counts
// the rest.
absl::StatusOr<std::vector<std::string>> FilesIn(const std::string& folder, int64_t& more) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (const std::filesystem::directory_iterator end; !error && entry != end;
       entry.increment(error)) {
    if (std::ssize(names) < NodeBook::kFilesMax)
      names.push_back(entry->path().filename());
    else
      ++more;
  }
  if (error) return ErrnoStatus(error.value(), "list " + folder);
  std::sort(names.begin(), names.end());
  return names;
}

// The first kFileBytesMax bytes of a regular file; nothing: it is none, or cannot be read.
std::optional<std::string> ReadBounded(const std::string& path) {
  // Whatever lies there must not hold us up, or lead elsewhere.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat about {};
  if (file.fd() < 0 || ::fstat(file.fd(), &about) != 0 || !S_ISREG(about.st_mode))
    return std::nullopt;
  std::string text(static_cast<size_t>(std::min<int64_t>(about.st_size, NodeBook::kFileBytesMax)),
                   '\0');
  size_t read = 0;
  while (read < text.size()) {
    const ssize_t got =
        ::pread(file.fd(), text.data() + read, text.size() - read, static_cast<off_t>(read));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::nullopt;
    if (got == 0) break;
    read += static_cast<size_t>(got);
  }
  text.resize(read);
  return text;
}

// Records the entries of a text; `passed_over` counts its other lines.
void RecordLines(std::string_view text, EvidenceBook& book, int64_t& passed_over) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.empty()) continue;
    // One that has no end may have lost some of it, and may still become whole.
    const bool whole = end != std::string_view::npos;
    const absl::StatusOr<EvidenceEntry> entry = ParseEvidenceLine(line);
    if (!whole || !entry.ok() || !book.Record(*entry).ok()) ++passed_over;
  }
}

template <typename T>
absl::StatusOr<T> Value(const Json& json, const char* key) {
  const auto at = json.find(key);
  if (at != json.end()) {
    if constexpr (std::is_same_v<T, std::string>) {
      if (at->is_string()) return at->get<std::string>();
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      if (at->is_number_unsigned()) return at->get<uint64_t>();
    } else {
      // Beyond its range a number is unsigned to the parser.
      if (at->is_number_integer() &&
          (!at->is_number_unsigned() || at->get<uint64_t>() <= INT64_MAX))
        return at->get<int64_t>();
    }
  }
  return InvalidArgument("an entry of the book of nodes has no {}, or another kind of it", key);
}

}  // namespace

std::string EvidenceLine(const EvidenceEntry& entry) {
  const Json json = {{"node", entry.node},
                     {"time", absl::FormatTime(kTimeFormat, entry.time, absl::UTCTimeZone())},
                     {"kind", NameOf(entry.kind)},
                     {"number", entry.number},
                     {"generation", entry.generation},
                     {"job", entry.job},
                     {"detail", entry.detail}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<EvidenceEntry> ParseEvidenceLine(std::string_view line) {
  if (line.size() > static_cast<size_t>(NodeBook::kLineBytesMax))
    return InvalidArgument("a line of the book of nodes has {} bytes, more than {}", line.size(),
                           NodeBook::kLineBytesMax);
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("a line of the book of nodes is no object");
  EvidenceEntry entry;
  ASSIGN_OR_RETURN(entry.node, Value<std::string>(json, "node"));
  ASSIGN_OR_RETURN(const std::string time, Value<std::string>(json, "time"));
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, time, &entry.time, &error))
    return InvalidArgument("an entry of the book of nodes has no time: {}", error);
  ASSIGN_OR_RETURN(const std::string kind, Value<std::string>(json, "kind"));
  const std::optional<EvidenceKind> known = KindOf(kind);
  if (!known.has_value())
    return InvalidArgument("an entry of the book of nodes has an unknown kind");
  entry.kind = *known;
  ASSIGN_OR_RETURN(entry.number, Value<int64_t>(json, "number"));
  ASSIGN_OR_RETURN(entry.generation, Value<uint64_t>(json, "generation"));
  ASSIGN_OR_RETURN(entry.job, Value<std::string>(json, "job"));
  ASSIGN_OR_RETURN(entry.detail, Value<std::string>(json, "detail"));
  RETURN_IF_ERROR(CheckEvidence(entry));
  return Bounded(std::move(entry));
}

absl::Status NodeBook::Append(const std::string& writer, const EvidenceEntry& entry) const {
  RETURN_IF_ERROR(CheckEvidence(entry));
  std::string text = EvidenceLine(Bounded(entry)) + "\n";
  RETURN_IF_ERROR(MakeDirectories(seen()));
  const std::string path = seen() + "/" + writer + ".jsonl";
  Descriptor file(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  struct stat about {};
  if (file.fd() < 0 || ::fstat(file.fd(), &about) != 0) return ErrnoStatus(errno, "open " + path);
  // A line that a crash has torn is ended, so that this one is a line of its own.
  char last = '\n';
  if (about.st_size > 0 && ::pread(file.fd(), &last, 1, about.st_size - 1) != 1)
    return ErrnoStatus(errno, "read " + path);
  if (last != '\n') text.insert(0, "\n");
  if (about.st_size + std::ssize(text) > kFileBytesMax)
    return ResourceExhausted(
        "{} has {} bytes, and {} is all that is read of it: {} is not recorded", path,
        about.st_size, kFileBytesMax, WordsOf(entry.kind, entry.number));
  const ssize_t written = ::write(file.fd(), text.data(), text.size());
  if (written != std::ssize(text))
    return ErrnoStatus(written < 0 ? errno : ENOSPC, "append to " + path);
  return file.Close() == 0 ? absl::OkStatus() : ErrnoStatus(errno, "append to " + path);
}

absl::Status NodeBook::Pin(const std::string& node) const {
  RETURN_IF_ERROR(CheckFileName(node));
  RETURN_IF_ERROR(MakeDirectories(pins()));
  const std::string path = pins() + "/" + node;
  // Its name is all of it: there is nothing that could be half written.
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (file.fd() < 0) return ErrnoStatus(errno, "create " + path);
  return SyncDirectory(pins());
}

absl::Status NodeBook::Unpin(const std::string& node) const {
  RETURN_IF_ERROR(CheckFileName(node));
  const std::string path = pins() + "/" + node;
  if (::unlink(path.c_str()) != 0)
    return errno == ENOENT
               ? NotFound("node {} is not pinned; `perdure nodes` lists those that are", node)
               : ErrnoStatus(errno, "delete " + path);
  return SyncDirectory(pins());
}

absl::Status NodeBook::Clear(const std::string& node, absl::Time now) const {
  RETURN_IF_ERROR(CheckFileName(node));
  ASSIGN_OR_RETURN(Contents contents, Read({}));
  RETURN_IF_ERROR(contents.book.Clear(node, now));
  EvidenceEntry clearing;
  for (EvidenceEntry& entry : contents.book.Entries())
    if (entry.node == node && entry.kind == EvidenceKind::kCleared && entry.time >= now)
      clearing = std::move(entry);
  RETURN_IF_ERROR(MakeDirectories(cleared()));
  return ReplaceFile(cleared() + "/" + node + ".jsonl", EvidenceLine(clearing) + "\n");
}

absl::StatusOr<NodeBook::Contents> NodeBook::Read(const EvidenceBook::Options& options) const {
  RETURN_IF_ERROR(EvidenceBook::Validate(options));
  // One by one, because the book is bounded and the folder is whose it is.
  Contents contents{.book = EvidenceBook(options)};
  int64_t& passed_over = contents.passed_over;
  for (const std::string& folder : {seen(), cleared()}) {
    ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesIn(folder, passed_over));
    for (const std::string& name : files) {
      if (!name.ends_with(".jsonl")) continue;  // One that a crash has left in the making.
      if (const std::optional<std::string> text = ReadBounded(folder + "/" + name))
        RecordLines(*text, contents.book, passed_over);
      else
        ++passed_over;
    }
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> pinned, FilesIn(pins(), passed_over));
  for (const std::string& name : pinned)
    if (!CheckFileName(name).ok() || !contents.book.Pin(name).ok()) ++passed_over;
  return contents;
}

}  // namespace perdure
