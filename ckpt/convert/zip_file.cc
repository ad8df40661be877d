#include "ckpt/convert/zip_file.h"

#include <algorithm>
#include <set>
#include <utility>

#include "ckpt/convert/crc32.h"
#include "ckpt/convert/foreign_file.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kEndBytes = 22, kLocatorBytes = 20, kEnd64Bytes = 56;
constexpr uint64_t kEntryBytes = 46, kLocalBytes = 30;
constexpr uint64_t kDirectoryBytesMax = uint64_t{256} << 20;
constexpr uint64_t kNameBytesMax = 4096;
// Sizes in a descriptor behind the data; names in UTF-8.
constexpr uint64_t kFlagsKnown = 0x0808;

uint64_t Unsigned(std::string_view bytes, size_t at, int count) {
  uint64_t value = 0;
  for (int i = count; i > 0; --i)
    value = value << 8 | static_cast<uint8_t>(bytes[at + static_cast<size_t>(i) - 1]);
  return value;
}

bool IsPlainName(std::string_view name) {
  if (name.empty() || name.front() == '/' || name.back() == '/') return false;
  for (const char c : name)
    if (static_cast<unsigned char>(c) < ' ' || c == '\\' || c == '\x7f') return false;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = end + 1;
  }
  return true;
}

class ZipReader {
 public:
  ZipReader(const File& file, uint64_t offset, uint64_t bytes, std::string what)
      : file_(file), begin_(offset), bytes_(bytes), what_(std::move(what)) {}

  absl::StatusOr<std::vector<ZipRecord>> Read();

 private:
  struct Directory {
    uint64_t offset = 0, bytes = 0, entries = 0;
  };
  struct Entry {
    std::string full_name;
    uint64_t header = 0;  // From the archive's begin.
    ZipRecord record;
  };

  template <typename... Args>
  absl::Status Fail(fmt::format_string<Args...> format, Args&&... args) const {
    return DataLoss("{}: {}", what_, fmt::format(format, std::forward<Args>(args)...));
  }
  absl::StatusOr<std::string> Bytes(uint64_t at, uint64_t count) const;
  absl::StatusOr<Directory> FindDirectory() const;
  absl::StatusOr<Directory> FindDirectory64(uint64_t locator) const;
  absl::Status ReadEntries(const Directory& directory);
  absl::StatusOr<uint64_t> ReadEntry(std::string_view raw);
  absl::Status ReadExtra64(std::string_view extra, Entry& entry, uint64_t& stored) const;
  absl::Status PlaceEntries(uint64_t directory);
  absl::Status CutFolder();

  const File& file_;
  uint64_t begin_, bytes_;
  std::string what_;
  std::vector<Entry> entries_;
};

absl::StatusOr<std::string> ZipReader::Bytes(uint64_t at, uint64_t count) const {
  if (at > bytes_ || count > bytes_ - at)
    return Fail("bytes {} to {} lie outside of its {} bytes", at, at + count, bytes_);
  std::string bytes(count, '\0');
  RETURN_IF_ERROR(ReadBytes(file_, begin_ + at, bytes.data(), bytes.size()));
  return bytes;
}

absl::StatusOr<std::vector<ZipRecord>> ZipReader::Read() {
  ASSIGN_OR_RETURN(const Directory directory, FindDirectory());
  RETURN_IF_ERROR(ReadEntries(directory));
  RETURN_IF_ERROR(PlaceEntries(directory.offset));
  RETURN_IF_ERROR(CutFolder());
  std::vector<ZipRecord> records;
  for (Entry& entry : entries_) records.push_back(std::move(entry.record));
  return records;
}

absl::StatusOr<ZipReader::Directory> ZipReader::FindDirectory() const {
  if (bytes_ < kEndBytes) return Fail("{} bytes are too few for a zip file", bytes_);
  const uint64_t end = bytes_ - kEndBytes;
  ASSIGN_OR_RETURN(const std::string raw, Bytes(end, kEndBytes));
  if (!raw.starts_with("PK\5\6") || Unsigned(raw, 20, 2) != 0)
    return Fail("no zip file ends here: truncated, or something was added");
  Directory directory{.offset = Unsigned(raw, 16, 4),
                      .bytes = Unsigned(raw, 12, 4),
                      .entries = Unsigned(raw, 10, 2)};
  if (Unsigned(raw, 4, 4) != 0 || Unsigned(raw, 8, 2) != directory.entries)
    return Fail("a zip file of several disks");
  uint64_t directory_end = end;
  if (end >= kLocatorBytes + kEnd64Bytes) {
    ASSIGN_OR_RETURN(const std::string locator, Bytes(end - kLocatorBytes, 4));
    if (locator == "PK\6\7") {
      ASSIGN_OR_RETURN(directory, FindDirectory64(end - kLocatorBytes));
      directory_end = end - kLocatorBytes - kEnd64Bytes;
    }
  }
  if (directory.offset > directory_end || directory.bytes != directory_end - directory.offset)
    return Fail("its directory has {} bytes at {} and should end at {}", directory.bytes,
                directory.offset, directory_end);
  if (directory.bytes > kDirectoryBytesMax || directory.entries > directory.bytes / kEntryBytes)
    return Fail("a directory of {} entries in {} bytes", directory.entries, directory.bytes);
  return directory;
}

absl::StatusOr<ZipReader::Directory> ZipReader::FindDirectory64(uint64_t locator) const {
  ASSIGN_OR_RETURN(const std::string raw,
                   Bytes(locator - kEnd64Bytes, kEnd64Bytes + kLocatorBytes));
  if (!raw.starts_with("PK\6\6") || Unsigned(raw, 4, 8) != kEnd64Bytes - 12)
    return Fail("the zip64 record before its end is not one of torch's");
  if (Unsigned(raw, kEnd64Bytes + 8, 8) != locator - kEnd64Bytes ||
      Unsigned(raw, kEnd64Bytes + 4, 4) != 0 || Unsigned(raw, kEnd64Bytes + 16, 4) > 1)
    return Fail("its zip64 locator points elsewhere");
  const Directory directory{.offset = Unsigned(raw, 48, 8),
                            .bytes = Unsigned(raw, 40, 8),
                            .entries = Unsigned(raw, 32, 8)};
  if (Unsigned(raw, 16, 8) != 0 || Unsigned(raw, 24, 8) != directory.entries)
    return Fail("a zip file of several disks");
  return directory;
}

absl::Status ZipReader::ReadEntries(const Directory& directory) {
  ASSIGN_OR_RETURN(const std::string raw, Bytes(directory.offset, directory.bytes));
  std::string_view rest = raw;
  std::set<std::string> names;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(const uint64_t used, ReadEntry(rest));
    rest.remove_prefix(used);
    if (!names.insert(entries_.back().full_name).second)
      return Fail("two records are named {}", entries_.back().full_name);
  }
  if (!rest.empty()) return Fail("{} bytes follow the directory's entries", rest.size());
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ZipReader::ReadEntry(std::string_view raw) {
  const size_t index = entries_.size();
  if (raw.size() < kEntryBytes || !raw.starts_with("PK\1\2"))
    return Fail("entry {} of its directory is damaged", index);
  const uint64_t name_bytes = Unsigned(raw, 28, 2), extra_bytes = Unsigned(raw, 30, 2);
  const uint64_t used = kEntryBytes + name_bytes + extra_bytes + Unsigned(raw, 32, 2);
  if (used > raw.size()) return Fail("entry {} of its directory is truncated", index);
  Entry entry{.full_name = std::string(raw.substr(kEntryBytes, name_bytes))};
  if (name_bytes > kNameBytesMax || !IsPlainName(entry.full_name))
    return Fail("record {} has a name that is refused", index);
  const std::string& name = entry.full_name;
  if ((Unsigned(raw, 8, 2) & ~kFlagsKnown) != 0)
    return Fail("record {} has flags {:#06x}: encrypted, or not torch's", name,
                Unsigned(raw, 8, 2));
  if (Unsigned(raw, 10, 2) != 0)
    return Fail("record {} is compressed; torch.save stores: save it again with torch", name);
  entry.record.crc = static_cast<uint32_t>(Unsigned(raw, 16, 4));
  uint64_t stored = Unsigned(raw, 20, 4);
  entry.record.bytes = Unsigned(raw, 24, 4);
  entry.header = Unsigned(raw, 42, 4);
  if (Unsigned(raw, 34, 2) != 0) return Fail("record {} is on another disk", name);
  RETURN_IF_ERROR(ReadExtra64(raw.substr(kEntryBytes + name_bytes, extra_bytes), entry, stored));
  if (stored != entry.record.bytes)
    return Fail("record {} has {} bytes, stored in {}", name, entry.record.bytes, stored);
  entries_.push_back(std::move(entry));
  return used;
}

// Values that do not fit 32 bits stand in the extra field, in this order.
absl::Status ZipReader::ReadExtra64(std::string_view extra, Entry& entry, uint64_t& stored) const {
  uint64_t* const values[] = {&entry.record.bytes, &stored, &entry.header};
  std::string_view wide;
  while (extra.size() >= 4) {
    const uint64_t id = Unsigned(extra, 0, 2), bytes = Unsigned(extra, 2, 2);
    if (bytes > extra.size() - 4) return Fail("record {} has a torn extra field", entry.full_name);
    if (id == 1) wide = extra.substr(4, bytes);
    extra.remove_prefix(4 + bytes);
  }
  for (uint64_t* value : values) {
    if (*value != 0xFFFFFFFF) continue;
    if (wide.size() < 8) return Fail("record {} lacks a 64-bit size", entry.full_name);
    *value = Unsigned(wide, 0, 8);
    wide.remove_prefix(8);
  }
  return absl::OkStatus();
}

absl::Status ZipReader::PlaceEntries(uint64_t directory) {
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.header < b.header; });
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    const std::string& name = entry.full_name;
    const uint64_t limit = i + 1 < entries_.size() ? entries_[i + 1].header : directory;
    if (limit > directory || entry.header > limit ||
        limit - entry.header < kLocalBytes + name.size())
      return Fail("record {} begins at byte {} and must end before {}", name, entry.header, limit);
    ASSIGN_OR_RETURN(const std::string raw, Bytes(entry.header, kLocalBytes + name.size()));
    if (!raw.starts_with("PK\3\4") || Unsigned(raw, 8, 2) != 0 ||
        Unsigned(raw, 26, 2) != name.size() || raw.substr(kLocalBytes) != name)
      return Fail("record {}: its header at byte {} says otherwise", name, entry.header);
    const uint64_t data = entry.header + kLocalBytes + name.size() + Unsigned(raw, 28, 2);
    if (data > limit || entry.record.bytes > limit - data)
      return Fail("record {} has {} bytes at {} and must end before {}", name, entry.record.bytes,
                  data, limit);
    entry.record.offset = begin_ + data;
  }
  return absl::OkStatus();
}

absl::Status ZipReader::CutFolder() {
  if (entries_.empty()) return Fail("a zip file without records");
  const std::string& first = entries_.front().full_name;
  const std::string folder = first.substr(0, first.find('/') + 1);
  for (Entry& entry : entries_) {
    if (folder.empty() || !entry.full_name.starts_with(folder))
      return Fail("record {} is not in one folder with {}", entry.full_name, first);
    entry.record.name = entry.full_name.substr(folder.size());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ZipFile> ZipFile::Open(const File& file, uint64_t offset, uint64_t bytes,
                                      std::string what) {
  ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  if (offset > size || bytes > size - offset)
    return DataLoss("{}: bytes {} to {} lie outside of {}, which has {}", what, offset,
                    offset + bytes, file.path(), size);
  ZipFile zip;
  ASSIGN_OR_RETURN(zip.records_, ZipReader(file, offset, bytes, std::move(what)).Read());
  for (size_t i = 0; i < zip.records_.size(); ++i) zip.by_name_[zip.records_[i].name] = i;
  return zip;
}

const ZipRecord* ZipFile::Find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &records_[found->second];
}

absl::StatusOr<std::string> ReadZipRecord(const File& file, const ZipRecord& record,
                                          uint64_t bytes_max, std::string_view what) {
  if (record.bytes > bytes_max)
    return DataLoss("{}: {} has {} bytes; more than {} are refused", what, record.name,
                    record.bytes, bytes_max);
  std::string bytes(record.bytes, '\0');
  RETURN_IF_ERROR(ReadBytes(file, record.offset, bytes.data(), bytes.size()));
  if (UpdateCrc32(0, bytes.data(), bytes.size()) != record.crc)
    return DataLoss("{}: {} differs from its CRC: damaged; copy the file again", what, record.name);
  return bytes;
}

absl::Status VerifyZipRecord(const File& file, const ZipRecord& record, std::string_view what,
                             const std::function<void(uint64_t bytes)>& tell) {
  std::string buffer(std::min<uint64_t>(record.bytes, uint64_t{4} << 20), '\0');
  uint32_t crc = 0;
  for (uint64_t done = 0; done < record.bytes;) {
    const size_t count = std::min<uint64_t>(buffer.size(), record.bytes - done);
    RETURN_IF_ERROR(ReadBytes(file, record.offset + done, buffer.data(), count));
    crc = UpdateCrc32(crc, buffer.data(), count);
    done += count;
    if (tell) tell(count);
  }
  if (crc == record.crc) return absl::OkStatus();
  return DataLoss(
      "{}: {} differs from its CRC: damaged (or written with "
      "torch.serialization.set_crc32_options(False)); copy the file again",
      what, record.name);
}

}  // namespace perdure
